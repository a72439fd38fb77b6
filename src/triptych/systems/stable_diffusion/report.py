"""Do pictures show what their prompts say, and do they look like pictures of that kind?

Of the built-in world an exact judge says so, attribute by attribute; of any data a CLIP says how
well pictures fit their texts, and how far apart drawn and real pictures are in its features.

Dimensions: N prompts, H height, W width, C channels.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from triptych.config import to_json, write_json
from triptych.data.order.batches import take
from triptych.data.scene_source import SceneSource
from triptych.data.source import Source
from triptych.diffusion.names import parse_sampler
from triptych.diffusion.sampling import check_draws_batches
from triptych.scenes.captions import parse
from triptych.scenes.drawing import GroundColour, Texture, Thing
from triptych.scenes.judge import Share, holds, report, satisfies
from triptych.scenes.reader import matches, strict, threshold
from triptych.scores.environment import environment
from triptych.scores.fid import Estimate, kernel_distance
from triptych.systems.stable_diffusion.draw_prompts import draw_prompts
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.systems.stable_diffusion.request import EvaluateTextToImage
from triptych.systems.two_towers.clip_score import Alignment, alignment
from triptych.train.evaluation import TrainedRun, indent
from triptych.vision.images import to_pictures
from triptych.weights.loaded import Loaded

Pictures = UInt8[np.ndarray, "N H W C"]
Shares = dict[str, Share]
Seen = tuple[Sequence[tuple[Thing, float] | None], GroundColour | None, Texture | None, int]
"""What `matches` says of a picture."""
Draw = Callable[[Sequence[str], float, int], Pictures]
"""(prompts, guidance, first seed) to one picture a prompt."""
CURVE = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)  # strengths of guidance
FIRST = 100_000  # prompts of endless data are counted from here: no training run looks at these


@dataclass(frozen=True)
class Likeness:
    """Drawn against real pictures through the eyes of a CLIP."""

    kernel: Estimate
    """KID in its features."""
    floor: Estimate
    """KID of as many other real pictures."""
    alignment: Alignment
    """CLIP score of drawn pictures with their prompts."""
    real: Alignment
    """Of the real pictures with the same prompts."""


@dataclass(frozen=True)
class Nearest:
    """What the judge finds before it is strict: how near pictures are, and not only how many are
    near enough.
    """

    counted: Share
    """Pictures with as many regions beside the ground as the prompt has objects; the rest counts
    those alone.
    """
    shares: Shares
    """What is right as a whole and in each attribute, were every region the object that redraws it
    best, however far off.
    """
    distances: tuple[float, float, float] | None
    """Quartiles of how far the regions are from their best objects; None where there is none."""
    limit: float
    """Within which the judge takes a region for an object."""


@dataclass(frozen=True)
class TextToImageReport:
    """What pictures of one setting are worth."""

    source: str
    prompts: int
    guidance: float
    seed: int
    judged: dict[str, Shares]
    """By the exact judge: for groups of prompts, the share that is right as a whole and in each
    attribute. Empty for other data.
    """
    nearest: dict[str, Nearest]
    """Of the same groups."""
    likeness: Likeness | None
    """None without a CLIP to look through."""


def prompts_of(source: Source, count: int) -> tuple[list[str], Pictures]:
    """Captions of held-out pictures and the pictures, never more than there are.

    Raises:
        ValueError: the source has no captions.
    """
    length = source.info.length
    first, count = (FIRST, count) if length is None else (0, min(count, length))
    batch = take(source, range(first, first + count))
    if "caption" not in batch:
        raise ValueError(f"{source.info.name} has no captions to draw pictures of")
    return list(batch["caption"]), to_pictures(batch["image"])


def groups_of(prompts: Iterable[str]) -> dict[str, list[int]]:
    """Prompts of the built-in world by what they ask for: which of them count, relate, or plainly
    describe.
    """
    groups: dict[str, list[int]] = {"all": []}
    for row, prompt in enumerate(prompts):
        claim = parse(prompt)
        kinds = ["all", f"{len(claim.things)} object{'s' * (len(claim.things) > 1)}"]
        if claim.relation is not None:
            kinds.append("relation")
        elif len(claim.things) > len(set(claim.things)):
            kinds.append("number of alike objects")
        for kind in kinds:
            groups.setdefault(kind, []).append(row)
    return groups


def judged(
    pictures: Pictures, prompts: Sequence[str]
) -> tuple[dict[str, Shares], dict[str, Nearest]]:
    """The share of pictures of the built-in world that are what their prompt says, as a whole and
    attribute by attribute, for each group of prompts; and how near they are.
    """
    seen = [matches(picture) for picture in pictures]
    limit = threshold(pictures.shape[1])
    shares, nearest = {}, {}
    for name, rows in groups_of(prompts).items():
        pairs = [(seen[row], prompts[row]) for row in rows]
        verdicts = (satisfies(strict(*found), notes) for found, notes in pairs)
        shares[name] = _named(report(verdicts))
        nearest[name] = _nearest(pairs, limit)
    return shares, nearest


def _named(shares: Mapping[str, Share]) -> Shares:
    return {what: share for what, share in shares.items() if share.of}


def _nearest(pairs: Sequence[tuple[Seen, str]], limit: float) -> Nearest:
    verdicts, distances = [], []
    for (found, ground, texture, _), notes in pairs:
        claim = parse(notes)
        near = [match for match in found if match is not None]
        if len(near) == len(found) == len(claim.things):
            verdicts.append(holds(claim, [thing for thing, _ in near], ground, texture))
            distances += [distance for _, distance in near]
    quarters = np.quantile(distances, [0.25, 0.5, 0.75]).tolist() if distances else None
    shares = _named(report(verdicts))
    shares.pop("count", None)  # all have it
    return Nearest(
        Share(len(verdicts), len(pairs)),
        shares,
        tuple(quarters) if quarters else None,
        limit,
    )


def likeness(
    drawn: Pictures, real: Pictures, others: Pictures, prompts: Sequence[str], clip: Loaded
) -> Likeness:
    """Drawn pictures against the real ones of the same prompts, and those against other real
    ones.
    """
    seen, truth, rest = (clip.embed_image(list(p)) for p in (drawn, real, others))
    text = clip.embed_text(list(prompts))
    return Likeness(
        kernel_distance(seen, truth),
        kernel_distance(rest, truth),
        alignment(seen, text),
        alignment(truth, text),
    )


def evaluate_text_to_image(
    draw: Draw,
    train: Source,
    test: Source,
    *,
    count: int,
    guidance: Sequence[float],
    clip: Loaded | None = None,
    seed: int = 0,
) -> Generator[str, None, list[TextToImageReport]]:
    """Yield a line on what is being done, and return a report for each guidance.

    Prompts and seeds are the same for all. The judge's groups of the built-in world are joined by
    `held-out pairs`: one-object prompts with shape and colour that never met in training.

    Raises:
        ValueError: the data has no captions.
    """
    prompts, real = prompts_of(test, count)
    others = to_pictures(take(train, range(len(prompts)))["image"])
    unseen: list[str] = []
    if isinstance(test, SceneSource):
        unseen, _ = prompts_of(SceneSource(test.name, "held-out", test.size), count)
    source = f"{test.info.name} {test.info.split}"
    reports = []
    for scale in guidance:
        yield f"{len(prompts) + len(unseen):,} pictures at guidance {scale:g}"
        pictures = draw(prompts, scale, seed)
        world = isinstance(test, SceneSource)
        shares, nearest = judged(pictures, prompts) if world else ({}, {})
        if unseen:
            apart, near = judged(draw(unseen, scale, seed), unseen)
            shares["held-out pairs"], nearest["held-out pairs"] = apart["all"], near["all"]
        alike = likeness(pictures, real, others, prompts, clip) if clip else None
        reports.append(TextToImageReport(source, len(prompts), scale, seed, shares, nearest, alike))
    return reports


def write_text_to_image(
    reports: Sequence[TextToImageReport], folder: Path, *, command: str
) -> tuple[Path, ...]:
    """`text-to-image.json`, a table as Markdown, and the curves over guidance; returns the paths.

    Raises:
        ValueError: matplotlib is missing; the numbers are written nevertheless.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers, page = folder / "text-to-image.json", folder / "text-to-image.md"
    setting = environment(command)
    write_json(numbers, {"environment": setting, "settings": [to_json(r) for r in reports]})
    page.write_text(markdown(reports, setting), encoding="utf-8")
    if len(reports) < 2:
        return numbers, page
    plot = folder / "guidance.png"
    _plot(reports, plot)
    return numbers, page, plot


def markdown(reports: Sequence[TextToImageReport], setting: Mapping[str, Any]) -> str:
    """The numbers as tables, each with its interval and what to hold it against."""
    first = reports[0]
    lines = [
        f"# Pictures from text, {first.source}\n",
        f"{first.prompts:,} prompts, seed {first.seed}. Intervals are 95 %.\n",
    ]
    for group in first.judged:
        names = list(first.judged[group])
        lines += [f"## {group}\n", "| guidance | " + " | ".join(names) + " |"]
        lines.append("|---" * (len(names) + 1) + "|")
        for found in reports:
            cells = [_share(found.judged[group][name]) for name in names]
            lines.append(f"| {found.guidance:g} | " + " | ".join(cells) + " |")
        lines.append("")
    if first.nearest:
        lines += [
            "## By the nearest objects\n",
            "What would be right were every region the object that redraws it best, of pictures "
            "with as many regions as their prompt has objects; and how far off those objects are: "
            "quartiles of the mean error over the mean contrast. The judge takes regions within "
            f"{first.nearest['all'].limit:.3f}.\n",
        ]
    for group in first.nearest:
        names = [name for name in first.judged[group] if name != "count"]
        columns = ["guidance", "as many regions", *names, "nearest quarter", "half",
                   "three quarters"]  # fmt: skip
        lines += [f"### {group}\n", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += [_near(found.guidance, found.nearest[group], names) for found in reports]
        lines.append("")
    if first.likeness is not None:
        lines += [
            "## Through the eyes of CLIP\n",
            "| guidance | KID x 1000 | real against real | CLIP score | of real pictures | own "
            "prompt preferred | by real pictures |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_alike(found) for found in reports if found.likeness is not None]
        lines.append("")
    facts = "\n".join(f"- {name}: {value}" for name, value in setting.items() if value is not None)
    return "\n".join([*lines, f"## Setting\n\n{facts}\n"])


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{share.value:.1%} ({low:.1%} to {high:.1%}) of {share.of}"


def _near(guidance: float, near: Nearest, names: Sequence[str]) -> str:
    shares = [_share(near.shares[name]) if name in near.shares else "-" for name in names]
    distances = [f"{d:.3f}" for d in near.distances] if near.distances else ["-"] * 3
    return "| " + " | ".join([f"{guidance:g}", _share(near.counted), *shares, *distances]) + " |"


def _alike(found: TextToImageReport) -> str:
    alike = found.likeness
    assert alike is not None

    def distance(e: Estimate) -> str:
        return f"{1000 * e.value:.3g} ({1000 * e.low:.3g} to {1000 * e.high:.3g})"

    def score(a: Alignment) -> str:
        return f"{a.score:.3f} ({a.low:.3f} to {a.high:.3f})"

    def preferred(a: Alignment) -> str:
        return "-" if a.preferred is None else f"{a.preferred:.1%}"

    cells = [
        f"{found.guidance:g}", distance(alike.kernel), distance(alike.floor),
        score(alike.alignment), score(alike.real), preferred(alike.alignment),
        preferred(alike.real),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _plot(reports: Sequence[TextToImageReport], path: Path) -> None:
    if find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib: pip install 'triptych[evaluation]'")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scales = [found.guidance for found in reports]
    panels = [g for g in ("all", "held-out pairs") if g in reports[0].judged]
    alike = [found.likeness for found in reports if found.likeness is not None]
    count = len(panels) + bool(alike)
    figure, axes = pyplot.subplots(1, count, figsize=(5 * count, 4), squeeze=False)
    for axis, group in zip(axes[0], panels, strict=False):
        for name in reports[0].judged[group]:
            shares = [found.judged[group][name] for found in reports]
            values = np.array([share.value for share in shares])
            spread = np.abs(np.array([share.interval for share in shares]).T - values)
            axis.errorbar(scales, values, spread, marker="o", capsize=2, label=name)
        axis.set(title=group, xlabel="guidance", ylabel="share right", ylim=(0, 1.02))
        axis.legend(fontsize=8)
    if alike:
        axis = axes[0, -1]
        kernels = np.array([1000 * a.kernel.value for a in alike])
        spread = np.array([(1000 * a.kernel.low, 1000 * a.kernel.high) for a in alike]).T
        axis.errorbar(scales, kernels, np.abs(spread - kernels), marker="o", capsize=2)
        axis.axhline(1000 * alike[0].floor.value, linestyle=":", color="gray")
        axis.set(title="KID x 1000 in CLIP's features; dotted: real", xlabel="guidance", ylim=0)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def evaluate(options: EvaluateTextToImage, run: TrainedRun) -> Generator[str, None, dict[str, Any]]:
    """Draw held-out captions and judge the pictures; yields messages and returns the figures."""
    model, tokenizers = run.loaded.model, run.loaded.tokenizers
    assert isinstance(model, StableDiffusion)
    own = model.config.sampling.guidance if options.guidance is None else options.guidance
    sampler, spacing = parse_sampler(options.sampler) if options.sampler else ("", "")
    if sampler:
        check_draws_batches(sampler)

    def draw(prompts: Sequence[str], guidance: float, seed: int) -> Pictures:
        return draw_prompts(
            model,
            tokenizers,
            prompts,
            guidance=guidance,
            sampler=sampler,
            steps=options.steps,
            spacing=spacing or None,  # type: ignore[arg-type]
            first_seed=seed,
        )

    reports = yield from indent(
        evaluate_text_to_image(
            draw,
            run.train,
            run.test,
            count=options.prompts,
            guidance=CURVE if options.curves else (own,),
            clip=run.load(options.clip, dtype="float32") if options.clip else None,
            seed=run.seed,
        )
    )
    for path in write_text_to_image(reports, run.folder, command=run.command):
        yield f"  {path}"
    for found in reports:
        yield _summarise(found)
    return {"pictures": [to_json(found) for found in reports]}


def _summarise(found: TextToImageReport) -> str:
    """The figures of one strength of guidance in one line."""
    parts = [f"guidance {found.guidance:g}"]
    if found.judged:
        parts += [f"{name} {share.value:.1%}" for name, share in found.judged["all"].items()]
    near = found.nearest.get("all")
    if near is not None and near.distances is not None:
        parts += [
            f"nearest object's {name} {share.right} of {share.of}"
            for name, share in near.shares.items()
            if name in ("colour", "shape")
        ]
        parts += [f"distance {near.distances[1]:.3f} (judge {near.limit:.3f})"]
    if found.likeness is not None:
        alike = found.likeness
        kid, floor = 1000 * alike.kernel.value, 1000 * alike.floor.value
        parts += [
            f"KID x 1000 {kid:.3g}, real {floor:.3g}",
            f"CLIP score {alike.alignment.score:.3f}, real {alike.real.score:.3f}",
        ]
    return ", ".join(parts)

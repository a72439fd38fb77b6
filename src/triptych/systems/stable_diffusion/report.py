"""Report on pictures from text: do they show their prompts, and do they look real?

For the built-in world an exact judge checks every attribute. For any data a CLIP scores how well
pictures fit their texts, and measures the distance between generated and real pictures.

Dimensions: N prompts, H height, W width, C channels.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from triptych.config import write_json
from triptych.data.order.batches import take
from triptych.data.scene_source import SceneSource
from triptych.data.source import Source
from triptych.diffusion.names import parse_sampler
from triptych.diffusion.sampling import check_draws_batches
from triptych.fields import to_json
from triptych.scenes.captions import parse
from triptych.scenes.judge import Share, holds, report, satisfies
from triptych.scenes.reader import apply_threshold, match_regions, threshold
from triptych.scenes.scene import GroundColour, Texture, Thing
from triptych.scores.environment import environment
from triptych.scores.fid import Estimate, kernel_distance
from triptych.scores.style import new_figure
from triptych.systems.stable_diffusion.draw_prompts import draw_prompts
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.systems.stable_diffusion.request import EvaluateTextToImage
from triptych.systems.two_towers.clip_score import Alignment, alignment
from triptych.train.evaluation import TrainedRun, indent
from triptych.vision.images import to_pictures
from triptych.weights.loaded import Loaded

Pictures = UInt8[np.ndarray, "N H W C"]
Shares = dict[str, Share]
Matches = tuple[Sequence[tuple[Thing, float] | None], GroundColour | None, Texture | None, int]
"""The result of `match_regions` for a picture."""
Draw = Callable[[Sequence[str], float, int], Pictures]
"""(prompts, guidance, first seed) to one picture per prompt."""
CURVE = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)  # strengths of guidance
FIRST_PROMPT = 100_000  # of endless data; training does not reach it


@dataclass(frozen=True)
class Likeness:
    """Generated against real pictures, in the features of a CLIP."""

    kernel: Estimate
    """KID."""
    floor: Estimate
    """KID of the same number of other real pictures."""
    alignment: Alignment
    """CLIP score of generated pictures with their prompts."""
    real: Alignment
    """CLIP score of the real pictures with the same prompts."""


@dataclass(frozen=True)
class Nearest:
    """The judge without its threshold: how near pictures are, not only whether they are right."""

    counted: Share
    """Pictures with as many regions as the prompt has objects; the other fields are about those."""
    shares: Shares
    """Correct pictures and attributes, if every region is taken for its nearest object."""
    distances: tuple[float, float, float] | None
    """Quartiles of the distance of regions from their nearest objects; None without regions."""
    limit: float
    """The judge's threshold of that distance."""


@dataclass(frozen=True)
class TextToImageReport:
    """The results of one guidance."""

    source: str
    prompts: int
    guidance: float
    seed: int
    judged: dict[str, Shares]
    """Per group of prompts: the share of correct pictures, and of correct attributes. Empty for
    other data than the built-in world.
    """
    nearest: dict[str, Nearest]
    """Per group of prompts."""
    likeness: Likeness | None
    """None without a CLIP."""


def take_prompts(source: Source, count: int) -> tuple[list[str], Pictures]:
    """The first captions of a source, at most `count`, and their pictures.

    Raises:
        ValueError: the source has no captions.
    """
    length = source.info.length
    first, count = (FIRST_PROMPT, count) if length is None else (0, min(count, length))
    batch = take(source, range(first, first + count))
    if "caption" not in batch:
        raise ValueError(f"{source.info.name} has no captions, which this report needs as prompts")
    return list(batch["caption"]), to_pictures(batch["image"])


def group_prompts(prompts: Iterable[str]) -> dict[str, list[int]]:
    """Rows of prompts of the built-in world, by number of objects, relation and repetition."""
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


def judge(
    pictures: Pictures, prompts: Sequence[str]
) -> tuple[dict[str, Shares], dict[str, Nearest]]:
    """For each group of prompts of the built-in world: the share of correct pictures and
    attributes, and how near pictures are.
    """
    readings = [match_regions(picture) for picture in pictures]
    limit = threshold(pictures.shape[1])
    shares, nearest = {}, {}
    for name, rows in group_prompts(prompts).items():
        pairs = [(readings[row], prompts[row]) for row in rows]
        verdicts = (satisfies(apply_threshold(*reading), prompt) for reading, prompt in pairs)
        shares[name] = _nonempty(report(verdicts))
        nearest[name] = _nearest(pairs, limit)
    return shares, nearest


def _nonempty(shares: Mapping[str, Share]) -> Shares:
    return {what: share for what, share in shares.items() if share.of}


def _nearest(pairs: Sequence[tuple[Matches, str]], limit: float) -> Nearest:
    verdicts, distances = [], []
    for (regions, ground, texture, _), prompt in pairs:
        claim = parse(prompt)
        matched = [match for match in regions if match is not None]
        if len(matched) == len(regions) == len(claim.things):
            verdicts.append(holds(claim, [thing for thing, _ in matched], ground, texture))
            distances += [distance for _, distance in matched]
    quartiles = np.quantile(distances, [0.25, 0.5, 0.75]).tolist() if distances else None
    shares = _nonempty(report(verdicts))
    shares.pop("count", None)  # always correct here
    return Nearest(
        Share(len(verdicts), len(pairs)),
        shares,
        tuple(quartiles) if quartiles else None,
        limit,
    )


def compare_with_clip(
    generated: Pictures, real: Pictures, others: Pictures, prompts: Sequence[str], clip: Loaded
) -> Likeness:
    """Compare generated pictures with the real ones of the same prompts, and those with other real
    ones.
    """
    ours, theirs, further = (clip.embed_image(list(p)) for p in (generated, real, others))
    text = clip.embed_text(list(prompts))
    return Likeness(
        kernel_distance(ours, theirs),
        kernel_distance(further, theirs),
        alignment(ours, text),
        alignment(theirs, text),
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
    """Yield progress messages, and return a report for each guidance.

    Prompts and seeds are the same for all. The built-in world has another group of prompts,
    `held-out pairs`: single objects whose shape and colour never occurred together in training.

    Raises:
        ValueError: the data has no captions.
    """
    prompts, real = take_prompts(test, count)
    others = to_pictures(take(train, range(len(prompts)))["image"])
    unseen: list[str] = []
    if isinstance(test, SceneSource):
        unseen, _ = take_prompts(SceneSource(test.name, "held-out", test.size), count)
    source = f"{test.info.name} {test.info.split}"
    reports = []
    for scale in guidance:
        yield f"{len(prompts) + len(unseen):,} pictures at guidance {scale:g}"
        pictures = draw(prompts, scale, seed)
        world = isinstance(test, SceneSource)
        shares, nearest = judge(pictures, prompts) if world else ({}, {})
        if unseen:
            held_out, near = judge(draw(unseen, scale, seed), unseen)
            shares["held-out pairs"], nearest["held-out pairs"] = held_out["all"], near["all"]
        likeness = compare_with_clip(pictures, real, others, prompts, clip) if clip else None
        reports.append(
            TextToImageReport(source, len(prompts), scale, seed, shares, nearest, likeness)
        )
    return reports


def write_text_to_image(
    reports: Sequence[TextToImageReport], folder: Path, *, command: str
) -> tuple[Path, ...]:
    """Write `text-to-image.json`, tables in Markdown, and plots over guidance; return the paths.

    Raises:
        ValueError: matplotlib is missing; the other files are written.
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
    """Tables of the numbers with intervals and reference values."""
    first = reports[0]
    lines = [
        f"# Pictures from text, {first.source}\n",
        f"{first.prompts:,} prompts, seed {first.seed}. Intervals are 95 %.\n",
    ]
    for group in first.judged:
        lines += _judged_table(reports, group)
    if first.nearest:
        lines += [
            "## By the nearest objects\n",
            "What is correct if every region is taken for its nearest object, for pictures with as "
            "many regions as their prompt has objects; and the distance of those objects, the "
            "quartiles of mean error over mean contrast. The judge's threshold is "
            f"{first.nearest['all'].limit:.3f}.\n",
        ]
    for group in first.nearest:
        lines += _nearest_table(reports, group)
    if first.likeness is not None:
        columns = [
            *("guidance", "KID x 1000", "real against real", "CLIP score", "of real pictures"),
            *("own prompt preferred", "by real pictures"),
        ]
        rows = [_likeness_row(report) for report in reports if report.likeness is not None]
        lines += ["## In the features of CLIP\n", *_table(columns, rows)]
    facts = "\n".join(f"- {name}: {value}" for name, value in setting.items() if value is not None)
    return "\n".join([*lines, f"## Setting\n\n{facts}\n"])


def _judged_table(reports: Sequence[TextToImageReport], group: str) -> list[str]:
    names = list(reports[0].judged[group])
    rows = [
        [f"{row.guidance:g}", *(_share(row.judged[group][name]) for name in names)]
        for row in reports
    ]
    return [f"## {group}\n", *_table(["guidance", *names], rows)]


def _nearest_table(reports: Sequence[TextToImageReport], group: str) -> list[str]:
    names = [name for name in reports[0].judged[group] if name != "count"]
    columns = [
        *("guidance", "as many regions", *names),
        *("nearest quarter", "half", "three quarters"),
    ]
    rows = [_nearest_row(report.guidance, report.nearest[group], names) for report in reports]
    return [f"### {group}\n", *_table(columns, rows)]


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown, and an empty one."""
    head, *body = (f"| {' | '.join(cells)} |" for cells in (columns, *rows))
    return [head, "|---" * len(columns) + "|", *body, ""]


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{share.value:.1%} ({low:.1%} to {high:.1%}) of {share.of}"


def _nearest_row(guidance: float, near: Nearest, names: Sequence[str]) -> list[str]:
    shares = [_share(near.shares[name]) if name in near.shares else "-" for name in names]
    distances = [f"{d:.3f}" for d in near.distances] if near.distances else ["-"] * 3
    return [f"{guidance:g}", _share(near.counted), *shares, *distances]


def _likeness_row(report: TextToImageReport) -> list[str]:
    likeness = report.likeness
    assert likeness is not None

    def distance(e: Estimate) -> str:
        return f"{1000 * e.value:.3g} ({1000 * e.low:.3g} to {1000 * e.high:.3g})"

    def score(a: Alignment) -> str:
        return f"{a.score:.3f} ({a.low:.3f} to {a.high:.3f})"

    def preferred(a: Alignment) -> str:
        return "-" if a.preferred is None else f"{a.preferred:.1%}"

    return [
        f"{report.guidance:g}", distance(likeness.kernel), distance(likeness.floor),
        score(likeness.alignment), score(likeness.real), preferred(likeness.alignment),
        preferred(likeness.real),
    ]  # fmt: skip


def _plot(reports: Sequence[TextToImageReport], path: Path) -> None:
    scales = [report.guidance for report in reports]
    panels = [g for g in ("all", "held-out pairs") if g in reports[0].judged]
    likenesses = [report.likeness for report in reports if report.likeness is not None]
    count = len(panels) + bool(likenesses)
    figure = new_figure(5 * count, 4)
    axes = figure.subplots(1, count, squeeze=False)
    for axis, group in zip(axes[0], panels, strict=False):
        for name in reports[0].judged[group]:
            shares = [report.judged[group][name] for report in reports]
            values = np.array([share.value for share in shares])
            spread = np.abs(np.array([share.interval for share in shares]).T - values)
            axis.errorbar(scales, values, spread, marker="o", capsize=2, label=name)
        axis.set(title=group, xlabel="guidance", ylabel="share right", ylim=(0, 1.02))
        axis.legend(fontsize=8)
    if likenesses:
        axis = axes[0, -1]
        kernels = np.array([1000 * a.kernel.value for a in likenesses])
        spread = np.array([(1000 * a.kernel.low, 1000 * a.kernel.high) for a in likenesses]).T
        axis.errorbar(scales, kernels, np.abs(spread - kernels), marker="o", capsize=2)
        axis.axhline(1000 * likenesses[0].floor.value, linestyle=":", color="gray")
        axis.set(title="KID x 1000 in CLIP's features; dotted: real", xlabel="guidance", ylim=0)
    figure.savefig(path, dpi=100)


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
    for result in reports:
        yield _summarise(result)
    return {"pictures": [to_json(result) for result in reports]}


def _summarise(result: TextToImageReport) -> str:
    """The figures of one strength of guidance in one line."""
    parts = [f"guidance {result.guidance:g}"]
    if result.judged:
        parts += [f"{name} {share.value:.1%}" for name, share in result.judged["all"].items()]
    near = result.nearest.get("all")
    if near is not None and near.distances is not None:
        parts += [
            f"nearest object's {name} {share.right} of {share.of}"
            for name, share in near.shares.items()
            if name in ("colour", "shape")
        ]
        parts += [f"distance {near.distances[1]:.3f} (judge {near.limit:.3f})"]
    if result.likeness is not None:
        alike = result.likeness
        kid, floor = 1000 * alike.kernel.value, 1000 * alike.floor.value
        parts += [
            f"KID x 1000 {kid:.3g}, real {floor:.3g}",
            f"CLIP score {alike.alignment.score:.3f}, real {alike.real.score:.3f}",
        ]
    return ", ".join(parts)

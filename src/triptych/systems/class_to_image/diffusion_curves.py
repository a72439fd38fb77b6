"""Two curves of a guided diffusion model: quality against guidance, and against network calls.

Guidance trades variety for fidelity (arXiv:2207.12598, figure 4); samplers differ in how many calls
of the network they need for the same quality (arXiv:2206.00364, figure 2). Every point is judged as
`class_conditional` judges, on fewer pictures.

Dimensions: N samples, C channels, H height, W width.
"""

import json
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triptych.config import to_json, write_json
from triptych.data.source import Source
from triptych.diffusion.names import SAMPLERS as RECORDS
from triptych.scores.accuracy import Accuracy, accuracy
from triptych.scores.diversity import diversity
from triptych.scores.environment import environment
from triptych.scores.fid import Estimate, frechet_estimate, kernel_distance
from triptych.scores.prdc import prdc
from triptych.systems.class_to_image.judge import judged, read_pictures, with_classes
from triptych.systems.classifier.model import Classifier
from triptych.vision.images import to_pictures

Draw = Callable[[Int[Tensor, " N"], int, str, int, float], Float[Tensor, "N C H W"]]
"""(labels, seed, sampler, steps, guidance) to pictures in [-1, 1]; picture i is seeded seed + i."""

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
BUDGETS = (5, 10, 20, 50, 100)  # calls of the network, a guided pair counted once
SAMPLERS = (
    "euler", "heun", "dpm2", "lms", "plms", "dpmpp_2m", "deis", "unipc", "euler_ancestral",
    "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde",
)  # fmt: skip
BATCH = 100


@dataclass(frozen=True)
class Point:
    """One setting of the sampler, judged."""

    sampler: str
    steps: int
    calls: int
    """Of the network for a picture; a guided pair goes through it as one."""
    guidance: float
    accuracy: Accuracy
    frechet: Estimate
    kernel: Estimate
    precision: float
    recall: float
    diversity: float | None
    """Mean over classes of the distance of two samples over that of two real pictures."""


@dataclass(frozen=True)
class Curves:
    """Both curves, and what real pictures get."""

    guidance: tuple[Point, ...]
    samplers: tuple[Point, ...]
    judge: Accuracy
    floor: Estimate
    """KID of as many other training pictures."""
    samples: int
    """Pictures of a point."""
    seed: int


def steps_of(sampler: str, calls: int) -> int:
    """The most steps that a sampler takes with so many calls: last steps and PLMS are special."""
    if sampler == "plms":
        return calls - 1
    return (calls + 1) // 2 if RECORDS[sampler].calls == 2 else calls


def calls_of(sampler: str, steps: int) -> int:
    """Calls of the network in so many steps that end at the clean picture."""
    if sampler == "plms":
        return steps + 1
    return 2 * steps - 1 if RECORDS[sampler].calls == 2 else steps


def draw_curves_of(
    draw: Draw,
    train: Source,
    test: Source,
    judge: Classifier,
    *,
    samples: int,
    sampler: str,
    steps: int,
    guidance: float,
    scales: Sequence[float] = SCALES,
    samplers: Sequence[str] = SAMPLERS,
    budgets: Sequence[int] = BUDGETS,
    seed: int = 0,
) -> Generator[str, None, Curves]:
    """Yield a line on what is being done, and return both curves.

    The guidance curve uses the sampler and steps given, the other one the guidance given.
    """
    classes = len(train.info.classes)
    pictures, labels = read_pictures(train, 4 * samples, seed)
    real = judged(judge, pictures, labels)
    held_out = judged(judge, *read_pictures(test, 10_000, seed + 1))
    wanted = real.label[:samples]
    reference, other = real.features[:samples], real.features[samples : 2 * samples]
    asked = torch.arange(samples + samples // 2) % classes  # enough of each for real proportions

    def point(sampler: str, steps: int, guidance: float) -> Point:
        drawn = [
            to_pictures(draw(part, seed + BATCH * i, sampler, steps, guidance))
            for i, part in enumerate(asked.split(BATCH))
        ]
        found = judged(
            judge, torch.cat([torch.from_numpy(d).permute(0, 3, 1, 2) for d in drawn]), asked
        )
        ours = with_classes(found, wanted)
        truth = reference[: len(ours)]
        shares = prdc(truth, ours)
        variety = diversity(found.features, found.label, held_out.features, held_out.label, classes)
        known = [v for v in variety if v is not None]
        return Point(
            sampler,
            steps,
            calls_of(sampler, steps),
            guidance,
            accuracy(found.seen, found.label),
            frechet_estimate(ours, truth),
            kernel_distance(ours, truth),
            shares.precision,
            shares.recall,
            sum(known) / len(known) if known else None,
        )

    along, across = [], []
    for scale in scales:
        yield f"guidance {scale:g}: {len(asked)} pictures"
        along.append(point(sampler, steps, scale))
    for name in samplers:
        for budget in budgets:
            yield f"{name}, {budget} calls: {len(asked)} pictures"
            across.append(point(name, steps_of(name, budget), guidance))
    real_accuracy = accuracy(held_out.seen, held_out.label)
    floor = kernel_distance(other, reference)
    return Curves(tuple(along), tuple(across), real_accuracy, floor, samples, seed)


def write_curves(curves: Curves, folder: Path, *, command: str) -> tuple[Path, ...]:
    """Write `diffusion-curves.json`, `.md` and, for each curve, a plot."""
    setting = environment(command)
    data, text = folder / "diffusion-curves.json", folder / "diffusion-curves.md"
    write_json(data, {"environment": setting} | to_json(curves))
    text.write_text(_markdown(curves, setting), encoding="utf-8")
    written = [data, text]
    if curves.guidance:
        written.append(_draw_guidance(curves, folder / "guidance.png"))
    if curves.samplers:
        written.append(_draw_samplers(curves, folder / "samplers.png"))
    return tuple(written)


def _markdown(curves: Curves, setting: dict[str, Any]) -> str:
    lines = [f"`{setting['command']}`, {curves.samples} pictures a point, seed {curves.seed}", ""]
    lines += [
        f"The judge reads {curves.judge.value:.2%} of real test pictures; KID x 1000 of other "
        f"training pictures {1000 * curves.floor.value:.2f}.",
        "",
    ]
    for title, points in (("guidance", curves.guidance), ("sampler", curves.samplers)):
        if not points:
            continue
        head = ["guidance" if title == "guidance" else "sampler, calls"]
        head += ["accuracy", "KID x 1000", "FID", "precision", "recall", "diversity"]
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for p in points:
            name = f"{p.guidance:g}" if title == "guidance" else f"{p.sampler}, {p.calls}"
            kernel = f"{1000 * p.kernel.value:.2f} ({1000 * p.kernel.low:.2f} to "
            kernel += f"{1000 * p.kernel.high:.2f})"
            variety = "" if p.diversity is None else f"{p.diversity:.2f}"
            cells = [name, f"{p.accuracy.value:.2%}", kernel, f"{p.frechet.value:.3f}"]
            cells += [f"{p.precision:.3f}", f"{p.recall:.3f}", variety]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    lines.append(f"```json\n{json.dumps(setting)}\n```")
    return "\n".join(lines) + "\n"


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Any, Any]:
    if find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib: pip install 'triptych[evaluation]'")
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, panels


def _draw_guidance(curves: Curves, path: Path) -> Path:
    """Accuracy, KID, and what is lost in variety, against the guidance scale."""
    figure, panels = _figure(11.0, 3.2, 1, 3)
    points = sorted(curves.guidance, key=lambda p: p.guidance)
    x = [p.guidance for p in points]
    first, second, third = panels
    first.plot(x, [p.accuracy.value for p in points], "o-", color="#3b6ea5")
    first.fill_between(
        x, [p.accuracy.low for p in points], [p.accuracy.high for p in points], alpha=0.2
    )
    first.axhline(curves.judge.value, ls=":", color="grey", label="real test pictures")
    first.set_title("conditional accuracy")
    second.plot(x, [1000 * p.kernel.value for p in points], "o-", color="#c0504d")
    second.fill_between(
        x,
        [1000 * p.kernel.low for p in points],
        [1000 * p.kernel.high for p in points],
        alpha=0.2,
        color="#c0504d",
    )
    second.axhline(1000 * curves.floor.value, ls=":", color="grey", label="other real pictures")
    second.set_title("KID x 1000")
    for name, color in (("precision", "#3b6ea5"), ("recall", "#c0504d"), ("diversity", "#7a9a4a")):
        values = [getattr(p, name) for p in points]
        if all(v is not None for v in values):
            third.plot(x, values, "o-", color=color, label=name)
    third.set_title("fidelity and variety")
    for axes in panels:
        axes.set_xlabel("guidance scale")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=140)
    return path


def _draw_samplers(curves: Curves, path: Path) -> Path:
    """FID and accuracy against network calls, a line a sampler.

    All points have the same number of pictures, so that their FIDs compare; KID of so few says
    little.
    """
    import matplotlib

    figure, (left, right) = _figure(11.0, 4.6, 1, 2)
    names = list(dict.fromkeys(p.sampler for p in curves.samplers))
    colors = matplotlib.colormaps["tab20"]
    for number, name in enumerate(names):
        points = sorted((p for p in curves.samplers if p.sampler == name), key=lambda p: p.calls)
        style = {"color": colors(number), "label": name, "ms": 4}
        calls = [p.calls for p in points]
        left.plot(calls, [p.frechet.value for p in points], "o-", **style)
        right.plot(calls, [p.accuracy.value for p in points], "o-", **style)
    right.axhline(curves.judge.value, ls=":", color="grey")
    left.set_yscale("log")
    left.set_title("FID in features of the judge")
    right.set_title("conditional accuracy")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(sorted({p.calls for p in curves.samplers if p.sampler == names[0]}))
        axes.get_xaxis().set_major_formatter(matplotlib.ticker.ScalarFormatter())
        axes.set_xlabel("network calls")
    right.legend(frameon=False, fontsize=7, ncols=2, loc="lower right")
    figure.savefig(path, dpi=140)
    return path

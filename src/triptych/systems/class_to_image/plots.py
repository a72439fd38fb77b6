"""Plots of a report and of diffusion curves, as PNG files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from triptych.scores.memorisation import QUANTILES, Memorisation
from triptych.scores.style import BLUE, GREY, RED, STYLE, new_figure, require_matplotlib
from triptych.systems.class_to_image.diffusion_curves import Curves
from triptych.systems.class_to_image.judge import ClassConditionalReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREEN = "#7a9a4a"


def draw_plots(report: ClassConditionalReport, folder: Path) -> tuple[Path, ...]:
    """Draw `classes.png`, `confusion.png` and `neighbours.png`.

    Raises:
        ValueError: matplotlib is missing.
    """
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context(STYLE):
        draw = (_draw_classes, _draw_confusion, _draw_neighbours)
        return tuple(function(report, folder) for function in draw)


def _draw_classes(report: ClassConditionalReport, folder: Path) -> Path:
    """Accuracy, FID and diversity of each class, one panel each."""
    rows = report.classes
    x = np.arange(len(rows))
    figure = new_figure(min(16.0, max(7.0, 0.5 * len(rows))), 6.0)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    shares = [row.accuracy for row in rows]
    top.bar(x, [s.value for s in shares], color=BLUE)
    below = [max(0, s.value - s.low) for s in shares]
    above = [max(0, s.high - s.value) for s in shares]
    top.errorbar(x, [s.value for s in shares], (below, above), fmt="none", color="black", lw=1)
    _mark_level(top, report.judge.value, "judge on real pictures")
    _mark_level(top, shares[0].chance, "chance")
    top.set(title="Conditional accuracy", ylim=(0, 1.05))
    for shift, part, colour in ((-0.2, "samples", BLUE), (0.2, "floor", GREY)):
        distances = [getattr(row, part) for row in rows]
        middle.bar(
            x + shift,
            [np.nan if d is None else d.frechet.value for d in distances],
            width=0.4,
            color=colour,
            label={"samples": "samples", "floor": "training against training"}[part],
        )
    middle.set(title="FID, logarithmic", yscale="log")
    middle.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    bottom.bar(x, [np.nan if r.diversity is None else r.diversity for r in rows], color=BLUE)
    _mark_level(bottom, 1.0, "as varied as real pictures")
    bottom.set(title="Diversity", xticks=x)
    rotation = 45 if max(len(row.name) for row in rows) > 3 else 0
    bottom.set_xticklabels([row.name for row in rows], rotation=rotation)
    figure.savefig(folder / "classes.png")
    return folder / "classes.png"


def _mark_level(axes: "Axes", height: float, name: str) -> None:
    axes.axhline(height, color=RED, lw=1, ls="--")
    axes.annotate(
        name, (1.0, height), xycoords=("axes fraction", "data"), xytext=(4, 0),
        textcoords="offset points", color=RED, va="center", fontsize=8,
    )  # fmt: skip


def _draw_confusion(report: ClassConditionalReport, folder: Path) -> Path:
    """Rows: the requested class. Shade: the share of its samples predicted as each class."""
    counts = np.array(report.accuracy.confusion)
    shares = counts / counts.sum(1, keepdims=True)
    names = [row.name for row in report.classes]
    side = min(12.0, max(4.5, 0.5 * len(names)))
    figure = new_figure(side, side)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 25:
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                colour = "white" if share > 0.6 else "black"
                text = f"{100 * share:.3g}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set(
        title="Predicted by the judge, % of the requested class",
        xlabel="predicted",
        ylabel="requested",
    )
    rotation = 90 if max(map(len, names)) > 3 else 0
    axes.set_xticks(range(len(names)), names, rotation=rotation)
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    figure.savefig(folder / "confusion.png")
    return folder / "confusion.png"


def _draw_neighbours(report: ClassConditionalReport, folder: Path) -> Path:
    """The samples closest to a training picture above it, and the distributions of distances."""
    count, _, height, width, _ = report.pairs.shape
    figure = new_figure(9.0, 4.0)
    grid = figure.add_gridspec(2, 2)
    axes = figure.add_subplot(grid[0, :])
    gap = max(1, width // 14)
    framed = np.pad(  # a white frame around every picture
        report.pairs, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255
    )
    sheet = framed.transpose(1, 2, 0, 3, 4).reshape(2 * (height + gap), count * (width + gap), -1)
    if sheet.shape[2] == 1:
        sheet = sheet.repeat(3, 2)
    axes.imshow(sheet[:-gap, :-gap], interpolation="nearest")
    axes.set_yticks([height / 2, 1.5 * height + gap], ["sample", "training"])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("The samples closest to a training picture")
    _draw_distances(figure.add_subplot(grid[1, 0]), report.pixels, "pixels")
    _draw_distances(figure.add_subplot(grid[1, 1]), report.features, "features")
    figure.savefig(folder / "neighbours.png")
    return folder / "neighbours.png"


def _draw_distances(axes: "Axes", distances: Memorisation, space: str) -> None:
    """Both distributions; samples to the left of the grey curve are closer than unseen pictures."""
    axes.plot(distances.samples, QUANTILES, "o-", color=BLUE, ms=4, label="samples")
    axes.plot(distances.held_out, QUANTILES, "o-", color=GREY, ms=4, label="unseen real pictures")
    axes.set(
        title=f"To the nearest training picture, in {space}",
        xlabel="distance",
        ylabel="share below",
        ylim=(0, 1.02),
    )
    axes.set_xlim(left=0)
    axes.legend(frameon=False)


def draw_guidance_curve(curves: Curves, path: Path) -> Path:
    """Accuracy, KID, and precision, recall and diversity against the guidance scale."""
    figure = new_figure(11.0, 3.2)
    first, second, third = panels = _curve_panels(figure, 3)
    points = sorted(curves.guidance, key=lambda p: p.guidance)
    x = [p.guidance for p in points]
    accuracies = [p.accuracy for p in points]
    first.plot(x, [a.value for a in accuracies], "o-", color=BLUE)
    first.fill_between(x, [a.low for a in accuracies], [a.high for a in accuracies], alpha=0.2)
    first.axhline(curves.judge.value, ls=":", color="grey", label="real test pictures")
    first.set_title("conditional accuracy")
    second.plot(x, [1000 * p.kernel.value for p in points], "o-", color=RED)
    low, high = ([1000 * getattr(p.kernel, end) for p in points] for end in ("low", "high"))
    second.fill_between(x, low, high, alpha=0.2, color=RED)
    second.axhline(1000 * curves.floor.value, ls=":", color="grey", label="other real pictures")
    second.set_title("KID x 1000")
    for name, color in (("precision", BLUE), ("recall", RED), ("diversity", GREEN)):
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


def draw_sampler_curves(curves: Curves, path: Path) -> Path:
    """FID and accuracy against network calls, one line per sampler.

    All points have the same number of pictures, so their FIDs are comparable; KID of so few
    pictures is too noisy.
    """
    figure = new_figure(11.0, 4.6)
    import matplotlib

    left, right = _curve_panels(figure, 2)
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


def _curve_panels(figure: Any, count: int) -> Any:
    panels = figure.subplots(1, count)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return panels

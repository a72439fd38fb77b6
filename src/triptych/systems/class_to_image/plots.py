"""Plots of an evaluation: accuracy, distance and diversity of each class, confusion, neighbours.

matplotlib comes with the extra `evaluation` and is loaded only when something is drawn.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from triptych.scores.memorisation import QUANTILES, Memorisation
from triptych.scores.style import BLUE, GREY, RED, STYLE
from triptych.systems.class_to_image.judge import ClassConditionalReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_plots(report: ClassConditionalReport, folder: Path) -> tuple[Path, ...]:
    """Draw `classes.png`, `confusion.png` and `neighbours.png`."""
    if find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib: pip install 'triptych[evaluation]'")
    import matplotlib

    drawn = []
    with matplotlib.rc_context(STYLE):
        for draw in (_draw_classes, _draw_confusion, _draw_neighbours):
            drawn.append(draw(report, folder))
    return tuple(drawn)


def _figure(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    """A figure that belongs to no window and no global list."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]


def _draw_classes(report: ClassConditionalReport, folder: Path) -> Path:
    """Accuracy, kernel distance and diversity of each class, one panel each."""
    rows = report.classes
    x = np.arange(len(rows))
    figure, (top, middle, bottom) = _figure(min(16.0, max(7.0, 0.5 * len(rows))), 6.0, 3)
    shares = [row.accuracy for row in rows]
    top.bar(x, [s.value for s in shares], color=BLUE)
    below, above = (
        [max(0, s.value - s.low) for s in shares],
        [max(0, s.high - s.value) for s in shares],
    )
    top.errorbar(x, [s.value for s in shares], (below, above), fmt="none", color="black", lw=1)
    _level(top, report.judge.value, "judge on real pictures")
    _level(top, shares[0].chance, "chance")
    top.set(title="Conditional accuracy", ylim=(0, 1.05))
    for shift, part, colour in ((-0.2, "samples", BLUE), (0.2, "floor", GREY)):
        found = [getattr(row, part) for row in rows]
        middle.bar(
            x + shift,
            [np.nan if f is None else f.frechet.value for f in found],
            width=0.4,
            color=colour,
            label={"samples": "samples", "floor": "training against training"}[part],
        )
    middle.set(title="FID, logarithmic", yscale="log")
    middle.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    bottom.bar(x, [np.nan if r.diversity is None else r.diversity for r in rows], color=BLUE)
    _level(bottom, 1.0, "as varied as real pictures")
    bottom.set(title="Diversity", xticks=x)
    rotation = 45 if max(len(row.name) for row in rows) > 3 else 0
    bottom.set_xticklabels([row.name for row in rows], rotation=rotation)
    figure.savefig(folder / "classes.png")
    return folder / "classes.png"


def _level(axes: "Axes", height: float, name: str) -> None:
    axes.axhline(height, color=RED, lw=1, ls="--")
    axes.annotate(
        name, (1.0, height), xycoords=("axes fraction", "data"), xytext=(4, 0),
        textcoords="offset points", color=RED, va="center", fontsize=8,
    )  # fmt: skip


def _draw_confusion(report: ClassConditionalReport, folder: Path) -> Path:
    """Row: the class asked for. Shade: the share of its samples seen as each class."""
    counts = np.array(report.accuracy.confusion)
    shares = counts / counts.sum(1, keepdims=True)
    names = [row.name for row in report.classes]
    side = min(12.0, max(4.5, 0.5 * len(names)))
    figure, (axes,) = _figure(side, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 25:
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                colour = "white" if share > 0.6 else "black"
                text = f"{100 * share:.3g}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set(title="Seen by the judge, % of the class asked for", xlabel="seen", ylabel="asked for")
    rotation = 90 if max(map(len, names)) > 3 else 0
    axes.set_xticks(range(len(names)), names, rotation=rotation)
    axes.set_yticks(range(len(names)), names)
    axes.spines[:].set_visible(False)
    figure.savefig(folder / "confusion.png")
    return folder / "confusion.png"


def _draw_neighbours(report: ClassConditionalReport, folder: Path) -> Path:
    """The samples closest to a training picture above it, and the distributions of distances."""
    from matplotlib.figure import Figure

    count, _, height, width, _ = report.pairs.shape
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    axes = figure.add_subplot(grid[0, :])
    gap = max(1, width // 14)
    framed = np.pad(  # white around every picture, so that a row and a column are one array
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
    for column, (found, space) in enumerate(
        ((report.pixels, "pixels"), (report.features, "features"))
    ):
        _draw_distances(figure.add_subplot(grid[1, column]), found, space)
    figure.savefig(folder / "neighbours.png")
    return folder / "neighbours.png"


def _draw_distances(axes: "Axes", found: Memorisation, space: str) -> None:
    """Both distributions: a curve to the left of the grey one is closer than unseen pictures."""
    axes.plot(found.samples, QUANTILES, "o-", color=BLUE, ms=4, label="samples")
    axes.plot(found.held_out, QUANTILES, "o-", color=GREY, ms=4, label="unseen real pictures")
    axes.set(
        title=f"To the nearest training picture, in {space}",
        xlabel="distance",
        ylabel="share below",
        ylim=(0, 1.02),
    )
    axes.set_xlim(left=0)
    axes.legend(frameon=False)

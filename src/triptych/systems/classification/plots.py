"""Plots of zero-shot classification: which class is taken for which, and how honest confidence is.

matplotlib comes with the extra `evaluation` and is loaded only when something is drawn.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triptych.scores.style import BLUE, GREY, RED, STYLE, new_figure, require_matplotlib
from triptych.systems.classification.calibration import Calibration
from triptych.systems.classification.probe import FewShot
from triptych.systems.classification.report import ZeroShot

NAMED = 60  # classes from which on names no longer fit beside a confusion matrix
NUMBERED = 25  # classes from which on its numbers no longer fit


def draw_zero_shot(found: ZeroShot, folder: Path, few: Sequence[FewShot] = ()) -> tuple[Path, ...]:
    """Draw `confusion.png`, `reliability.png` and, where there is any, `few-shot.png`.

    Raises:
        ValueError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context(STYLE):
        drawn = [_confusion(found, folder), _reliability(found, folder)]
        if few:
            drawn.append(_few_shot(found, few, folder))
    return tuple(drawn)


def _figure(width: float, height: float, panels: int = 1) -> tuple[Any, Any]:
    """A figure and its panels, side by side."""
    figure = new_figure(width, height)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _confusion(found: ZeroShot, folder: Path) -> Path:
    """Row: the true class. Shade: the share of its pictures that is seen as each label."""
    counts = np.array(found.confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [part.name for part in found.classes]
    side = min(12.0, max(4.5, 0.45 * len(names)))
    figure, (axes,) = _figure(side, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                colour = "white" if share > 0.6 else "black"
                text = f"{100 * share:.3g}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    top1 = found.top1
    title = f"Top-1 {top1.value:.1%}, chance {top1.chance:.1%}: % of each true class"
    axes.set(title=title, xlabel="seen", ylabel="true")
    if len(names) <= NAMED:
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.spines[:].set_visible(False)
    figure.savefig(folder / "confusion.png")
    return folder / "confusion.png"


def _reliability(found: ZeroShot, folder: Path) -> Path:
    """As the model is read, and, on the held-out half, its softmax before and after the fit."""
    panels = [(f"{found.reads}, as trained", found.calibration)]
    if found.held_out:
        fitted = f"softmax / {found.held_out.temperature:.3g}, held-out half"
        panels += [("softmax, held-out half", found.held_out.before)]
        panels += [(fitted, found.held_out.after)]
    figure, each = _figure(3.6 * len(panels), 4.0, len(panels))
    for axes, (title, calibration) in zip(each, panels, strict=True):
        _diagram(axes, title, calibration)
    figure.savefig(folder / "reliability.png")
    return folder / "reliability.png"


def _diagram(axes: Any, title: str, calibration: Calibration) -> None:
    """Bars: accuracy of the answers of a confidence. The gap to the diagonal is the error."""
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--")
    most = max(part.count for part in calibration.bins)
    for part in calibration.bins:
        if part.accuracy is None or part.confidence is None:
            continue
        width = part.high - part.low
        shade = 0.25 + 0.75 * part.count / most
        axes.bar(part.low, part.accuracy, width, align="edge", color=BLUE, alpha=shade)
        axes.plot([part.confidence] * 2, [part.confidence, part.accuracy], color=RED, lw=1.5)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    axes.set_title(f"{title}\nexpected calibration error {calibration.error:.1%}", fontsize=9)


def _few_shot(found: ZeroShot, few: Sequence[FewShot], folder: Path) -> Path:
    """Accuracy against pictures a class that were learned from, beside zero-shot and chance."""
    figure, (axes,) = _figure(5.5, 4.0)
    for head, colour in zip(
        dict.fromkeys(f.head for f in few), (GREY, BLUE, "#4f9d69"), strict=False
    ):
        own = [f for f in few if f.head == head]
        axes.errorbar(
            [f.shots for f in own],
            [f.mean for f in own],
            [f.deviation for f in own],
            fmt="o-", color=colour, capsize=3, label=head,
        )  # fmt: skip
    axes.axhline(found.top1.value, color="black", lw=1, ls=":", label="zero-shot")
    axes.axhline(found.top1.chance, color=RED, lw=1, ls="--", label="chance")
    shots = sorted({f.shots for f in few})
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, [str(number) for number in shots])
    axes.set(xlabel="pictures a class", ylabel="accuracy", ylim=(0, 1.02), title="Few shots")
    axes.legend(frameon=False)
    figure.savefig(folder / "few-shot.png")
    return folder / "few-shot.png"

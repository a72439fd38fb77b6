"""Plots of a run's journal: one small panel for each metric over the steps."""

from pathlib import Path
from typing import Any

import numpy as np

from triptych.scores.style import new_figure, require_matplotlib

HIDDEN = ("step", "seconds", "skipped", "rate")
COLUMNS = 3


def draw_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw one panel for each metric; a histogram (a list) becomes a heat map over the steps.

    Raises:
        ValueError: matplotlib is missing, or there is nothing to draw.
    """
    require_matplotlib()
    import matplotlib

    names = [n for n in dict.fromkeys(k for row in rows for k in row) if n not in HIDDEN]
    if not names:
        raise ValueError(f"no metrics to draw in {path.name}")
    rows_of_panels = -(-len(names) // COLUMNS)
    style: Any = {"font.size": 8, "axes.titlesize": 9, "axes.spines.top": False}
    with matplotlib.rc_context(style | {"axes.spines.right": False}):
        figure = new_figure(9.0, 1.7 * rows_of_panels)
        panels = figure.subplots(rows_of_panels, COLUMNS, squeeze=False).ravel()
        for axes, name in zip(panels, names, strict=False):
            steps = [row["step"] for row in rows if name in row]
            values = [row[name] for row in rows if name in row]
            if isinstance(values[0], list):
                table = np.array(values, dtype=float)
                table /= np.maximum(table.sum(1, keepdims=True), 1)
                extent = (steps[0], max(steps[-1], steps[0] + 1), 0, 2)
                axes.imshow(table.T, aspect="auto", origin="lower", cmap="Blues", extent=extent)
            else:
                marker = "o" if len(values) < 20 else None
                axes.plot(steps, values, color="#3b6ea5", lw=1.2, marker=marker, ms=2.5)
            axes.set_title(name)
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        figure.savefig(path, dpi=140)

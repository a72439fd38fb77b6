"""Colours, settings and figures of matplotlib, which comes with the extra `evaluation`."""

from importlib.util import find_spec
from typing import Any

BLUE, GREY, RED = "#3b6ea5", "#9aa0a6", "#c0504d"

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
}


def require_matplotlib() -> None:
    """ValueError with the install command where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib: pip install 'triptych[evaluation]'")


def new_figure(width: float, height: float) -> Any:
    """A figure of this size in inches, outside of pyplot's global list.

    Raises:
        ValueError: matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")

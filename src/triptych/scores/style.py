"""BLUE, GREY, RED, STYLE."""

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

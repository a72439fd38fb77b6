"""Checks of the fields of a configuration. No torch."""

from typing import Any


def require_at_least(settings: Any, least: int | float, *names: str) -> None:
    """Raise ValueError for the first of these fields that is below `least`."""
    for name in names:
        if not getattr(settings, name) >= least:  # also where it is NaN
            raise ValueError(f"{name} must be at least {least}, not {getattr(settings, name)}")


def require_heads(settings: Any) -> None:
    """Raise ValueError where the width, heads and hidden width of a transformer do not fit."""
    require_at_least(settings, 1, "width", "heads", "hidden")
    if settings.width % settings.heads:
        raise ValueError(f"a width of {settings.width} does not divide into {settings.heads} heads")


def require_widths(settings: Any, *names: str) -> None:
    """Raise ValueError for the first of these fields that is not a tuple of positive numbers."""
    for name in names:
        widths = getattr(settings, name)
        if not widths or min(widths) < 1:
            raise ValueError(f"{name} must be positive numbers, at least one, not {widths}")

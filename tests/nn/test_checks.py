"""Fields that are out of range are named with their value."""

from types import SimpleNamespace

import pytest

from triptych.nn.checks import require_at_least, require_widths


def test_the_least_value_is_allowed_and_the_first_field_below_it_is_named():
    fields = SimpleNamespace(layers=2, heads=2, depth=1, share=float("nan"))
    require_at_least(fields, 2, "layers", "heads")
    with pytest.raises(ValueError, match="depth must be at least 2, not 1"):
        require_at_least(fields, 2, "layers", "depth", "share")
    with pytest.raises(ValueError, match="share must be at least 0, not nan"):
        require_at_least(fields, 0, "share")


def test_widths_are_positive_and_there_is_one():
    fields = SimpleNamespace(fine=(1, 8), zero=(8, 0, 4), none=())
    require_widths(fields, "fine")
    for name in ("zero", "none"):
        with pytest.raises(ValueError, match=f"{name} must be positive numbers, at least one"):
            require_widths(fields, "fine", name)

"""The ranges that every request for pictures is checked for: both ends are allowed."""

from types import SimpleNamespace

import pytest

from triptych.diffusion.settings import check_sampling, check_seed

FINE = {
    "n": 1, "seed": 0, "guidance": 1.0, "rescale": 0.0, "steps": 20, "sampler": "", "spacing": "",
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "allowed", "refused"),
    [
        ("n", (1, 100_000), (0, -1, 100_001)),
        ("seed", (None, 0, 2**63 - 1), (-1, 2**63)),
        ("guidance", (None, 0, 0.5, 100), (-0.1, 100.1, float("nan"))),
        ("rescale", (0, 0.7, 1), (-0.1, 1.1, float("nan"))),
        ("steps", (0, 1, 1000), (-1, 1001)),
        ("sampler", ("", "euler", "DPM++ 2M Karras"), ("eiler",)),
        ("spacing", ("", "karras", "lcm"), ("kerras", "Karras")),
    ],
)
def test_both_ends_of_a_range_are_allowed_and_what_is_beyond_is_named(field, allowed, refused):
    for value in allowed:
        check_sampling(SimpleNamespace(**FINE | {field: value}))
    for value in refused:
        with pytest.raises(ValueError, match=rf"\b{field}\b.*{value}"):
            check_sampling(SimpleNamespace(**FINE | {field: value}))


def test_a_seed_is_called_by_its_field():
    check_seed("variation_seed", 2**63 - 1)
    with pytest.raises(ValueError, match="variation_seed must be 0 to"):
        check_seed("variation_seed", 2**63)

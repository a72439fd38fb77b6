"""The ranges of the training loop's settings, and what a resumed run may change."""

import math
from dataclasses import dataclass, fields, replace

import pytest

from triptych.train.settings import MAY_CHANGE, Training, check_numbers


@pytest.mark.parametrize(
    ("field", "least"),
    [
        ("steps", 1), ("batch_size", 1), ("accumulate", 1), ("size", 0), ("warmup", 0),
        ("ema_halflife", 0), ("workers", 0), ("log_every", 1), ("sample_every", 0),
        ("evaluate_every", 0), ("save_every", 1), ("keep", 2), ("rate_floor", 0),
    ],
)  # fmt: skip
def test_the_least_value_is_allowed_and_less_is_named(field, least):
    assert getattr(replace(Training(), **{field: least}), field) == least
    with pytest.raises(ValueError, match=rf"{field} .*not -?\d"):
        Training(**{field: least - 1})


def test_the_rate_s_floor_is_a_share():
    assert Training(rate_floor=1).rate_floor == 1
    for share, says in ((1.1, "is a share"), (float("nan"), "must be a finite number")):
        with pytest.raises(ValueError, match=f"rate_floor {says}"):
            Training(rate_floor=share)


@dataclass(frozen=True)
class Rates:
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    max_norm: float | None = 1.0
    beta1: float = 0.0
    dropout: float = 0.5
    name: str = "any"


@pytest.mark.parametrize(
    ("field", "allowed", "refused"),
    [
        ("learning_rate", (0.0, 1.0), (-1e-9, math.nan, math.inf)),
        ("weight_decay", (0.0, 0.1), (-0.1, -math.inf)),
        ("max_norm", (1e-9, None), (0.0, -1.0)),
        ("beta1", (0.0, 0.999), (1.0, -0.1)),
        ("dropout", (0.0, 0.999), (1.0, -0.1)),
    ],
)
def test_numbers_that_recipes_share_have_their_ranges(field, allowed, refused):
    for value in allowed:
        check_numbers(Rates(**{field: value}))
    for value in refused:
        with pytest.raises(ValueError, match=f"{field} must be .*not {value:g}"):
            check_numbers(Rates(**{field: value}))


def test_a_resumed_run_may_not_change_what_made_the_steps_already_done():
    kept = {field.name for field in fields(Training)} - set(MAY_CHANGE)
    assert kept == {
        "data", "size", "batch_size", "accumulate", "seed", "schedule", "warmup", "rate_floor",
        "ema_halflife", "precision",
    }  # fmt: skip

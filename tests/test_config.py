"""Configurations survive JSON, and refuse what they do not know."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.config import from_json, to_json
from triptych.train.recipes.presets import PRESETS
from triptych.train.recipes.requests import TrainCvae, Training


@pytest.mark.parametrize("request_", [p for group in PRESETS.values() for p in group.values()])
def test_every_preset_survives_json(request_) -> None:
    assert from_json(type(request_), to_json(request_)) == request_


@given(st.integers(1, 10**9), st.floats(0, 1), st.lists(st.integers(1, 999), max_size=5))
def test_values_survive_json(steps: int, floor: float, widths: list[int]) -> None:
    request = TrainCvae(Training(steps=steps, rate_floor=floor), widths=tuple(widths))
    assert from_json(TrainCvae, to_json(request)) == request


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"latents": 3}, "no field 'latents'. Did you mean 'latent'"),
        ({"latent": 3.5}, "latent must be int"),
        ({"latent": True}, "latent must be int"),
        ({"learned_prior": 1}, "learned_prior must be bool"),
        ({"network": "rnn"}, "one of 'mlp', 'convolutional'"),
        ({"widths": 3}, "widths must be a list"),
        ({"widths": [3, "4"]}, r"widths\[1\] must be int"),
        ({"training": {"steps": 0}}, "steps must be at least 1"),
        ({"training": {"step": 5}}, "training has no field 'step'"),
        ([], "must be an object"),
    ],
)
def test_anything_else_is_refused_by_place(data, words) -> None:
    with pytest.raises(ValueError, match=words):
        from_json(TrainCvae, data)

"""Pictures of prompts, as recipes and `evaluate` draw them."""

from dataclasses import replace

import numpy as np
import pytest

from tests.systems.stable_diffusion.tiny_stable_diffusion import config, model, tokenizer
from triptych.data.order.batches import take
from triptych.data.scene_source import SceneSource
from triptych.scenes.reader import read
from triptych.systems.stable_diffusion.draw_prompts import draw_prompts
from triptych.systems.stable_diffusion.training import held_out_prompts as prompts
from triptych.vision.images import to_pictures


def test_a_sampler_that_is_given_draws_as_if_it_were_the_models_own() -> None:
    texts = ["a red cat", "a blue dog on a mat"]
    own = config()
    other = replace(own, sampling=replace(own.sampling, sampler="dpmpp_2m_sde", steps=3))
    given = draw_prompts(model(own), [tokenizer()], texts, sampler="dpmpp_2m_sde", steps=3)
    assert np.array_equal(given, draw_prompts(model(other), [tokenizer()], texts))
    assert not np.array_equal(given, draw_prompts(model(own), [tokenizer()], texts))
    spaced = draw_prompts(
        model(own), [tokenizer()], texts, sampler="dpmpp_2m_sde", steps=3, spacing="karras"
    )
    assert not np.array_equal(given, spaced)


def test_the_journal_says_how_far_half_of_the_objects_are_at_most(monkeypatch) -> None:
    for source, objects in (("scenes-one", 1), ("scenes-two", 2)):
        true = take(SceneSource(source, "test", 64), range(12))
        pictures, said = to_pictures(true["image"]), list(true["caption"])
        monkeypatch.setattr(prompts, "draw_prompts", lambda *_, shown=pictures, **__: shown)
        row = prompts.judge_prompts(model(config()), [tokenizer()], said)
        distances = [d for picture in pictures for d in read(picture).distances]
        assert len(distances) == 12 * objects
        assert row["whole"] == 1 and row["nearest"] == pytest.approx(np.median(distances))

"""Pictures of prompts, as recipes and `evaluate` draw them."""

from dataclasses import replace

import numpy as np

from tests.pipelines.tiny_stable_diffusion import config, model, tokenizer
from triptych.train.prompts import drawn


def test_a_sampler_that_is_given_draws_as_if_it_were_the_models_own() -> None:
    texts = ["a red cat", "a blue dog on a mat"]
    own = config()
    other = replace(own, sampling=replace(own.sampling, sampler="dpmpp_2m_sde", steps=3))
    given = drawn(model(own), [tokenizer()], texts, sampler="dpmpp_2m_sde", steps=3)
    assert np.array_equal(given, drawn(model(other), [tokenizer()], texts))
    assert not np.array_equal(given, drawn(model(own), [tokenizer()], texts))
    spaced = drawn(
        model(own), [tokenizer()], texts, sampler="dpmpp_2m_sde", steps=3, spacing="karras"
    )
    assert not np.array_equal(given, spaced)

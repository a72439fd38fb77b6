"""Whole pictures against diffusers' pipelines in float32: the same weights, seeds and settings."""

from functools import cache

import numpy as np
import pytest
import torch

from tests.parity.pipelines import SCHEDULERS, pair, photograph, pictures, pipeline, psnr
from triptych.pipelines import text_to_image
from triptych.requests import TextToImage

pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own
ENOUGH = 55.0  # dB
SEEDS = (7, 8)
made = cache(pair)


def generators():
    return [torch.Generator().manual_seed(seed) for seed in SEEDS]


def ours(loaded, **fields):
    request = TextToImage(
        n=len(SEEDS), seed=SEEDS[0], precision="float32",
        **{"prompt": "a red cat", "negative": "a dog", "steps": 8} | fields,
    )  # fmt: skip
    *_, last = text_to_image.run(request, loaded)
    return last.pictures


def theirs(parts, task, sampler, **more):
    count = len(SEEDS)
    arguments = {
        "prompt": ["a red cat"] * count, "negative_prompt": ["a dog"] * count,
        "num_inference_steps": 8, "guidance_scale": 7.5, "generator": generators(),
        "output_type": "np",
    }  # fmt: skip
    return pictures(pipeline(parts, task, sampler)(**arguments | more))


@pytest.mark.parametrize("form", ["sd", "xl"])
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_text_to_image(form, sampler):
    parts, loaded = made(form)
    expected = theirs(parts, "", sampler, height=64, width=88)
    assert expected.std() > 20
    assert psnr(ours(loaded, sampler=sampler, size="88x64"), expected) >= ENOUGH

"""Karlo's folders: whole pictures against diffusers' pipelines, with the same generators."""

import dataclasses
from functools import cache

import pytest
import torch

import triptych
from tests.parity import karlo
from tests.parity.pipelines import photograph, pictures, psnr
from triptych.requests import UnclipPictures
from triptych.running import run

pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own
ENOUGH = 50.0  # dB
SEEDS = (7, 8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Both forms, as folders, each with the pipeline that wrote it and our model of it."""

    @cache
    def make(form):
        folder = tmp_path_factory.mktemp(form)
        pipe = getattr(karlo, form)(folder)
        pipe.save_pretrained(folder / "model")
        return pipe, triptych.load(folder / "model")

    return make


def ours(loaded, **fields):
    request = UnclipPictures(n=len(SEEDS), seed=SEEDS[0], precision="float32", **fields)
    *_, last = run(request, loaded)
    return last.pictures


STEPS = {"decoder_num_inference_steps": 6, "super_res_num_inference_steps": 4, "output_type": "np"}


@pytest.mark.parametrize(("prior", "decoder"), [(4.0, 8.0), (1.0, 1.0), (1.0, 3.0)])
def test_pictures_of_a_prompt(folders, prior, decoder):
    pipe, loaded = folders("texts")
    expected = pipe(
        ["a red circle"] * 2, prior_num_inference_steps=5, generator=karlo.generators(*SEEDS),
        prior_guidance_scale=prior, decoder_guidance_scale=decoder, **STEPS,
    )  # fmt: skip
    mine = ours(
        loaded, prompt="a red circle", prior_steps=5, steps=6, upsampler_steps=4,
        prior_guidance=prior, guidance=decoder,
    )  # fmt: skip
    expected = pictures(expected)
    assert expected.std() > 20
    assert psnr(mine, expected) >= ENOUGH


@pytest.mark.parametrize("guidance", [8.0, 1.0])
def test_variations_of_a_picture(folders, guidance):
    pipe, loaded = folders("variations")
    photo = photograph(30, 40)
    expected = pictures(
        pipe(
            [photo] * 2,
            generator=karlo.generators(*SEEDS),
            decoder_guidance_scale=guidance,
            **STEPS,
        )
    )
    mine = ours(
        loaded, what="variations", image=photo, steps=6, upsampler_steps=4, guidance=guidance
    )
    assert expected.std() > 20
    assert psnr(mine, expected) >= ENOUGH


def test_the_bound_of_the_prior_is_what_the_folder_says(folders):
    """And it matters: embeddings drawn with another bound are others."""
    _, loaded = folders("texts")
    assert loaded.config.prior.limit == 5.0
    arguments = {"prompt": "a red circle", "prior_steps": 5, "steps": 1, "upsampler_steps": 1}
    at_five = ours(loaded, **arguments)
    wide = dataclasses.replace(loaded.config.prior, limit=0.5)
    loaded.model.prior.config, kept = wide, loaded.model.prior.config
    try:
        assert psnr(ours(loaded, **arguments), at_five) < 40
    finally:
        loaded.model.prior.config = kept


def test_a_prompt_needs_a_prior_and_a_picture_an_image_tower(folders):
    with pytest.raises(ValueError, match="no prior"):
        ours(folders("variations")[1], prompt="a red circle")
    with pytest.raises(ValueError, match="no image tower"):
        ours(folders("texts")[1], what="variations", image=photograph(30, 40))


def test_the_text_embedding_may_replace_the_prior(folders):
    """The paper's ablation: no prior, the decoder given the embedding of the text."""
    pipe, loaded = folders("texts")
    text = pipe.text_encoder(**pipe.tokenizer("a red circle", return_tensors="pt")).text_embeds
    drawn = ours(loaded, prompt="a red circle", prior="none", steps=6, upsampler_steps=4)
    tokens = pipe.tokenizer(
        "a red circle", padding="max_length", max_length=karlo.LENGTH, return_tensors="pt"
    )
    encoded = loaded.model.encode_texts(tokens.input_ids, tokens.attention_mask.bool())
    torch.testing.assert_close(encoded["text"], text, atol=1e-5, rtol=1e-5)
    assert psnr(drawn, ours(loaded, prompt="a red circle", steps=6, upsampler_steps=4)) < 40

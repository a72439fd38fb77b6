"""Whole pictures against diffusers' pipelines in float32: the same weights, seeds and settings.

Where a pipeline of the reference is given one picture for several generators it draws what the
autoencoder is unsure of once, from the first of them; here every picture has its own, so the
reference is given the picture as many times.
"""

import inspect
from copy import copy
from dataclasses import replace
from functools import cache
from itertools import product
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from tests.parity.pipelines import SCHEDULER, SCHEDULERS, pair, photograph, pictures, pipeline, psnr
from tests.systems.stable_diffusion.tiny_stable_diffusion import UNET, config, loaded
from triptych.diffusion.denoiser import parameterisation
from triptych.requests import TextToImage
from triptych.running import run
from triptych.systems.stable_diffusion.draw_prompts import draw_prompts
from triptych.systems.stable_diffusion.inputs.encode_prompts import encode_prompts
from triptych.systems.stable_diffusion.published.folder.schedulers import from_diffusers

pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own
ENOUGH = 55.0  # dB
SEEDS = (7, 8)
made = cache(pair)


def ours(loaded, **fields):
    given = {"prompt": "a red cat", "negative": "a dog", "steps": 8} | fields
    request = TextToImage(n=len(SEEDS), seed=SEEDS[0], precision="float32", **given)
    *_, last = run(request, loaded)
    return last.pictures


def theirs(pipe, **more):
    count = len(SEEDS)
    arguments = {
        "prompt": ["a red cat"] * count, "negative_prompt": ["a dog"] * count,
        "num_inference_steps": 8, "guidance_scale": 7.5, "output_type": "np",
        "generator": [torch.Generator().manual_seed(seed) for seed in SEEDS],
    }  # fmt: skip
    return pictures(pipe(**arguments | more))


def close(mine, expected):
    assert expected.std() > 20
    assert psnr(mine, expected) >= ENOUGH


@pytest.mark.parametrize("form", ["sd", "xl"])
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_text_to_image(form, sampler):
    parts, loaded = made(form)
    expected = theirs(pipeline(parts, "", sampler), height=64, width=88)
    close(ours(loaded, sampler=sampler, size="88x64"), expected)


ZERO = {
    "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}  # fmt: skip
CONFIGURATIONS = {  # a scheduler of the reference, and what a publisher may say of it
    "unipc of zero terminal SNR": ("UniPCMultistepScheduler", ZERO),
    "dpmpp_2m of zero terminal SNR": ("DPMSolverMultistepScheduler", ZERO),
    "tcd": ("TCDScheduler", {}),
    "lcm that thresholds": ("LCMScheduler", {"thresholding": True, "sample_max_value": 2.0}),
    "ddim that clips": ("DDIMScheduler", {"clip_sample": True, "clip_sample_range": 2.0}),
    "euler between leading times": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "lu to the least sigma": (
        "DPMSolverMultistepScheduler",
        {"use_lu_lambdas": True, "final_sigmas_type": "sigma_min", "lower_order_final": False},
    ),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_publishers_scheduler(case):
    """Read from its configuration, which then gives the request's sampler and spacing."""
    name, settings = CONFIGURATIONS[case]
    parts, loaded = made("sd")
    pipe = pipeline(parts, "", "euler")
    pipe.scheduler = getattr(diffusers, name)(**SCHEDULER | settings)
    read = from_diffusers({"_class_name": name} | SCHEDULER | settings)
    model = copy(loaded.model)
    sampling = replace(read.sampling, height=64, width=64)
    model.config = replace(model.config, schedule=read.schedule, sampling=sampling)
    model.schedule = read.schedule.schedule()
    model.parameterisation = parameterisation(read.schedule.predicts, model.schedule)
    expected = theirs(pipe, height=64, width=64)
    close(ours(replace(loaded, model=model), size="64x64"), expected)


@pytest.mark.parametrize("form", ["sd", "xl"])
@pytest.mark.parametrize("negative", ["", "a dog"])
def test_empty_prompts_and_rescaled_guidance(form, negative):
    """SDXL is told zeros in place of an empty negative prompt."""
    parts, loaded = made(form)
    more = {"negative_prompt": [negative] * 2} if negative else {"negative_prompt": None}
    pipe = pipeline(parts, "", "euler")
    expected = theirs(pipe, height=64, width=64, guidance_rescale=0.7, guidance_scale=4.0, **more)
    close(ours(loaded, sampler="euler", guidance=4.0, rescale=0.7, negative=negative), expected)


@pytest.mark.parametrize("form", ["sd", "xl"])
def test_lists_of_prompts_and_latents_in_and_out(form):
    """Latents are given as standard normal noise; those that come back are scaled."""
    parts, loaded = made(form)
    texts = {"prompt": ["a red cat", "a blue dog"], "negative": ["a dog", "a mat"]}
    noise = torch.randn(2, 4, 8, 11, generator=torch.Generator().manual_seed(5))
    pipe = pipeline(parts, "", "euler")  # multiplies noise by more than one
    more = {"prompt": texts["prompt"], "negative_prompt": texts["negative"], "latents": noise}
    expected = theirs(pipe, height=64, width=88, **more)
    request = TextToImage(**texts, latents=noise, steps=8, sampler="euler", precision="float32")
    *_, last = run(request, loaded)
    close(last.pictures, expected)
    peer = pipe(
        **more, height=64, width=88, num_inference_steps=8, guidance_scale=7.5, output_type="latent"
    )
    torch.testing.assert_close(last.latents, peer.images, atol=0.01, rtol=0.01)


def test_clip_skip():
    """Theirs counts what is skipped, ours which block from the end is read. Theirs reads a negative
    prompt by the last block all the same, so this is without one.
    """
    parts, loaded = made("sd")
    tower = parts.towers[0]  # which transformers 5 has built without the layer that is asked for
    object.__setattr__(
        tower, "text_model", SimpleNamespace(final_layer_norm=tower.final_layer_norm)
    )
    alone = {"height": 64, "width": 64, "guidance_scale": 1.0}
    expected = theirs(pipeline(parts, "", "ddim"), clip_skip=1, **alone)
    assert psnr(theirs(pipeline(parts, "", "ddim"), **alone), expected) < ENOUGH
    close(ours(loaded, sampler="ddim", clip_skip=2, guidance=1), expected)


def once_a_sampler(*choices):
    """Every combination with every sampler, of which one for each sampler is not slow: in turn."""
    combinations = list(product(*choices))
    return [
        pytest.param(
            sampler,
            *chosen,
            marks=() if turn == (place * 3 + 1) % len(combinations) else pytest.mark.slow,
        )
        for place, sampler in enumerate(SCHEDULERS)
        for turn, chosen in enumerate(combinations)
    ]


@pytest.mark.parametrize(("sampler", "form", "strength"), once_a_sampler(("sd", "xl"), (1.0, 0.6)))
def test_image_to_image(form, sampler, strength, tmp_path, monkeypatch):
    parts, loaded = made(form)
    photograph(64, 88).save(tmp_path / "start.png")
    pipe = pipeline(parts, "Img2Img", sampler)
    follow_levels(pipe, sampler, monkeypatch)
    expected = theirs(pipe, image=[photograph(64, 88)] * len(SEEDS), strength=strength)
    mine = ours(loaded, sampler=sampler, image=str(tmp_path / "start.png"), strength=strength)
    close(mine, expected)


@pytest.mark.parametrize(
    ("sampler", "form", "channels", "strength"),
    once_a_sampler(("sd", "xl"), (4, 9), (1.0, 0.6)),
)
def test_inpainting(form, sampler, channels, strength, tmp_path, monkeypatch):
    parts, loaded = made(form, channels)
    picture = photograph(64, 88)
    painted = np.zeros((64, 88), bool)
    painted[16:48, 20:70] = True
    mask = Image.fromarray(painted.astype(np.uint8) * 255)
    picture.save(tmp_path / "start.png")
    mask.save(tmp_path / "mask.png")
    pipe = pipeline(parts, "Inpaint", sampler)
    follow_levels(pipe, sampler, monkeypatch)
    expected = theirs(
        pipe, image=[picture] * len(SEEDS), mask_image=[mask] * len(SEEDS), strength=strength,
        height=64, width=88,
    )  # fmt: skip
    files = {"image": str(tmp_path / "start.png"), "mask": str(tmp_path / "mask.png")}
    mine = ours(loaded, sampler=sampler, strength=strength, **files)
    close(mine[:, painted], expected[:, painted])
    assert (mine[:, ~painted] == np.asarray(picture)[~painted]).all()


@pytest.mark.parametrize("refiner", [False, True])
def test_sizes_and_aesthetic_scores(refiner):
    """SDXL reads six sizes; its refiner five, the last an aesthetic score, not a height."""
    count = 5 if refiner else 6
    plain = config()
    text = replace(plain.text[0], dim=12)
    unet = replace(UNET, added=12 + count * 8, size_waves=8)
    model = loaded(replace(plain, text=(text,), unet=unet))
    network = SimpleNamespace(
        config=SimpleNamespace(addition_time_embed_dim=8),
        add_embedding=SimpleNamespace(linear_1=SimpleNamespace(in_features=12 + count * 8)),
    )
    pipe = SimpleNamespace(config=SimpleNamespace(requires_aesthetics_score=refiner), unet=network)
    kind = diffusers.StableDiffusionXLImg2ImgPipeline
    call = inspect.signature(kind.__call__).parameters
    size, corner = (64, 64), (0, 0)
    expected = kind._get_add_time_ids(
        pipe, size, corner, size,
        call["aesthetic_score"].default, call["negative_aesthetic_score"].default,
        size, corner, size, torch.float32, 12,
    )  # fmt: skip
    encoded = encode_prompts(model.model, model.tokenizers, "a red cat", "a dog", size)
    for cond, ids in zip((encoded.cond, encoded.uncond), expected, strict=True):
        assert torch.equal(cond["sizes"], ids)
    calls = []
    predict = model.model.predict
    model.model.predict = lambda x, time, cond: (
        calls.append(cond["sizes"]) or predict(x, time, cond)
    )
    draw_prompts(model.model, model.tokenizers, ["a red cat"], steps=1)
    seen = {tuple(row) for sizes in calls for row in sizes.tolist()}
    assert seen == {tuple(ids[0].tolist()) for ids in expected}


def follow_levels(pipe, sampler, monkeypatch):
    """PNDM's list of times has its second one twice, for its first step takes two calls. Starting
    later, the reference's pipelines cut that list as if it did not: the two calls then are at
    different times, and the network is told of one level less noise than there is from there on.
    Ours begins a way like any other, and so does the reference here.
    """
    if sampler != "plms":
        return

    def get_timesteps(num_inference_steps, strength, device, **_):
        left = min(int(num_inference_steps * strength), num_inference_steps)
        own = pipe.scheduler.timesteps
        once = torch.cat([own[:1], own[2:]])[num_inference_steps - left :]
        return torch.cat([once[:2], once[1:]]), left

    monkeypatch.setattr(pipe, "get_timesteps", get_timesteps)

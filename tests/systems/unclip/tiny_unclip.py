"""A DALL-E 2 of some thousand weights, alone or in a run folder."""

from dataclasses import replace
from pathlib import Path

import torch

from tests.systems.stable_diffusion.tiny_stable_diffusion import LENGTH, tokenizer
from triptych.fields import to_json
from triptych.systems.clip.model import TextConfig, VitConfig
from triptych.systems.unclip.autoregressive import AutoregressiveConfig
from triptych.systems.unclip.decoder import DecoderConfig
from triptych.systems.unclip.model import Unclip, UnclipConfig
from triptych.systems.unclip.prior import PriorConfig
from triptych.systems.unclip.upsampler import UpsamplerConfig
from triptych.train.checkpoint import export
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.loaded import Card, Loaded

DIM = 8
PRIOR = PriorConfig(DIM, 16, LENGTH, 16, 2, 2, 32, steps=3, candidates=2)
CODES = AutoregressiveConfig(DIM, 16, LENGTH, 4, 8, 4, 16, 2, 2, 32)
UNET = {
    "widths": (8, 16), "blocks": 1, "time_width": 32, "groups": 4, "conditioning": "scale_shift",
    "resampling": "convolution",
}  # fmt: skip
DECODER = DecoderConfig(
    DIM, 16, 8, tokens=2, context=12, attention=(1,), head_width=8, steps=3, **UNET
)
UPSAMPLER = UpsamplerConfig(8, 16, steps=2, **UNET)


def config(**changes) -> UnclipConfig:
    words = tokenizer()
    text = TextConfig(words.vocabulary, LENGTH, 16, 2, 2, 32, end=words.config.end)
    vit = VitConfig(8, 4, 16, 1, 2, 32)
    whole = UnclipConfig(DIM, text, vit, True, PRIOR, CODES, 4, DECODER, (UPSAMPLER,))
    return replace(whole, **changes)


def model(settings: UnclipConfig | None = None) -> Unclip:
    """Random weights, none of them near zero, so that everything has an effect."""
    torch.manual_seed(0)
    made = Unclip(settings or config())
    for name, parameter in made.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        told = "decoder.image_proj" in name or "decoder.token_proj" in name
        torch.nn.init.normal_(parameter, centre, 1.0 if told else 0.15)
    assert made.components is not None
    made.components.directions.copy_(torch.linalg.qr(torch.randn(DIM, DIM))[0][:4])
    return made.eval().requires_grad_(False)


def card(settings: UnclipConfig) -> Card:
    transform = ImageTransform(8, HALF, HALF)
    return Card("unclip", to_json(settings), tokenizer=tokenizer().config, transform=transform)


def loaded(settings: UnclipConfig | None = None) -> Loaded:
    made, words = model(settings), tokenizer()
    described = card(made.config)
    return Loaded("tiny", described, made.config, made, words, described.transform)


def saved(folder: Path, settings: UnclipConfig | None = None) -> Path:
    """The same as a run folder."""
    folder.mkdir(parents=True)
    made = model(settings)
    tokenizer().save(folder)
    export(folder, made, to_json(card(made.config)))
    return folder

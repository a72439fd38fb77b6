"""A text-to-image model of some thousand weights, alone or in a run folder."""

from dataclasses import replace
from pathlib import Path

import torch

from triptych.fields import to_json
from triptych.systems.autoencoder.model import AutoencoderConfig
from triptych.systems.clip.model import TextConfig, TextEncoderConfig
from triptych.systems.stable_diffusion.model import (
    SamplingConfig,
    StableDiffusion,
    StableDiffusionConfig,
)
from triptych.systems.stable_diffusion.unet import LatentUNetConfig
from triptych.text.tokenizer import Tokenizer, train_tokenizer
from triptych.train.checkpoint import export
from triptych.weights.loaded import Card, Loaded

LENGTH = 12
CODER = AutoencoderConfig(widths=(8, 8, 8, 8), blocks=1, groups=4)
UNET = LatentUNetConfig(
    widths=(16, 16), blocks=1, transformers=(1, 0), heads=(2, 2), context=16, groups=4
)


def tokenizer() -> Tokenizer:
    return train_tokenizer(["a red cat on a mat, a blue dog"] * 4, 530, LENGTH)


def config(**changes) -> StableDiffusionConfig:
    """The form of SD 1.x at 64 x 64 pixels."""
    words = tokenizer()
    assert words.config.end is not None
    text = TextConfig(words.vocabulary, LENGTH, 16, 3, 2, 32, end=words.config.end)
    sampling = SamplingConfig("euler", 4, guidance=4.0, height=64, width=64)
    whole = StableDiffusionConfig(
        UNET, (TextEncoderConfig(text),), sampling=sampling, autoencoder=CODER
    )
    return replace(whole, **changes)


def model(settings: StableDiffusionConfig | None = None) -> StableDiffusion:
    """Random weights, none of them near zero, so that everything has an effect."""
    torch.manual_seed(0)
    made = StableDiffusion(settings or config())
    for name, parameter in made.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.15)
        elif "norm" in name:
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.2, 0.1)
    return made.eval().requires_grad_(False)


def loaded(settings: StableDiffusionConfig | None = None) -> Loaded:
    made, words = model(settings), tokenizer()
    card = Card("stable-diffusion", to_json(made.config), tokenizers=(words.config,))
    return Loaded("tiny", card, made.config, made, tokenizers=(words,) * len(made.text))


def saved(folder: Path, settings: StableDiffusionConfig | None = None) -> Path:
    """A run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found = loaded(settings)
    export(folder, found.model, to_json(found.card))
    found.tokenizers[0].save(folder)
    return folder

"""Tiny pipelines of diffusers and our models with the same random weights."""

from dataclasses import replace
from types import SimpleNamespace

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.parity.reference import randomised
from triptych.systems.autoencoder import published as published_autoencoder
from triptych.systems.stable_diffusion.model import (
    SamplingConfig,
    StableDiffusion,
    StableDiffusionConfig,
)
from triptych.systems.stable_diffusion.published import text_encoder
from triptych.systems.stable_diffusion.published import unet as published_unet
from triptych.text.tokenizer import Tokenizer, train_tokenizer
from triptych.weights.keymap import convert, fill
from triptych.weights.loaded import Card, Loaded

LENGTH = 16
UNET = {
    "sample_size": 8, "block_out_channels": [16, 32], "layers_per_block": 1,
    "attention_head_dim": 8, "cross_attention_dim": 24, "norm_num_groups": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
XL = {
    "cross_attention_dim": 40, "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 12 + 6 * 8,
}  # fmt: skip
VAE = {
    "block_out_channels": [8, 16, 16, 16], "layers_per_block": 1, "norm_num_groups": 8,
    "latent_channels": 4, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "sample_size": 64,
}  # fmt: skip
TEXT = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
    "max_position_embeddings": LENGTH, "hidden_act": "quick_gelu", "projection_dim": 12,
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading", "steps_offset": 1,
}  # fmt: skip
SCHEDULERS = {  # our sampler: the reference's scheduler, and what Stable Diffusion configures of it
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
}


class Vocabulary:
    """Our tokenizer as their pipelines call one; that both read alike is proven elsewhere."""

    def __init__(self, tokenizer: Tokenizer):
        self.own, self.model_max_length = tokenizer, tokenizer.config.length
        self.added_tokens_encoder: dict[str, int] = {}

    def __call__(self, texts, **_):
        texts = [texts] if isinstance(texts, str) else texts
        tokens = self.own.encode(texts).tokens
        return SimpleNamespace(input_ids=tokens, attention_mask=torch.ones_like(tokens))

    def tokenize(self, text):
        return []

    def batch_decode(self, tokens):
        return self.own.decode(tokens)


def tokenizer() -> Tokenizer:
    return train_tokenizer(["a red cat on a mat, a blue dog"] * 4, 530, LENGTH)


def pair(form: str = "sd", channels: int = 4, empty_is_zeros: bool = True):
    """The reference's modules, and ours with their weights.

    `form` is "sd" (one tower, all its layers) or "xl" (two, the last but one, a pooled vector).
    """
    words = tokenizer()
    xl = form == "xl"
    unet = randomised(
        UNet2DConditionModel.from_config(UNET | (XL if xl else {}) | {"in_channels": channels}),
        std=0.08,
    )
    vae = randomised(AutoencoderKL.from_config(VAE), std=0.1)
    common = TEXT | {
        "vocab_size": words.vocabulary, "bos_token_id": words.config.start,
        "eos_token_id": words.config.end, "pad_token_id": words.config.pad,
    }  # fmt: skip
    kinds = [(CLIPTextModel, common)]
    if xl:
        kinds.append((CLIPTextModelWithProjection, common | {"hidden_size": 16}))
    towers = [randomised(kind(CLIPTextConfig(**settings))) for kind, settings in kinds]
    texts = tuple(
        text_encoder.from_transformers(t.config.to_dict() | {"architectures": [type(t).__name__]})
        for t in towers
    )
    if xl:
        texts = tuple(replace(text, skip=1, norm=False) for text in texts)
    config = StableDiffusionConfig(
        published_unet.from_diffusers(dict(unet.config)),
        texts,
        sampling=SamplingConfig(height=64, width=64, zeros_for_empty=xl and empty_is_zeros),
        autoencoder=published_autoencoder.from_diffusers(dict(vae.config)),
    )
    ours = StableDiffusion(config).eval().requires_grad_(False)
    fill(ours.unet, convert(unet.state_dict(), published_unet.diffusers_rules(config.unet)))
    rules = published_autoencoder.diffusers_rules(vae.state_dict())
    fill(ours.autoencoder, convert(vae.state_dict(), rules))
    for tower, text, peer in zip(ours.text, texts, towers, strict=True):
        state = peer.state_dict()
        fill(tower, convert(state, text_encoder.transformers_rules(text, state)))
    card = Card("stable-diffusion", {}, tokenizers=(words.config,) * len(towers))
    loaded = Loaded("tiny", card, config, ours, tokenizers=(words,) * len(towers))
    return SimpleNamespace(unet=unet, vae=vae, towers=towers, words=words, form=form), loaded


def pipeline(parts, task: str, sampler: str):
    """The reference's pipeline of a task: "", "Img2Img" or "Inpaint"."""
    name, settings = SCHEDULERS[sampler]
    scheduler = getattr(diffusers, name)(**SCHEDULER | settings)
    modules = {
        "vae": parts.vae, "unet": parts.unet, "scheduler": scheduler,
        "text_encoder": parts.towers[0], "tokenizer": Vocabulary(parts.words),
    }  # fmt: skip
    if parts.form == "xl":
        kind = getattr(diffusers, f"StableDiffusionXL{task}Pipeline")
        modules |= {
            "text_encoder_2": parts.towers[1], "tokenizer_2": Vocabulary(parts.words),
            "add_watermarker": False,
        }  # fmt: skip
    else:
        kind = getattr(diffusers, f"StableDiffusion{task}Pipeline")
        modules |= {
            "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False,
        }  # fmt: skip
    made = kind(**modules)
    made.set_progress_bar_config(disable=True)
    return made


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Decibels of bytes; 100 for the same."""
    error = np.square(ours.astype(float) - theirs.astype(float)).mean()
    return 100.0 if error == 0 else float(10 * np.log10(255**2 / error))


def pictures(result) -> np.ndarray:
    """Of a pipeline's pictures in [0, 1], as `to_pictures` rounds them."""
    return (np.stack(result.images) * 255).round().astype(np.uint8)


def photograph(height: int, width: int) -> Image.Image:
    """Something smooth with an edge."""
    y, x = np.mgrid[:height, :width]
    channels = [np.sin(x / 9) * 100 + 128, np.cos(y / 7) * 90 + 120, (x > y) * 160 + 40]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))

"""Tiny random pipelines of diffusers, in every published form, with a vocabulary of their own."""

import json

import diffusers
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from tests.parity.reference import randomised
from triptych.text.tokenizer import train_tokenizer

CAPTIONS = ["a red circle on a blue ground", "two green squares!", "a small star", "circle ! a"]
LENGTH = 16
VOCABULARY = train_tokenizer(CAPTIONS * 3, 560, LENGTH)
BETAS = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
}  # fmt: skip
UNET = {
    "block_out_channels": (16, 32), "layers_per_block": 1, "sample_size": 8,
    "attention_head_dim": 4, "cross_attention_dim": 24, "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
XL = {
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8, "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
VAE = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 16,
    "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip


def text_config(width=24, dim=10, layers=3, activation="quick_gelu"):
    end = VOCABULARY.config.end
    return CLIPTextConfig(
        vocab_size=VOCABULARY.vocabulary, max_position_embeddings=LENGTH, hidden_size=width,
        num_hidden_layers=layers, num_attention_heads=4, intermediate_size=32, projection_dim=dim,
        hidden_act=activation, bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip


def tokenizer(folder, pad=None):
    """Of the older form: the padding token stands right in special_tokens_map.json alone."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = VOCABULARY.pairs()
    end = "<|endoftext|>"
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    special = {"bos_token": "<|startoftext|>", "eos_token": end, "unk_token": end, "pad_token": end}
    stored = special | {"model_max_length": LENGTH, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(stored))
    special |= {"pad_token": pad or end}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return CLIPTokenizer.from_pretrained(folder)


def unet(**changes):
    config = UNET | changes
    return randomised(diffusers.UNet2DConditionModel(**config), std=0.08)


def vae(**changes):
    return randomised(diffusers.AutoencoderKL(**VAE | changes), std=0.08)


def sd(folder, scheduler="PNDMScheduler", pad=None, kind="StableDiffusionPipeline", **network):
    """Stable Diffusion 1.x or 2.x, by what its U-Net is."""
    more = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {"clip_sample": False}
    if "use_linear_projection" in network:
        more |= {"prediction_type": "v_prediction", "set_alpha_to_one": False}
    checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return getattr(diffusers, kind)(
        vae=vae(),
        text_encoder=randomised(CLIPTextModel(text_config())),
        tokenizer=tokenizer(folder / "made", pad),
        unet=unet(**network),
        scheduler=getattr(diffusers, scheduler)(**BETAS | more),
        **checker,
    )


def xl(folder, refiner=False):
    """XL with both towers, or its refiner with the second alone."""
    big = randomised(CLIPTextModelWithProjection(text_config(16, 10, activation="gelu")))
    sizes = 5 if refiner else 6
    width = 16 if refiner else 40
    network = XL | {"projection_class_embeddings_input_dim": 10 + 8 * sizes}
    kind = "StableDiffusionXLImg2ImgPipeline" if refiner else "StableDiffusionXLPipeline"
    return getattr(diffusers, kind)(
        vae=vae(scaling_factor=0.13025),
        text_encoder=None if refiner else randomised(CLIPTextModel(text_config())),
        text_encoder_2=big,
        tokenizer=None if refiner else tokenizer(folder / "made"),
        tokenizer_2=tokenizer(folder / "made 2", "!"),
        unet=unet(**network, cross_attention_dim=width),
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing="leading", **BETAS),
        force_zeros_for_empty_prompt=not refiner,
        **({"requires_aesthetics_score": True} if refiner else {}),
    )


FORMS = {
    "1.x": sd,
    "2.x": lambda folder: sd(
        folder, "DDIMScheduler", "!", use_linear_projection=True, attention_head_dim=(2, 4)
    ),
    "inpainting": lambda folder: sd(
        folder, "DDIMScheduler", kind="StableDiffusionInpaintPipeline", in_channels=9
    ),
    "XL": xl,
    "XL refiner": lambda folder: xl(folder, refiner=True),
}  # fmt: skip


@torch.no_grad()
def texts(pipeline, prompts):
    """What diffusers' pipelines tell their U-Net: states, and the pooled vector or None."""
    names = [n for n in ("tokenizer", "tokenizer_2") if getattr(pipeline, n, None) is not None]
    states, vector = [], None
    large = "XL" in type(pipeline).__name__
    for name in names:
        tower = getattr(pipeline, name.replace("tokenizer", "text_encoder"))
        ids = getattr(pipeline, name)(
            prompts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
        ).input_ids
        found = tower(ids, output_hidden_states=True)
        states.append(found.hidden_states[-2] if large else found[0])
        vector = found[0] if large else None
    return torch.cat(states, -1), vector

"""A tiny Karlo of diffusers with random weights, as pipelines in memory and as folders."""

import diffusers
import torch
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from transformers import (
    CLIPImageProcessor,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from tests.parity.reference import randomised
from tests.parity.tiny_pipelines import LENGTH, text_config, tokenizer

DIM = 32
"""Of embeddings and of the states of texts, which Karlo's networks read alike."""
DECODER = {
    "sample_size": 8, "in_channels": 3, "out_channels": 6, "layers_per_block": 1,
    "block_out_channels": (16, 32), "norm_num_groups": 8, "attention_head_dim": 8,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "cross_attention_dim": 24,
    "class_embed_type": "identity", "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip
UPSAMPLER = {
    "sample_size": 16, "in_channels": 6, "out_channels": 3, "layers_per_block": 1,
    "block_out_channels": (16, 32), "norm_num_groups": 8, "add_attention": False,
    "down_block_types": ("ResnetDownsampleBlock2D",) * 2,
    "up_block_types": ("ResnetUpsampleBlock2D",) * 2,
}  # fmt: skip


def scheduler(**changes):
    return diffusers.UnCLIPScheduler(**changes)


def prior():
    network = diffusers.PriorTransformer(
        num_attention_heads=4, attention_head_dim=8, num_layers=2, embedding_dim=DIM,
        num_embeddings=LENGTH,
    )  # fmt: skip
    network = randomised(network)
    network.clip_std.data.uniform_(0.5, 1.5)
    return network


def shared():
    """The parts of both forms."""
    projections = UnCLIPTextProjModel(
        clip_embeddings_dim=DIM, time_embed_dim=64, cross_attention_dim=24
    )
    last = randomised(diffusers.UNet2DModel(**UPSAMPLER), std=0.12)
    last.conv_out.weight.data.mul_(20)  # noise of 0.6 % stands in its step: else it hardly counts
    return {
        "decoder": randomised(diffusers.UNet2DConditionModel(**DECODER), std=0.08),
        "text_proj": randomised(projections),
        "text_encoder": randomised(CLIPTextModelWithProjection(text_config(DIM, DIM))),
        "super_res_first": randomised(diffusers.UNet2DModel(**UPSAMPLER), std=0.08),
        "super_res_last": last,
        "decoder_scheduler": scheduler(variance_type="learned_range"),
        "super_res_scheduler": scheduler(),
    }


def texts(folder):
    """From a text to pictures."""
    pipe = diffusers.UnCLIPPipeline(
        **shared(), prior=prior(), tokenizer=tokenizer(folder / "vocabulary"),
        prior_scheduler=scheduler(prediction_type="sample", clip_sample_range=5.0),
    )  # fmt: skip
    return quiet(pipe)


def variations(folder):
    """From a picture to pictures alike."""
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        image_size=16, patch_size=8, projection_dim=DIM,
    )  # fmt: skip
    pipe = diffusers.UnCLIPImageVariationPipeline(
        **shared(), tokenizer=tokenizer(folder / "vocabulary"),
        image_encoder=randomised(CLIPVisionModelWithProjection(vision)),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16),
    )  # fmt: skip
    return quiet(pipe)


def quiet(pipe):
    """Without progress bars, and with schedules in float64. In float32 the reference's last step
    multiplies by 0.9995 where it should by 1: beta of time 0 over 1 - (1 - beta), which is rounded.
    """
    pipe.set_progress_bar_config(disable=True)
    for name in ("prior_scheduler", "decoder_scheduler", "super_res_scheduler"):
        if (its := getattr(pipe, name, None)) is not None:
            its.betas = its.betas.double()
            its.alphas = 1 - its.betas
            its.alphas_cumprod = its.alphas.cumprod(0)
    return pipe


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]

"""The latent U-Net against Diffusers' with the same random weights, in every published form."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

from tests.parity.reference import randomised
from triptych.systems.stable_diffusion.published.unet import (
    diffusers_rules,
    from_diffusers,
    ldm_rules,
    to_diffusers,
)
from triptych.systems.stable_diffusion.unet import LatentUNet
from triptych.weights.keymap import convert, export, fill

SMALL = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": [16, 32, 48, 48],
    "layers_per_block": 2, "attention_head_dim": 8, "cross_attention_dim": 20,
    "norm_num_groups": 8, "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
XL = {
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
}  # fmt: skip
FORMS = {
    "sd 1": {},
    "sd 2": {"use_linear_projection": True, "attention_head_dim": [2, 4, 6, 6]},
    "inpainting": {"in_channels": 9},
    "xl base": XL | {
        "block_out_channels": [16, 32, 48], "attention_head_dim": [2, 4, 6],
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 3],
        "projection_class_embeddings_input_dim": 10 + 6 * 8,
    },
    "xl refiner": XL | {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
                             "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": 2,
        "projection_class_embeddings_input_dim": 10 + 5 * 8,
    },
    "x4 upscaler": {
        "in_channels": 7, "use_linear_projection": True, "num_class_embeds": 30,
        "only_cross_attention": [True, True, True, False],
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
        "up_block_types": ["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"],
    },
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "one level": {
        "block_out_channels": [16], "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"],
    },
}  # fmt: skip


def pair(form, dtype=torch.float32):
    """Diffusers' network and ours, which holds the same weights."""
    peer = UNet2DConditionModel.from_config(SMALL | FORMS[form])
    # weights of a real network's size: with larger ones 30 layers amplify rounding itself
    peer = randomised(peer, std=0.08).to(dtype)
    config = from_diffusers(dict(peer.config))
    ours = LatentUNet(config).to(dtype)
    fill(ours, convert(peer.state_dict(), diffusers_rules(config)))
    return peer, ours


def inputs(peer, height, width, dtype=torch.float32):
    """Latents, times, context; and what else the network is told, as it says and as we do."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, peer.config.in_channels, height, width, generator=random, dtype=dtype)
    context = torch.randn(2, 7, 20, generator=random, dtype=dtype)
    theirs, ours = {}, {}
    if added := peer.config.projection_class_embeddings_input_dim:
        count = (added - 10) // 8
        sizes = torch.tensor([[1024, 712, 0, 8, 1024, 712], [640, 480, 64, 0, 512, 512]])
        ours["vector"] = torch.randn(2, 10, generator=random, dtype=dtype)
        ours["sizes"] = sizes[:, :count]
        # their pipelines give sizes in the precision of the text
        told = {"text_embeds": ours["vector"], "time_ids": ours["sizes"].to(dtype)}
        theirs["added_cond_kwargs"] = told
    if peer.config.num_class_embeds:
        ours["label"] = theirs["class_labels"] = torch.tensor([3, 20])
    return x, torch.tensor([871, 3]), context, theirs, ours


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (11, 16), (13, 9), (5, 1)])
@pytest.mark.parametrize("form", sorted(FORMS))
def test_outputs(form, size):
    """Sides of any length, as 89 x 128 for a picture of 712 x 1024."""
    peer, model = pair(form)
    x, time, context, theirs, told = inputs(peer, *size)
    expected = peer(x, time, context, **theirs).sample
    assert expected.std() > 0.05
    torch.testing.assert_close(model(x, time, context, **told), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("form", ["sd 1", "xl base", "x4 upscaler"])
def test_outputs_in_float64(form):
    peer, model = pair(form, torch.float64)
    x, time, context, theirs, told = inputs(peer, 11, 16, torch.float64)
    expected = peer(x, time, context, **theirs).sample
    torch.testing.assert_close(model(x, time, context, **told), expected, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_the_lectures_size():
    """712 x 1024 pixels are 89 x 128 latents, an odd side on three levels."""
    peer, model = pair("xl base")
    x, time, context, theirs, told = inputs(peer, 128, 89)
    expected = peer(x[:1], time[:1], context[:1], added_cond_kwargs={
        name: value[:1] for name, value in theirs["added_cond_kwargs"].items()
    }).sample  # fmt: skip
    ours = model(x[:1], time[:1], context[:1], **{k: v[:1] for k, v in told.items()})
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["sd 1", "xl base"])
def test_gradients(form):
    peer, model = pair(form, torch.float64)
    peer.train()
    x, time, context, theirs, told = inputs(peer, 9, 12, torch.float64)
    weights = torch.randn(2, 4, 9, 12, dtype=torch.float64)
    gradients = []
    for call in (
        lambda x, context: peer(x, time, context, **theirs).sample,
        lambda x, context: model(x, time, context, **told),
    ):
        leaves = x.clone().requires_grad_(), context.clone().requires_grad_()
        (call(*leaves) * weights).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-8, rtol=1e-8)
    given = {name: p.grad for name, p in peer.named_parameters()}
    theirs = convert(given, diffusers_rules(model.config))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name], atol=1e-8, rtol=1e-8, msg=name)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_export_undoes_convert(form):
    peer, model = pair(form)
    state = peer.state_dict()
    restored = export(model.state_dict(), diffusers_rules(model.config))
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[name], state[name]) for name in state)
    assert from_diffusers(to_diffusers(model.config)) == model.config


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"one level"}))
def test_single_files_have_the_names_of_ldm(form):
    """Diffusers' own converter reads what we write under LDM's names; and we read it back."""
    peer, model = pair(form)
    single = export(model.state_dict(), ldm_rules(model.config))
    named = {f"model.diffusion_model.{name}": tensor for name, tensor in single.items()}
    theirs = convert_ldm_unet_checkpoint(named, dict(peer.config))
    state = peer.state_dict()
    assert theirs.keys() == state.keys()
    assert all(torch.equal(theirs[name], state[name]) for name in state)
    back = convert(single, ldm_rules(model.config))
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_in_bfloat16_both_are_as_near_to_float32():
    peer, model = pair("sd 2")
    x, time, context, _, _ = inputs(peer, 16, 16)
    exact = model(x, time, context)
    half = [x.to(torch.bfloat16), time, context.to(torch.bfloat16)]
    theirs = peer.to(torch.bfloat16)(*half).sample.float()
    ours = model.to(torch.bfloat16)(*half).float()
    scale = exact.square().mean().sqrt()
    error = [((y - exact).square().mean().sqrt() / scale).item() for y in (ours, theirs)]
    assert error[0] < 1.2 * error[1] < 0.1

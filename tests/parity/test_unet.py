"""The U-Net against Diffusers' with the same random weights."""

import pytest
import torch
from diffusers import UNet2DModel
from torch.nn import functional as F

from triptych.systems.pixel_diffusion.published import DIFFUSERS
from triptych.systems.pixel_diffusion.unet import UNet, UNetConfig
from triptych.weights.keymap import convert, export, fill

SMALL = {"widths": (16, 32, 32), "attention": (1,), "head_width": 8, "time_width": 64, "groups": 8}


def pair(dtype=torch.float32, *, conditioning="add", blocks=1, **changes):
    """Diffusers' network and ours, which holds the same weights."""
    torch.manual_seed(0)
    settings = UNetConfig(3, 3, **(SMALL | changes), conditioning=conditioning, blocks=blocks)
    kinds = [level in settings.attention for level in range(len(settings.widths))]
    peer = UNet2DModel(
        in_channels=3,
        out_channels=3,
        layers_per_block=blocks,
        block_out_channels=settings.widths,
        down_block_types=tuple("AttnDownBlock2D" if k else "DownBlock2D" for k in kinds),
        up_block_types=tuple("AttnUpBlock2D" if k else "UpBlock2D" for k in kinds[::-1]),
        time_embedding_dim=settings.time_width,
        attention_head_dim=settings.head_width,
        norm_num_groups=settings.groups,
        attn_norm_num_groups=settings.groups,  # else none with scale_shift
        resnet_time_scale_shift={"add": "default", "scale_shift": "scale_shift"}[conditioning],
    )
    for parameter in peer.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))  # norms that are no identity
    peer = peer.to(dtype)
    model = UNet(settings).to(dtype)
    fill(model, convert(peer.state_dict(), DIFFUSERS))
    return peer, model


def inputs(height, width, dtype):
    torch.manual_seed(1)
    x = torch.randn(2, 3, height, width, dtype=dtype, requires_grad=True)
    return x, torch.tensor([3, 871]), torch.randn(2, 3, height, width, dtype=dtype)


def sizes_of_skips(peer, height, width):
    """Diffusers' `UNet2DModel` knows sides of whole multiples only, but its layers know `size`."""
    sizes = []
    for _ in peer.up_blocks[:-1]:
        sizes.append((height, width))
        height, width = (height + 1) // 2, (width + 1) // 2
    for block, size in zip(peer.up_blocks, sizes[::-1], strict=False):
        block.upsamplers[0].register_forward_pre_hook(
            lambda module, arguments, size=size: (arguments[0], size)
        )


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [pytest.param(torch.float32, 1e-5, marks=pytest.mark.slow), (torch.float64, 1e-10)],
)
@pytest.mark.parametrize("conditioning", ["add", "scale_shift"])
@pytest.mark.parametrize(
    "size",
    [
        *((16, 16), (13, 9), (5, 1)),
        *(pytest.param(size, marks=pytest.mark.slow) for size in ((8, 20), (7, 6))),
    ],
)
def test_outputs_and_gradients(dtype, tolerance, conditioning, size):
    peer, model = pair(dtype, conditioning=conditioning)
    sizes_of_skips(peer, *size)
    gradients = []
    outputs = []
    x, time, weights = inputs(*size, dtype)
    for call in (lambda: peer(x, time).sample, lambda: model(x, time)):
        x.grad = None
        output = call()
        (output * weights).sum().backward()
        outputs.append(output.detach())
        gradients.append(x.grad)
    torch.testing.assert_close(*outputs[::-1], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(*gradients[::-1], atol=tolerance, rtol=10 * tolerance)
    theirs = convert({name: p.grad for name, p in peer.named_parameters()}, DIFFUSERS)
    for name, parameter in model.named_parameters():
        largest = theirs[name].abs().max().item()
        torch.testing.assert_close(
            parameter.grad, theirs[name], atol=10 * tolerance * max(1, largest), rtol=0, msg=name
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": 2},
        {"widths": (16, 24), "attention": (0, 1)},
        {"widths": (24,), "attention": ()},
        {"widths": (16, 16, 32, 48), "attention": (3,), "head_width": 16},
    ],
)
def test_other_sizes_of_network(changes):
    peer, model = pair(torch.float64, **changes)
    x, time, _ = inputs(16, 24, torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x, time), peer(x, time).sample, atol=1e-10, rtol=1e-10)


@pytest.mark.slow
def test_the_benchmarked_network():
    """4.4 M parameters, as in benchmarks/train_unet.py, and one step of descent."""
    peer, model = pair(
        widths=(64, 128, 128), attention=(1,), head_width=32, time_width=256, groups=32
    )
    assert sum(p.numel() for p in model.parameters()) == 4_437_699
    x, time, noise = inputs(32, 32, torch.float32)
    losses = []
    for network in (lambda x, t: peer(x, t).sample, model):
        parameters = (model if network is model else peer).parameters()
        optimizer = torch.optim.SGD(parameters, 1e-2)
        for _ in range(3):
            loss = F.mse_loss(network(x.detach(), time), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-5)
    assert losses[2] < losses[0]


def test_export_undoes_convert():
    peer, model = pair(blocks=2)
    state = peer.state_dict()
    restored = export(model.state_dict(), DIFFUSERS)
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "name", ["conv_in.weight", "up_blocks.1.attentions.1.to_out.0.bias", "conv_norm_out.weight"]
)
def test_a_missing_tensor_is_an_error(name):
    peer, model = pair()
    state = peer.state_dict()
    del state[name]
    ours = convert({name: peer.state_dict()[name]}, DIFFUSERS)
    with pytest.raises(ValueError, match=f"there is no {next(iter(ours))}"):
        fill(model, convert(state, DIFFUSERS))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("class_embedding.weight", "no rule claims class_embedding.weight"),
        ("down_blocks.0.downsamplers.1.conv.weight", "no rule claims"),
        ("down_blocks.2.downsamplers.0.conv.weight", "down.2.downsample.conv.weight is unknown"),
    ],
)
def test_an_extra_tensor_is_an_error(name, message):
    peer, model = pair()
    state = peer.state_dict() | {name: torch.zeros(3)}
    with pytest.raises(ValueError, match=message):
        fill(model, convert(state, DIFFUSERS))


def test_in_bfloat16_both_are_as_near_to_float32():
    peer, model = pair()
    x, time, _ = inputs(16, 16, torch.float32)
    with torch.no_grad():
        exact = model(x, time)
        theirs = peer.to(torch.bfloat16)(x.to(torch.bfloat16), time).sample.float()
        ours = model.to(torch.bfloat16)(x.to(torch.bfloat16), time).float()
    scale = exact.square().mean().sqrt()
    error = [((y - exact).square().mean().sqrt() / scale).item() for y in (ours, theirs)]
    assert error[0] < 1.2 * error[1] < 0.05

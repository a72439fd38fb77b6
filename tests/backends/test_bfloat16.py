"""Weights kept in bfloat16: the results of autocast to the bit, without its casts."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from triptych.backends.bfloat16 import bfloat16_weights
from triptych.nn.convolution import Upsample
from triptych.systems.pixel_diffusion.unet import UNet, UNetConfig
from triptych.systems.stable_diffusion.unet import LatentUNet, LatentUNetConfig


class Casts(TorchDispatchMode):
    """Counts what is cast while it is entered, by the number of dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), more=None):
        more = more or {}
        if function is torch.ops.aten._to_copy.default and "dtype" in more:
            self.count[arguments[0].ndim] += 1
        return function(*arguments, **more)


def pixels():
    unet = UNet(UNetConfig(3, 3, widths=(16, 32), attention=(1,), head_width=16, groups=8))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return unet, (x, torch.tensor([30.0, 700.0]))


def latents():
    unet = LatentUNet(
        LatentUNetConfig(
            widths=(16, 16), blocks=1, transformers=(1, 0), heads=(2, 2), context=16, groups=4
        )
    )
    generator = torch.Generator().manual_seed(1)
    x, context = (torch.randn(*s, generator=generator) for s in ((2, 4, 8, 8), (2, 5, 16)))
    return unet, (x, torch.tensor([30.0, 700.0]), context)


@pytest.mark.parametrize("make", [pixels, latents])
def test_the_same_to_the_bit_without_casts_of_weights(make) -> None:
    torch.manual_seed(0)
    unet, inputs = make()
    unet.eval().requires_grad_(False)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.1)
    before = {name: (weight, weight.clone()) for name, weight in unet.named_parameters()}
    half = torch.autocast("cpu", torch.bfloat16)
    with torch.no_grad(), half:
        with Casts() as each_call:
            expected = unet(*inputs)
        with bfloat16_weights(unet), Casts() as never:
            found = unet(*inputs)
            kept = sum(weight.dtype == torch.bfloat16 for weight in unet.parameters())
    assert torch.equal(found, expected) and found.abs().max() > 0
    assert sum((each_call.count - never.count).values()) >= kept > 50
    assert sum(never.count.values()) < sum(each_call.count.values()) / 5
    assert all(part.pairs is None for part in unet.modules() if isinstance(part, Upsample))
    for name, weight in unet.named_parameters():
        assert weight is before[name][0] and torch.equal(weight, before[name][1])


def test_off_or_broken_off_it_leaves_the_network_alone() -> None:
    unet, _ = pixels()
    dtypes = {weight.dtype for weight in unet.parameters()}
    with bfloat16_weights(unet, False):
        assert {weight.dtype for weight in unet.parameters()} == dtypes == {torch.float32}
    with pytest.raises(RuntimeError), bfloat16_weights(unet):
        assert unet.conv_in.weight.dtype == torch.bfloat16
        assert unet.norm_out.weight.dtype == torch.float32
        raise RuntimeError
    assert {weight.dtype for weight in unet.parameters()} == dtypes

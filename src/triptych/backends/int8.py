"""Dynamic quantisation to int8, which CPUs with VNNI or AMX multiply fastest.

Weights are symmetric int8 with a scale for each output. Inputs are uint8 with a scale and zero
point for each picture, computed at run time, so that the result does not depend on the batch.
Sums are exact in int32. No calibration and no training (arXiv:2004.09602, section 3).

Dimensions: B pictures, C inputs, O outputs, H height, W width, T tokens.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.convolution import Upsample
from triptych.nn.spatial_transformer import SpatialTransformer

LEAST_CHANNELS = 32  # layers with fewer channels gain no speed and lose most precision
SKIPPED = ("shortcut", "proj_in", "proj_out")
LEVELS = 254  # of 256, so that rounding cannot leave the range


def quantize_weight(
    weight: Float[Tensor, "O ..."],
) -> tuple[Int8[Tensor, "O ..."], Float[Tensor, " O"]]:
    """The nearest int8 weights, and the scale of each output."""
    flat = weight.detach().float().flatten(1)
    scale = flat.abs().amax(1) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    return (flat / scale[:, None]).round().to(torch.int8).view(weight.shape), scale


def quantize_input(x: Float[Tensor, "..."]) -> tuple[UInt8[Tensor, "..."], float, int]:
    """The nearest uint8 inputs, their scale and their zero point.

    Raises:
        FloatingPointError: x is not finite.
    """
    lowest, highest = (float(edge) for edge in torch.aminmax(x))
    low, high = min(lowest, 0.0), max(highest, 0.0)
    if not math.isfinite(high - low):
        raise FloatingPointError("an int8 layer's input is not finite")
    scale = (high - low) / LEVELS or 1.0
    zero = round(-low / scale)
    # x / scale + zero in one pass, plus a half so that truncation rounds
    shifted = torch.add(torch.tensor(zero + 0.5), x.float(), alpha=1 / scale)
    return shifted.to(torch.uint8), scale, zero


class Int8Linear(nn.Module):
    """A linear layer over tokens with its present weights, one picture at a time."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear
        integers, self.scale = quantize_weight(linear.weight)
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.packed = torch.ops.onednn.qlinear_prepack(integers, None)
        self.zeros = torch.zeros(len(integers), dtype=torch.int64)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T O"]:
        return torch.stack([self._one(picture) for picture in x])

    def _one(self, x: Float[Tensor, "T C"]) -> Float[Tensor, "T O"]:
        integers, scale, zero = quantize_input(x)
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            integers, scale, zero, self.packed, self.scale, self.zeros, self.bias,
            1.0, 0, x.dtype, "none", [], "",
        )  # fmt: skip
        return result


class Int8Conv2d(nn.Module):
    """A convolution with its present weights, one picture at a time."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv  # its padding mode may change: `nn.circular`
        integers, self.scale = quantize_weight(conv.weight)
        self.bias = None if conv.bias is None else conv.bias.detach().float()
        self.packed = torch.ops.onednn.qconv_prepack(
            integers,
            self.scale,
            1.0,
            0,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            None,
        )
        self.zeros = torch.zeros(len(integers), dtype=torch.int64)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O H2 W2"]:
        return torch.cat([self._one(picture) for picture in x.split(1)])

    def _one(self, x: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 O H2 W2"]:
        conv = self.conv
        padding = [int(side) for side in conv.padding]
        integers, scale, zero = quantize_input(x)
        if conv.padding_mode != "zeros":
            down, right = padding
            integers = F.pad(integers.float(), (right, right, down, down), conv.padding_mode)
            integers, padding = integers.to(torch.uint8), [0, 0]
        result: Tensor = torch.ops.onednn.qconv2d_pointwise(
            integers.contiguous(memory_format=torch.channels_last), scale, zero,
            self.packed, self.scale, self.zeros, self.bias,
            conv.stride, padding, conv.dilation, conv.groups,
            1.0, 0, x.dtype, "none", [], "",
        )  # fmt: skip
        return result


@contextmanager
def int8(network: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Within the context, if `enabled`, the network's convolutions and the linear layers of its
    transformers are int8, with the weights they have on entry.

    Layers that are cheap or sensitive are not quantised: the first and last, the timestep's, keys
    and values of a text, upsampling, shortcuts, and projections around transformers, which carry
    the whole signal (they would cause half the error of Stable Diffusion 1.x).

    Raises:
        ValueError: the network is not on a CPU with such instructions.
    """
    if enabled:
        _check(network)
    layers = list(_quantizable(network)) if enabled else []
    try:
        for parent, name, layer in layers:
            quantized = Int8Conv2d(layer) if isinstance(layer, nn.Conv2d) else Int8Linear(layer)
            setattr(parent, name, quantized)
        yield
    finally:
        for parent, name, layer in layers:
            setattr(parent, name, layer)


def _quantizable(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Conv2d | nn.Linear]]:
    inside = {
        id(part)
        for transformer in network.modules()
        if isinstance(transformer, SpatialTransformer)
        for name, part in transformer.named_modules()
        if not name.endswith(("context_attn.k_proj", "context_attn.v_proj"))
    }
    for parent in network.modules():
        if isinstance(parent, Upsample):
            continue
        for name, layer in parent.named_children():
            if name in SKIPPED:
                continue
            if isinstance(layer, nn.Conv2d):
                if min(layer.in_channels, layer.out_channels) >= LEAST_CHANNELS:
                    yield parent, name, layer
            elif id(layer) in inside and isinstance(layer, nn.Linear):
                yield parent, name, layer


def _check(network: nn.Module) -> None:
    if any(parameter.device.type != "cpu" for parameter in network.parameters()):
        raise ValueError("int8 needs a CPU; other devices are faster in bfloat16")
    # Without VNNI, products of bytes are summed in pairs of 16 bits, which can overflow.
    if not torch.cpu._is_vnni_supported() or not torch.backends.mkldnn.is_available():
        raise ValueError(
            "int8 needs a CPU with VNNI (Intel since 2019, AMD since 2022) and a PyTorch with "
            "oneDNN: leave quantize empty"
        )

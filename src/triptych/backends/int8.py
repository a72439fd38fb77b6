"""Layers computed in whole numbers of eight bits: what a CPU with VNNI or AMX multiplies fastest.

Weights are int8 with a scale for each output, symmetric; what comes in is uint8 with a scale and a
zero of its own for each picture, found when it comes, so that a picture is the same in any company.
Sums are exact in int32. Nothing is calibrated and nothing is learned (the dynamic quantisation of
arXiv:2004.09602, section 3).

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

LEAST = 32  # inputs of a layer below which there is nothing to gain, and the first layers to lose
WHOLE = ("shortcut", "proj_in", "proj_out")
LEVELS = 254  # of 256: rounding then cannot leave the range


def quantize_weight(
    weight: Float[Tensor, "O ..."],
) -> tuple[Int8[Tensor, "O ..."], Float[Tensor, " O"]]:
    """The nearest int8 numbers, and what each output's are to be multiplied with."""
    flat = weight.detach().float().flatten(1)
    scale = flat.abs().amax(1) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    return (flat / scale[:, None]).round().to(torch.int8).view(weight.shape), scale


def quantize_input(x: Float[Tensor, "..."]) -> tuple[UInt8[Tensor, "..."], float, int]:
    """The nearest uint8 numbers, their scale, and the one that stands for zero.

    Raises:
        FloatingPointError: x is not finite.
    """
    lowest, highest = (float(edge) for edge in torch.aminmax(x))
    low, high = min(lowest, 0.0), max(highest, 0.0)
    if not math.isfinite(high - low):
        raise FloatingPointError("numbers that are not finite have no eight bits")
    scale = (high - low) / LEVELS or 1.0
    zero = round(-low / scale)
    # one pass: x / scale + zero, and a half so that cutting the fraction off rounds
    moved = torch.add(torch.tensor(zero + 0.5), x.float(), alpha=1 / scale)
    return moved.to(torch.uint8), scale, zero


class Int8Linear(nn.Module):
    """A linear layer over tokens, of the weights that it has now; each picture by itself."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear
        whole, self.scale = quantize_weight(linear.weight)
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.packed = torch.ops.onednn.qlinear_prepack(whole, None)
        self.zeros = torch.zeros(len(whole), dtype=torch.int64)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T O"]:
        return torch.stack([self._one(picture) for picture in x])

    def _one(self, x: Float[Tensor, "T C"]) -> Float[Tensor, "T O"]:
        whole, scale, zero = quantize_input(x)
        result: Tensor = torch.ops.onednn.qlinear_pointwise(
            whole, scale, zero, self.packed, self.scale, self.zeros, self.bias,
            1.0, 0, x.dtype, "none", [], "",
        )  # fmt: skip
        return result


class Int8Conv2d(nn.Module):
    """A convolution, of the weights that it has now; each picture by itself."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.conv = conv  # whose padding may change: `nn.circular`
        whole, self.scale = quantize_weight(conv.weight)
        self.bias = None if conv.bias is None else conv.bias.detach().float()
        self.packed = torch.ops.onednn.qconv_prepack(
            whole, self.scale, 1.0, 0, conv.stride, conv.padding, conv.dilation, conv.groups, None
        )
        self.zeros = torch.zeros(len(whole), dtype=torch.int64)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B O H2 W2"]:
        return torch.cat([self._one(picture) for picture in x.split(1)])

    def _one(self, x: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 O H2 W2"]:
        conv = self.conv
        padding = [int(side) for side in conv.padding]
        whole, scale, zero = quantize_input(x)
        if conv.padding_mode != "zeros":
            down, right = padding
            whole = F.pad(whole.float(), (right, right, down, down), conv.padding_mode)
            whole, padding = whole.to(torch.uint8), [0, 0]
        result: Tensor = torch.ops.onednn.qconv2d_pointwise(
            whole.contiguous(memory_format=torch.channels_last), scale, zero,
            self.packed, self.scale, self.zeros, self.bias,
            conv.stride, padding, conv.dilation, conv.groups,
            1.0, 0, x.dtype, "none", [], "",
        )  # fmt: skip
        return result


@contextmanager
def int8(network: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Inside, the network's convolutions and the linear layers of its transformers work in eight
    bits, with the weights that they have on the way in; outside it is what it was.

    What is little work or much to lose stays as it is: first and last layers, the time's, what only
    reads a text, what doubles the side, and shortcuts and projections beside them, through
    which a picture passes whole (of the error of Stable Diffusion 1.x they would be half).

    Raises:
        ValueError: the network is not on a CPU with such instructions.
    """
    if wanted:
        _check(network)
    found = list(_quantizable(network)) if wanted else []
    try:
        for parent, name, layer in found:
            whole = Int8Conv2d(layer) if isinstance(layer, nn.Conv2d) else Int8Linear(layer)
            setattr(parent, name, whole)
        yield
    finally:
        for parent, name, layer in found:
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
            if name in WHOLE:
                continue
            if isinstance(layer, nn.Conv2d):
                if min(layer.in_channels, layer.out_channels) >= LEAST:
                    yield parent, name, layer
            elif id(layer) in inside and isinstance(layer, nn.Linear):
                yield parent, name, layer


def _check(network: nn.Module) -> None:
    if any(parameter.device.type != "cpu" for parameter in network.parameters()):
        raise ValueError("int8 is for CPUs: other devices are faster in bfloat16")
    # Without VNNI, products of bytes are summed in pairs of 16 bits, which can overflow.
    if not torch.cpu._is_vnni_supported() or not torch.backends.mkldnn.is_available():
        raise ValueError(
            "int8 needs a CPU that multiplies bytes (VNNI: Intel since 2019, AMD since 2022) and a "
            "PyTorch with oneDNN: leave quantize empty"
        )

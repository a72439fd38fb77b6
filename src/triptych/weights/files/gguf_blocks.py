"""The blocks in which llama.cpp packs weights, and what they mean.

A row is cut into blocks of 32 or 256 numbers; each block has small whole numbers q and the factors
that make weights of them. Results are those of the package `gguf` to the bit.

Layouts: github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h. Dimensions: N blocks.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

AT_ONCE = 1 << 12
"""Blocks that are unpacked at a time: the intermediate numbers stay in a cache."""


def unpack(
    data: UInt8[Tensor, " bytes"],
    form: str,
    shape: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A tensor from its bytes; None keeps the type of one without blocks, else is float32."""
    block = BLOCKS[form]
    if block.dtype is not None:
        return data.view(block.dtype).reshape(shape).to(dtype or block.dtype)
    assert block.unpack is not None
    blocks = data.reshape(-1, block.bytes)
    values = torch.empty(len(blocks), block.values, dtype=dtype or torch.float32)
    for begin in range(0, len(blocks), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        values[part] = block.unpack(blocks[part])
    return values.reshape(shape)


def _half(blocks: UInt8[Tensor, "N bytes"], at: int) -> Float[Tensor, "N 1"]:
    """The factor at a byte, which is stored in float16."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(data: UInt8[Tensor, "N bytes"], group: int) -> UInt8[Tensor, "N values"]:
    """Four bits each: in every group of bytes first the low halves, then the high ones."""
    data = data.unflatten(1, (-1, 1, group))
    return torch.cat([data & 15, data >> 4], 2).flatten(1)


def _bits(data: UInt8[Tensor, "N 4"]) -> UInt8[Tensor, "N 32"]:
    """Single bits, the lowest first."""
    return (data[:, :, None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)


def _q4_0(x: UInt8[Tensor, "N 18"]) -> Float[Tensor, "N 32"]:
    return _half(x, 0) * (_nibbles(x[:, 2:], 16).float() - 8)


def _q4_1(x: UInt8[Tensor, "N 20"]) -> Float[Tensor, "N 32"]:
    return _half(x, 0) * _nibbles(x[:, 4:], 16).float() + _half(x, 2)


def _q5_0(x: UInt8[Tensor, "N 22"]) -> Float[Tensor, "N 32"]:
    q = _nibbles(x[:, 6:], 16) | _bits(x[:, 2:6]) << 4
    return _half(x, 0) * (q.float() - 16)


def _q5_1(x: UInt8[Tensor, "N 24"]) -> Float[Tensor, "N 32"]:
    q = _nibbles(x[:, 8:], 16) | _bits(x[:, 4:8]) << 4
    return _half(x, 0) * q.float() + _half(x, 2)


def _q8_0(x: UInt8[Tensor, "N 34"]) -> Float[Tensor, "N 32"]:
    return x[:, 2:].contiguous().view(torch.int8).float() * _half(x, 0)


def _scales(x: UInt8[Tensor, "N 12"]) -> tuple[Float[Tensor, "N 8 1"], Float[Tensor, "N 8 1"]]:
    """Eight factors and eight minima of six bits each, in twelve bytes."""
    first, second, third = x.unflatten(1, (3, 4)).unbind(1)
    factors = torch.cat([first & 63, third & 15 | first >> 2 & 48], 1)
    minima = torch.cat([second & 63, third >> 4 | second >> 2 & 48], 1)
    return factors.float()[..., None], minima.float()[..., None]


def _q4_k(x: UInt8[Tensor, "N 144"]) -> Float[Tensor, "N 256"]:
    factors, minima = _scales(x[:, 4:16])
    q = _nibbles(x[:, 16:], 32).float().unflatten(1, (8, 32))
    scale, least = _half(x, 0)[..., None] * factors, _half(x, 2)[..., None] * minima
    values: Tensor = (scale * q - least).flatten(1)
    return values


def _q5_k(x: UInt8[Tensor, "N 176"]) -> Float[Tensor, "N 256"]:
    factors, minima = _scales(x[:, 4:16])
    # bit i of byte j is the fifth bit of value j of sub-block i
    fifth = x[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1
    q = (_nibbles(x[:, 48:], 32).unflatten(1, (8, 32)) | fifth << 4).float()
    scale, least = _half(x, 0)[..., None] * factors, _half(x, 2)[..., None] * minima
    values: Tensor = (scale * q - least).flatten(1)
    return values


def _q6_k(x: UInt8[Tensor, "N 210"]) -> Float[Tensor, "N 256"]:
    low = _nibbles(x[:, :128], 64)
    pairs = x[:, 128:192].unflatten(1, (2, 1, 32))
    high = (pairs >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None] & 3).flatten(1)
    q = (low | high << 4).float() - 32
    factors = x[:, 192:208].contiguous().view(torch.int8).float()
    scale = (_half(x, 208) * factors)[..., None]
    values: Tensor = (scale * q.unflatten(1, (16, 16))).flatten(1)
    return values


class Block(NamedTuple):
    """One form of storing numbers."""

    number: int
    """As files call it."""
    values: int
    bytes: int
    unpack: Callable[[Tensor], Tensor] | None = None
    dtype: torch.dtype | None = None


BLOCKS: dict[str, Block] = {
    "F32": Block(0, 1, 4, dtype=torch.float32),
    "F16": Block(1, 1, 2, dtype=torch.float16),
    "BF16": Block(30, 1, 2, dtype=torch.bfloat16),
    "Q4_0": Block(2, 32, 18, _q4_0),
    "Q4_1": Block(3, 32, 20, _q4_1),
    "Q5_0": Block(6, 32, 22, _q5_0),
    "Q5_1": Block(7, 32, 24, _q5_1),
    "Q8_0": Block(8, 32, 34, _q8_0),
    "Q4_K": Block(12, 256, 144, _q4_k),
    "Q5_K": Block(13, 256, 176, _q5_k),
    "Q6_K": Block(14, 256, 210, _q6_k),
}

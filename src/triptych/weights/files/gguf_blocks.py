"""The blocks in which llama.cpp packs weights, and what they mean.

A row is cut into blocks of 32 or 256 numbers; each block has small whole numbers q and the factors
that make weights of them. Results are those of the package `gguf` to the bit.

Layouts: github.com/ggml-org/llama.cpp, ggml/src/ggml-common.h. Dimensions: N blocks.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from triptych.nn.packed import Groups

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
    data = data.contiguous().unflatten(1, (-1, 1, group))
    return torch.cat([data & 15, data >> 4], 2).flatten(1)


@cache
def _fifths() -> Int64[Tensor, " 256"]:
    """For each byte its bits, the lowest first, as eight bytes that are 0 or 16."""
    bits = torch.arange(256)[:, None] >> torch.arange(8) & 1
    return (bits << 4).to(torch.uint8).view(torch.int64).flatten()


def _fifth_bits(data: UInt8[Tensor, "N 4"]) -> UInt8[Tensor, "N 32"]:
    """Single bits as the fifth bits of integers."""
    numbers = data.flatten().int()
    return _fifths().index_select(0, numbers).view(torch.uint8).view(len(data), 32)


def _q4_0(x: UInt8[Tensor, "N 18"]) -> Float[Tensor, "N 32"]:
    return (_nibbles(x[:, 2:], 16).float() - 8).mul_(_half(x, 0))


def _q4_1(x: UInt8[Tensor, "N 20"]) -> Float[Tensor, "N 32"]:
    return _half(x, 0) * _nibbles(x[:, 4:], 16).float() + _half(x, 2)


def _q5_0(x: UInt8[Tensor, "N 22"]) -> Float[Tensor, "N 32"]:
    q = _nibbles(x[:, 6:], 16) | _fifth_bits(x[:, 2:6])
    return (q.float() - 16).mul_(_half(x, 0))


def _q5_1(x: UInt8[Tensor, "N 24"]) -> Float[Tensor, "N 32"]:
    q = _nibbles(x[:, 8:], 16) | _fifth_bits(x[:, 4:8])
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


def _groups_q4_0(x: UInt8[Tensor, "N 18"]) -> Groups:
    return Groups(_nibbles(x[:, 2:], 16), _half(x, 0), torch.zeros(len(x), 1))


def _groups_q4_1(x: UInt8[Tensor, "N 20"]) -> Groups:
    scale = _half(x, 0)
    return Groups(_nibbles(x[:, 4:], 16), scale, _half(x, 2) + 8 * scale)


def _groups_q4_k(x: UInt8[Tensor, "N 144"]) -> Groups:
    factors, minima = _scales(x[:, 4:16])
    scale, least = _half(x, 0) * factors[..., 0], _half(x, 2) * minima[..., 0]
    return Groups(_nibbles(x[:, 16:], 32), scale, 8 * scale - least)


def _coarse_q8_0(x: UInt8[Tensor, "N 34"]) -> Groups:
    """The upper four bits of q, rounded down: so the centre is 7.5 higher."""
    d = _half(x, 0)
    return Groups((x[:, 2:].contiguous() ^ 128) >> 4, 16 * d, 7.5 * d)


FOUR_BITS: dict[str, Callable[[Tensor], Groups]] = {
    "Q4_0": _groups_q4_0,
    "Q4_1": _groups_q4_1,
    "Q4_K": _groups_q4_k,
}
"""Forms that have 16 steps for every 32 weights."""


def read_groups(
    rows: UInt8[Tensor, "R bytes"], form: str, take: Callable[[Tensor], Groups]
) -> Groups:
    """The groups of some rows; `take` is of `FOUR_BITS` or, for Q8_0, `coarse`."""
    found = take(rows.reshape(-1, BLOCKS[form].bytes))
    return Groups(*(part.reshape(len(rows), -1) for part in found))


COARSE = {"Q8_0": _coarse_q8_0}
"""Forms that have four bits among their own."""

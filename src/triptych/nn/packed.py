"""Linear layers whose weights stay in few bits, on a CPU.

A token of an answer reads every weight once and computes little with it, so time is memory traffic:
bytes are read faster than bfloat16, and four bits faster than bytes. Sums are in float32, inputs
and results of a product in bfloat16.

- `Int8`: one scale for each output.
- `Int4`: one scale and one centre for every 32 inputs of an output, as GGUF's Q4_0, Q4_1 and Q4_K,
  whose integers it takes over.
- `Screened`: a vocabulary in four bits, whose best tokens are computed again from exact rows.

Many rows at once, such as a prompt, are multiplied with the weights unpacked to bfloat16.

Dimensions: M rows, I inputs, O outputs, G groups of inputs, V vocabulary, D width, N tokens.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import BFloat16, Float, Int64, UInt8
from jaxtyping import Int8 as Integers8
from torch import Tensor, nn
from torch.nn import functional as F

GROUP = 32
"""Inputs that share a scale in `Int4`."""
PANEL = 64
"""Outputs that the four-bit product packs together; also divides what it computes at a time."""
FEW = 16
"""Rows up to which the packed product is faster than unpacking: 8 rows of 640 to 4,096 take 0.7 ms
packed and 2.6 unpacked, 32 take 3.4 and 2.9 (one core of a Xeon with AMX).
"""
EXACT = 256
"""Tokens of a screened vocabulary that are computed exactly."""
AT_ONCE = 1 << 19
"""Weights that are packed at a time: they and what is computed of them stay in a cache."""


class Int8(nn.Module):
    """A product with int8 weights."""

    weight: Integers8[Tensor, "O I"]
    scale: BFloat16[Tensor, " O"]

    def __init__(self, weight: Integers8[Tensor, "O I"], scale: BFloat16[Tensor, " O"]):
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: BFloat16[Tensor, "M I"]) -> BFloat16[Tensor, "M O"]:
        product: Tensor = torch._weight_int8pack_mm(x, self.weight, self.scale)
        return product

    def dense(self) -> BFloat16[Tensor, "O I"]:
        """The weights in bfloat16."""
        return self.weight.to(torch.bfloat16).mul_(self.scale[:, None])


class Int4(nn.Module):
    """A product with weights `scale * (integer - 8) + centre`, integers from 0 to 15."""

    integers: UInt8[Tensor, "O half"]
    grid: BFloat16[Tensor, "G O 2"]

    def __init__(self, integers: UInt8[Tensor, "O half"], grid: BFloat16[Tensor, "G O 2"]):
        """As `pack_groups` makes them: `grid` has scales and centres."""
        super().__init__()
        self.register_buffer("integers", integers, persistent=False)
        self.register_buffer("grid", grid, persistent=False)

    def forward(self, x: BFloat16[Tensor, "M I"]) -> BFloat16[Tensor, "M O"]:
        product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x, self.integers, GROUP, self.grid
        )
        return product

    def dense(self) -> BFloat16[Tensor, "O I"]:
        """The weights in bfloat16."""
        outputs, half = self.integers.shape
        panels = self.integers.view(-1, PANEL * half)
        halves = torch.cat([panels & 15, panels >> 4], 1)
        integers = halves[:, _places(2 * half)].view(outputs, -1, GROUP)
        scale, centre = self.grid.permute(2, 1, 0)[..., None]
        weights = torch.addcmul(centre, scale, integers.to(torch.bfloat16) - 8)
        return weights.flatten(1)


@cache
def _places(inputs: int) -> Int64[Tensor, " weights"]:
    """Where the four-bit product keeps each weight of a panel, among the low halves of its bytes
    followed by the high ones. It depends on the processor, so the product itself is asked, by
    packing the number of each weight digit by digit.
    """
    numbers = torch.arange(PANEL * inputs).view(PANEL, inputs)
    found = torch.zeros(PANEL * inputs, dtype=torch.long)
    for shift in range(0, 24, 4):
        digits = (numbers >> shift & 15).int()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(digits, 1).flatten()
        found += torch.cat([packed & 15, packed >> 4]).long() << shift
    places = torch.empty_like(found)
    places[found] = torch.arange(len(found))
    return places


class PackedLinear(nn.Module):
    """Linear layers of one input, as one: their outputs in a row."""

    def __init__(self, products: Sequence[Int8 | Int4]):
        super().__init__()
        self.products = nn.ModuleList(products)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        found = [self._one(product, rows) for product in self.products]
        whole = found[0] if len(found) == 1 else torch.cat(found, 1)
        return whole.to(x.dtype).view(*x.shape[:-1], -1)

    def _one(self, product: nn.Module, rows: BFloat16[Tensor, "M I"]) -> BFloat16[Tensor, "M O"]:
        if len(rows) > FEW:
            return F.linear(rows, product.dense())  # type: ignore[operator]
        result: Tensor = product(rows)
        return result


class Table(nn.Module):
    """A vector for every token, read from where it is stored when it is needed."""

    stored: Tensor

    def __init__(self, stored: Tensor, unpack: Callable[[Tensor], Tensor] = Tensor.float):
        """`stored` has a row for every token, and `unpack` makes vectors of some of them."""
        super().__init__()
        self.register_buffer("stored", stored, persistent=False)
        self.unpack = unpack

    def forward(self, tokens: Int64[Tensor, "*B"]) -> Float[Tensor, "*B D"]:
        vectors = self.unpack(self.stored[tokens.flatten()]).float()
        return vectors.view(*tokens.shape, -1)


class Screened(nn.Module):
    """The logits of a vocabulary: all of them in four bits, then those of the best again exactly.

    Four bits alone are off by some tenths, by which the best tokens would change places. What is
    left of that error is in tokens too unlikely to be drawn.
    """

    def __init__(self, coarse: Int4, exact: Table):
        super().__init__()
        self.coarse, self.exact = coarse, exact

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B V"]:
        rows = x.reshape(-1, x.shape[-1])
        logits = self.coarse(rows.bfloat16()).float()
        for row, found in zip(rows, logits, strict=True):
            best = find_best(found, EXACT)
            found[best] = self.exact(best) @ row.float()
        result: Tensor = logits.view(*x.shape[:-1], -1)
        return result


def find_best(values: Float[Tensor, " V"], count: int) -> Int64[Tensor, " N"]:
    """The places of the largest values, in no order; about ten times as fast as `topk`, since all
    are in the panels with the largest maxima.
    """
    if len(values) <= count * PANEL or len(values) % PANEL:
        return values.topk(min(count, len(values)), sorted=False).indices
    panels = values.view(-1, PANEL)
    chosen = panels.amax(1).topk(count, sorted=False).indices
    within = panels[chosen].flatten().topk(count, sorted=False).indices
    return chosen[within // PANEL] * PANEL + within % PANEL


class Groups(NamedTuple):
    """Weights `scale * (integer - 8) + centre`, in groups of 32 inputs."""

    integers: UInt8[Tensor, "O I"]
    scale: Float[Tensor, "O G"]
    centre: Float[Tensor, "O G"]


def pack_int8(outputs: int, inputs: int, read: Callable[[slice], Float[Tensor, "R I"]]) -> Int8:
    """The nearest int8 weights; `read` gives some of the rows."""
    weight = torch.empty(outputs, inputs, dtype=torch.int8)
    scale = torch.empty(outputs, dtype=torch.bfloat16)
    for part in _parts(outputs, inputs):
        rows = read(part).float()
        # rounded before it divides: the product multiplies by what it is in bfloat16
        scale[part] = (rows.abs().amax(1) / 127).clamp(min=1e-30)
        scaled = rows / scale[part, None].float()
        weight[part] = scaled.round_().clamp_(-127, 127)
    return Int8(weight, scale)


def pack_groups(outputs: int, inputs: int, read: Callable[[slice], Groups]) -> Int4:
    """Weights that are in groups of four bits already; `read` gives some of the rows.

    `outputs` must be a multiple of `PANEL`, `inputs` of `GROUP`.
    """
    integers = torch.empty(outputs, inputs // 2, dtype=torch.uint8)
    grid = torch.empty(inputs // GROUP, outputs, 2, dtype=torch.bfloat16)
    for part in _parts(outputs, inputs):
        groups = read(part)
        integers[part] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
            groups.integers.int(), 1
        )
        grid[:, part, 0], grid[:, part, 1] = groups.scale.T, groups.centre.T
    return Int4(integers, grid)


def pack_int4(outputs: int, inputs: int, read: Callable[[slice], Float[Tensor, "R I"]]) -> Int4:
    """The nearest weights in four bits, between the least and the largest of each group."""
    return pack_groups(outputs, inputs, lambda part: nearest_groups(read(part)))


def nearest_groups(weight: Float[Tensor, "O I"]) -> Groups:
    """Sixteen steps from the least to the largest of each group."""
    groups = weight.float().unflatten(1, (-1, GROUP))  # type: ignore[no-untyped-call]
    least, largest = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    # rounded before they are used: the product has them in bfloat16
    scale = ((largest - least) / 15).clamp(min=1e-30).bfloat16().float()
    centre = (least + 8 * scale).bfloat16().float()
    integers = ((groups - centre) / scale + 8).round_().clamp_(0, 15).to(torch.uint8)
    return Groups(integers.flatten(1), scale[..., 0], centre[..., 0])


def join(products: Sequence[Int8 | Int4]) -> PackedLinear:
    """Products of the same input as one layer; neighbours of one kind become one product."""
    joined: list[Int8 | Int4] = []
    for product in products:
        last = joined[-1] if joined else None
        if isinstance(last, Int8) and isinstance(product, Int8):
            weight = torch.cat([last.weight, product.weight])
            joined[-1] = Int8(weight, torch.cat([last.scale, product.scale]))
        elif isinstance(last, Int4) and isinstance(product, Int4):
            integers = torch.cat([last.integers, product.integers])
            joined[-1] = Int4(integers, torch.cat([last.grid, product.grid], 1))
        else:
            joined.append(product)
    return PackedLinear(joined)


def _parts(outputs: int, inputs: int) -> Sequence[slice]:
    """Rows to pack at a time."""
    step = max(PANEL, AT_ONCE // inputs // PANEL * PANEL)
    return [slice(begin, min(begin + step, outputs)) for begin in range(0, outputs, step)]

"""Linear layers whose weights stay in few bits, on a CPU.

A token of an answer reads every weight once and computes little with it, so time is memory traffic:
bytes are read faster than bfloat16, and four bits faster than bytes. Sums are in float32.

- `Int8`: one scale and one least value for every input of a panel of outputs.
- `Int8Rows`: one scale for each output, where torch has no kernel for the other (no x86 processor).
- `Int4`: one scale and one centre for every 32 inputs of an output, as GGUF's Q4_0, Q4_1 and Q4_K,
  whose integers it takes over.
- `Screened`: a vocabulary in four bits, whose best tokens are computed again from exact rows.

Many rows at once, such as a prompt, are multiplied with the weights unpacked to bfloat16, some of
them at a time: they stay in the cache, and no whole matrix is ever unpacked.

Dimensions: M rows, I inputs, O outputs, P panels of outputs, G groups of inputs, V vocabulary,
D width, N tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import BFloat16, Float, Int32, Int64, UInt8
from jaxtyping import Int8 as Integers8
from torch import Tensor, nn

GROUP = 32
"""Inputs that share a scale in `Int4`."""
PANEL = 64
"""Outputs that the four-bit product packs together; also divides what it computes at a time."""
WIDEST = 320
"""Outputs of a panel of `Int8`, at most: their sums stay in the registers of AVX-512."""
SCALES = 8
"""Bytes of scale and least value of an input of a panel."""
EXACT = 256
"""Tokens of a screened vocabulary that are computed exactly."""
AT_ONCE = 1 << 19
"""Weights that are packed at a time: they and what is computed of them stay in a cache."""


class Int8(nn.Module):
    """A product with int8 weights, `scale * byte + least`.

    It is the sum of the rows of a table, one row for each input, weighted by the inputs: what
    torch's kernel for bags of embeddings computes, at twice the speed of its int8 product (weights
    from memory, one core of a Xeon: 10.5 and 5.7 billion a second). A panel of outputs is a bag.
    """

    few: ClassVar[int] = 48
    """Rows up to which this is faster than unpacking the weights: 32 rows of 2,048 to 16,384 take
    40 ms and 55 unpacked, 64 take 76 and 71 (two cores of a Xeon with AMX).
    """
    table: UInt8[Tensor, "inputs bytes"]

    def __init__(self, table: UInt8[Tensor, "inputs bytes"], inputs: int):
        """As `pack_int8` makes it: panel by panel, a row for each input, which ends with scale and
        least value in float32.
        """
        super().__init__()
        self.inputs = inputs
        self.panels, self.panel = table.shape[0] // inputs, table.shape[1] - SCALES
        self.register_buffer("table", table, persistent=False)

    def multiply(self, x: Float[Tensor, "M I"]) -> Float[Tensor, "M O"]:
        rows = x.shape[0]
        chosen, bags = _bags(self.inputs, self.panels, rows)
        # the rows of x one after another for each panel, which so is read from memory once
        weights = x.float().expand(self.panels, rows, self.inputs).reshape(-1)
        sums: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            self.table, chosen, bags, False, 0, False, weights, None, True
        )
        return sums.view(self.panels, rows, -1).transpose(0, 1).reshape(rows, -1)

    def multiply_one(self, x: Float[Tensor, " I"]) -> Float[Tensor, " O"]:
        """The same of one row, with fewer calls."""
        chosen, bags = _bags(self.inputs, self.panels, 1)
        weights = x.expand(self.panels, self.inputs).reshape(-1)
        sums: Tensor = torch.ops.quantized.embedding_bag_byte_rowwise_offsets(
            self.table, chosen, bags, False, 0, False, weights, None, True
        )
        return sums.view(-1)

    def unpack(self) -> Iterator[BFloat16[Tensor, "I P"]]:
        """The weights in bfloat16, of some outputs at a time."""
        for table in self.table.view(self.panels, self.inputs, -1):
            scale, least = table[:, self.panel :].contiguous().view(torch.float32).chunk(2, 1)
            yield torch.addcmul(least, table[:, : self.panel].float(), scale).bfloat16()


@cache
def _bags(inputs: int, panels: int, rows: int) -> tuple[Int32[Tensor, " N"], Int32[Tensor, " B"]]:
    """The rows of a table that are summed, panel by panel for each row of inputs, and where each
    sum begins.
    """
    chosen = torch.arange(panels * inputs, dtype=torch.int32).view(panels, 1, inputs)
    bags = torch.arange(0, (panels * rows + 1) * inputs, inputs, dtype=torch.int32)
    return chosen.expand(panels, rows, inputs).reshape(-1), bags


class Int8Rows(nn.Module):
    """A product with int8 weights, by torch's kernel for that."""

    few: ClassVar[int] = 16
    weight: Integers8[Tensor, "O I"]
    scale: BFloat16[Tensor, " O"]

    def __init__(self, weight: Integers8[Tensor, "O I"], scale: BFloat16[Tensor, " O"]):
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def multiply(self, x: Float[Tensor, "M I"]) -> Float[Tensor, "M O"]:
        product: Tensor = torch._weight_int8pack_mm(x.bfloat16(), self.weight, self.scale)
        return product.float()

    def multiply_one(self, x: Float[Tensor, " I"]) -> Float[Tensor, " O"]:
        return self.multiply(x[None])[0]

    def unpack(self) -> Iterator[BFloat16[Tensor, "I P"]]:
        """As of `Int8`."""
        for part in _parts(*self.weight.shape):
            yield self.weight[part].to(torch.bfloat16).mul_(self.scale[part, None]).T


class Int4(nn.Module):
    """A product with weights `scale * (integer - 8) + centre`, integers from 0 to 15."""

    few: ClassVar[int] = 64
    """As of `Int8`: 64 rows take 42 ms and 63 unpacked, 264 take 164 and 105."""
    integers: UInt8[Tensor, "O half"]
    grid: BFloat16[Tensor, "G O 2"]

    def __init__(self, integers: UInt8[Tensor, "O half"], grid: BFloat16[Tensor, "G O 2"]):
        """As `pack_groups` makes them: `grid` has scales and centres."""
        super().__init__()
        self.register_buffer("integers", integers, persistent=False)
        self.register_buffer("grid", grid, persistent=False)

    def multiply(self, x: Float[Tensor, "M I"]) -> Float[Tensor, "M O"]:
        product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.bfloat16(), self.integers, GROUP, self.grid
        )
        return product.float()

    def multiply_one(self, x: Float[Tensor, " I"]) -> Float[Tensor, " O"]:
        return self.multiply(x[None])[0]

    def unpack(self) -> Iterator[BFloat16[Tensor, "I P"]]:
        """As of `Int8`."""
        outputs, half = self.integers.shape
        for part in _parts(outputs, 2 * half):
            scale, centre = self.grid[:, part].float().permute(2, 0, 1).contiguous()
            groups = _unpack_integers(self.integers[part]).unflatten(0, (-1, GROUP))  # (G, 32, P)
            least = centre - 8 * scale
            weights = torch.addcmul(least[:, None], groups, scale[:, None])
            yield weights.flatten(0, 1).bfloat16()


def _unpack_integers(packed: UInt8[Tensor, "P half"]) -> Float[Tensor, "I P"]:
    """The integers of whole panels."""
    panels, inputs = packed.shape[0] // PANEL, 2 * packed.shape[1]
    integers = torch.empty(inputs, panels, PANEL)
    if _packs_by_input():
        by_input = packed.view(panels, inputs, PANEL // 2).transpose(0, 1)
        integers[..., : PANEL // 2] = by_input & 15
        integers[..., PANEL // 2 :] = by_input >> 4
    else:
        whole = packed.view(panels, -1)
        halves = torch.cat([whole & 15, whole >> 4], 1)
        found = halves[:, _places(inputs)].view(panels, PANEL, inputs)
        integers.copy_(found.permute(2, 0, 1))
    return integers.flatten(1)


@cache
def _packs_by_input() -> bool:
    """Whether a panel is packed as on a processor with AVX-512: input after input, the first half
    of its outputs in the low halves of bytes.
    """
    places = torch.arange(PANEL * GROUP).view(2, GROUP, PANEL // 2).transpose(1, 2)
    return torch.equal(places.flatten(), _places(GROUP))


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


Product = Int8 | Int8Rows | Int4


class PackedLinear(nn.Module):
    """Linear layers of one input, as one: their outputs in a row."""

    def __init__(self, products: Sequence[Product]):
        super().__init__()
        self.products = nn.ModuleList(products)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        rows = x.reshape(-1, x.shape[-1])
        found = [_multiply(product, rows) for product in self.products]  # type: ignore[arg-type]
        whole = found[0] if len(found) == 1 else torch.cat(found, 1)
        return whole.to(x.dtype).view(*x.shape[:-1], -1)


def _multiply(product: Product, rows: Float[Tensor, "M I"]) -> Float[Tensor, "M O"]:
    if rows.shape[0] <= product.few:
        return product.multiply(rows)
    narrow = rows.bfloat16()
    return torch.cat([narrow @ part for part in product.unpack()], 1).float()


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
        logits = self.coarse.multiply(rows)
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


def pack_int8(
    outputs: int, inputs: int, read: Callable[[slice], Float[Tensor, "R I"]]
) -> Int8 | Int8Rows:
    """The nearest int8 weights; `read` gives some of the rows."""
    if not _has_bags():
        return pack_int8_rows(outputs, inputs, read)
    panel = _panel(outputs)
    table = torch.empty(outputs // panel, inputs, panel + SCALES, dtype=torch.uint8)
    for part in _parts(outputs, inputs, panel):
        groups = read(part).float().view(-1, panel, inputs)
        least, largest = groups.amin(1), groups.amax(1)
        scale = ((largest - least) / 255).clamp_(min=1e-30)
        bytes_ = ((groups - least[:, None]) / scale[:, None]).round_().clamp_(0, 255)
        packed = table[part.start // panel : part.stop // panel]
        packed[..., :panel] = bytes_.to(torch.uint8).transpose(1, 2)
        packed[..., panel:] = torch.stack([scale, least], 2).view(torch.uint8)
    return Int8(table.view(-1, panel + SCALES), inputs)


def _has_bags() -> bool:
    """Whether torch has compiled kernels for bags of embeddings in bytes."""
    return "fbgemm" in torch.backends.quantized.supported_engines


def _panel(outputs: int) -> int:
    """Outputs of a panel: the most full registers that divide all, if there is such a number."""
    fitting = [size for size in range(16, WIDEST + 1, 16) if outputs % size == 0]
    return max(fitting, default=outputs)


def pack_int8_rows(
    outputs: int, inputs: int, read: Callable[[slice], Float[Tensor, "R I"]]
) -> Int8Rows:
    """As `pack_int8`, with a scale for each output."""
    weight = torch.empty(outputs, inputs, dtype=torch.int8)
    scale = torch.empty(outputs, dtype=torch.bfloat16)
    for part in _parts(outputs, inputs):
        rows = read(part).float()
        # rounded before it divides: the product multiplies by what it is in bfloat16
        scale[part] = (rows.abs().amax(1) / 127).clamp(min=1e-30)
        scaled = rows / scale[part, None].float()
        weight[part] = scaled.round_().clamp_(-127, 127)
    return Int8Rows(weight, scale)


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


def join(products: Sequence[Product]) -> PackedLinear:
    """Products of the same input as one layer; neighbours of one kind become one product."""
    joined: list[Product] = []
    for product in products:
        both = _both(joined[-1], product) if joined else None
        if both is None:
            joined.append(product)
        else:
            joined[-1] = both
    return PackedLinear(joined)


def _both(first: Product, second: Product) -> Product | None:
    """Two products as one; None where they are of different kinds."""
    if isinstance(first, Int8) and isinstance(second, Int8) and first.panel == second.panel:
        return Int8(torch.cat([first.table, second.table]), first.inputs)
    if isinstance(first, Int8Rows) and isinstance(second, Int8Rows):
        weight = torch.cat([first.weight, second.weight])
        return Int8Rows(weight, torch.cat([first.scale, second.scale]))
    if isinstance(first, Int4) and isinstance(second, Int4):
        integers = torch.cat([first.integers, second.integers])
        return Int4(integers, torch.cat([first.grid, second.grid], 1))
    return None


def _parts(outputs: int, inputs: int, panel: int = PANEL) -> Sequence[slice]:
    """Rows to pack at a time."""
    step = max(panel, AT_ONCE // inputs // panel * panel)
    return [slice(begin, min(begin + step, outputs)) for begin in range(0, outputs, step)]

"""A Gemma whose weights stay in few bits, for quick answers on a CPU.

`triptych.nn.packed` has the products. Queries, keys and values are one product, as are gate and up.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from triptych.nn.norm import RmsNorm
from triptych.nn.packed import (
    GROUP,
    PANEL,
    Groups,
    PackedLinear,
    Product,
    Screened,
    Table,
    join,
    nearest_groups,
    pack_groups,
    pack_int4,
    pack_int8,
)
from triptych.systems.gemma.model import Gemma, GemmaBlock
from triptych.systems.gemma.one_token import OneToken

Bits = Literal[4, 8]
"""The most bits of a weight."""
LAYERS = (
    *(f"attn.{x}_proj.weight" for x in ("q", "k", "v", "out")),
    *(f"mlp.{x}.weight" for x in ("gate", "up", "down")),
)
"""The matrices of a block."""


class Stored(NamedTuple):
    """A matrix as a file has it, row by row."""

    rows: Tensor
    unpack: Callable[[Tensor], Float[Tensor, "R I"]] = Tensor.float
    """Some of the rows as numbers."""
    groups: Callable[[Tensor], Groups] | None = None
    """The same as groups of four bits, where the file has them."""
    coarse: Callable[[Tensor], Groups] | None = None
    """The same roughly, if there is a shorter way than `nearest_groups`."""


def pack(model: Gemma, matrices: Mapping[str, Stored], bits: Bits) -> None:
    """Replace the layers of a model by ones with these weights, in at most so many bits.

    Four bits that the file has are kept as they are. Other weights become int8 with a scale for
    each output, or with 4 `bits` groups of 32. The vocabulary is in four bits, its best tokens are
    exact, and so are the vectors of the tokens that are read.

    Raises:
        ValueError: a matrix is missing, unknown or of another shape.
    """
    wanted = {f"blocks.{n}.{name}" for n in range(model.config.layers) for name in LAYERS}
    wanted |= {"token.weight"} if model.config.tied else {"token.weight", "head.weight"}
    shapes = {name: tuple(model.get_parameter(name).shape) for name in wanted}
    require_fit(matrices, shapes)

    def product(name: str) -> Product:
        (outputs, inputs), (rows, unpack, groups, _) = shapes[name], matrices[name]
        if outputs % PANEL or inputs % GROUP or (bits == 8 and groups is None):
            return pack_int8(outputs, inputs, lambda part: unpack(rows[part]))
        if groups is not None:
            return pack_groups(outputs, inputs, lambda part: groups(rows[part]))
        return pack_int4(outputs, inputs, lambda part: unpack(rows[part]))

    for number, block in enumerate(model.blocks):
        at = f"blocks.{number}."
        assert isinstance(block, GemmaBlock)
        block.attn.take(
            join([product(f"{at}attn.{x}_proj.weight") for x in "qkv"]),
            join([product(f"{at}attn.out_proj.weight")]),
        )
        block.mlp.take(
            join([product(f"{at}mlp.{x}.weight") for x in ("gate", "up")]),
            join([product(f"{at}mlp.down.weight")]),
        )
    model.take(*_vocabulary(model, matrices))


def pack_state(
    model: Gemma, state: Mapping[str, Tensor], bits: Bits, prefix: str = ""
) -> dict[str, Tensor]:
    """As `pack`, with weights under our names; returns the others, those below `prefix` in float32.

    Raises:
        ValueError: as `pack`.
    """
    inner = {n.removeprefix(prefix): x for n, x in state.items() if n.startswith(prefix)}
    matrices = {name: Stored(x) for name, x in inner.items() if x.ndim == 2}
    pack(model, matrices, bits)
    kept = {prefix + name: x.float() for name, x in inner.items() if name not in matrices}
    return {name: x for name, x in state.items() if not name.startswith(prefix)} | kept


def finish(model: Gemma) -> None:
    """Save calls and sums at every token, once the weights of the norms are there."""
    for module in model.modules():
        if isinstance(module, RmsNorm):
            module.fold()
    model.take_blocks(OneToken(model.config, list(model.blocks)))  # type: ignore[arg-type]


def require_fit(found: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError unless there is a matrix for each name, and none else."""
    faults = [f"there is no {name}" for name in shapes if name not in found]
    faults += [f"{name} is unknown" for name in found if name not in shapes]
    for name, (outputs, inputs) in shapes.items():
        if name in found and not faults:
            stored = found[name]
            first = stored.unpack(stored.rows[:1])
            if (len(stored.rows), first.shape[1]) != (outputs, inputs):
                theirs = (len(stored.rows), first.shape[1])
                faults.append(f"{name} is {theirs}, not {(outputs, inputs)}")
    if faults:
        raise ValueError(f"the weights do not fit the model: {'; '.join(faults[:5])}")


def _vocabulary(model: Gemma, matrices: Mapping[str, Stored]) -> tuple[nn.Module, nn.Module]:
    """The vectors of tokens, and the layer of the logits."""
    read = matrices["token.weight"]
    scored = read if model.config.tied else matrices["head.weight"]
    table, exact = (Table(each.rows, each.unpack) for each in (read, scored))
    outputs, inputs = len(scored.rows), model.config.width
    if outputs % PANEL or inputs % GROUP:
        rows = pack_int8(outputs, inputs, lambda part: scored.unpack(scored.rows[part]))
        return table, PackedLinear([rows])
    coarse = scored.groups or scored.coarse or (lambda rows: nearest_groups(scored.unpack(rows)))
    return table, Screened(
        pack_groups(outputs, inputs, lambda part: coarse(scored.rows[part])), exact
    )

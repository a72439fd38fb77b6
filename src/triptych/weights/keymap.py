"""Reversible renaming of checkpoint tensors by tables of rules.

A rule maps a published name to one of ours. `{}` matches a layer number, which is kept; other
numbers match themselves. A tensor with several names of ours is split along its first axis, into
equal parts or into `sizes`. A form reshapes it. Every tensor must match exactly one rule, and no
two tensors may get the same name. Attention stored head by head, the rows of all parts of one head
after those of another, is split in a `stride` of as many rows as a head has.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")
SLOT = re.compile(rf"\{{\}}|{NUMBER.pattern}")


class Form(NamedTuple):
    """A conversion of shapes: theirs to ours, and back."""

    convert: Callable[[Tensor], Tensor]
    export: Callable[[Tensor], Tensor]


FORMS = {
    "": Form(lambda x: x, lambda x: x),
    "transposed": Form(lambda x: x.T.contiguous(), lambda x: x.T.contiguous()),
    "one row": Form(lambda x: x.squeeze(0), lambda x: x.unsqueeze(0)),  # (1, ...)
    "one cell": Form(lambda x: x.reshape(-1), lambda x: x.reshape(1, 1, -1)),  # (1, 1, D)
    "grid": Form(  # (1, side, side, D)
        lambda x: x.flatten(0, 2), lambda x: x.unflatten(0, (1, *[math.isqrt(len(x))] * 2))
    ),
    "1 wide": Form(lambda x: x.squeeze(2), lambda x: x[:, :, None]),  # (O, I, 1)
    "1 x 1": Form(lambda x: x.flatten(1), lambda x: x[:, :, None, None]),  # (O, I, 1, 1)
    "plus one": Form(lambda x: x - 1, lambda x: x + 1),
    "one number": Form(lambda x: x.reshape(()), lambda x: x.reshape(1)),  # (1,)
}


class Rule(NamedTuple):
    theirs: str
    ours: tuple[str, ...]  # empty: dropped, since it is recomputed here
    sizes: tuple[int, ...] = ()  # rows of each part, when they differ
    form: str = ""  # a key of FORMS
    stride: int = 0  # rows that each part has in turn; 0: the parts follow one another


def rename(theirs: str, ours: str, form: str = "") -> Rule:
    return Rule(theirs, (ours,), form=form)


def split(
    theirs: str, *ours: str, sizes: Sequence[int] = (), form: str = "", stride: int = 0
) -> Rule:
    return Rule(theirs, ours, tuple(sizes), form, stride)


def drop(theirs: str) -> Rule:
    return Rule(theirs, ())


def under(rules: Sequence[Rule], theirs: str = "", ours: str = "") -> list[Rule]:
    """The same rules for a module nested below a prefix on either side."""
    return [
        rule._replace(theirs=theirs + rule.theirs, ours=tuple(ours + name for name in rule.ours))
        for rule in rules
    ]


def convert(state: dict[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Rename tensors from published names to ours.

    Raises:
        ValueError: a tensor matches no rule or several, cannot be split as its rule says, or gets
            the name of another.
    """
    table = _table((rule.theirs, rule) for rule in rules)
    converted: dict[str, Tensor] = {}
    for key, tensor in state.items():
        rule, numbers = _claim(key, table)
        names = [name.format(*numbers) for name in rule.ours]
        try:
            parts = _parts(key, FORMS[rule.form].convert(tensor), rule)
        except (RuntimeError, IndexError) as error:
            raise ValueError(f"{key} has the shape {tuple(tensor.shape)}, unlike others") from error
        for name, part in zip(names, parts, strict=True):
            if name in converted:
                raise ValueError(f"two tensors become {name}; the second of them is {key}")
            converted[name] = part
    return converted


def export(state: dict[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Rename tensors from ours to published names: the inverse of `convert`, without the dropped.

    Raises:
        ValueError: a tensor matches no rule or several, part of a split tensor is missing, or two
            tensors get the same name.
    """
    table = _table((name, rule) for rule in rules for name in rule.ours)
    exported: dict[str, Tensor] = {}
    made_of: dict[str, list[str]] = {}
    for key in state:
        rule, numbers = _claim(key, table)
        name, parts = rule.theirs.format(*numbers), [part.format(*numbers) for part in rule.ours]
        if made_of.setdefault(name, parts) != parts:
            raise ValueError(f"two tensors become {name}; the second of them is {key}")
        if name in exported:
            continue
        if missing := [part for part in parts if part not in state]:
            raise ValueError(f"{name} is a stack of {', '.join(parts)}, but there is no {missing}")
        tensor = _join([state[p] for p in parts], rule) if parts else state[key]
        exported[name] = FORMS[rule.form].export(tensor)
    return exported


def counterparts(names: Iterable[str], rules: Sequence[Rule]) -> dict[str, tuple[str, ...]]:
    """The published names of our tensors, each with all of ours that it is made of.

    Raises:
        ValueError: a name matches no rule or several.
    """
    table = _table((name, rule) for rule in rules for name in rule.ours)
    published: dict[str, tuple[str, ...]] = {}
    for key in names:
        rule, numbers = _claim(key, table)
        parts = tuple(part.format(*numbers) for part in rule.ours)
        published[rule.theirs.format(*numbers)] = parts
    return published


def fill(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load tensors under our names into a module; none may be missing or left over.

    Raises:
        ValueError: which tensors are missing, unknown or of another shape.
    """
    own = module.state_dict()
    faults = [f"there is no {name}" for name in own if name not in state]
    faults += [f"{name} is unknown" for name in state if name not in own]
    faults += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(f"the weights do not fit the model: {'; '.join(faults[:5])}{more}")
    # a module on the meta device takes the tensors themselves
    module.load_state_dict(state, assign=any(tensor.is_meta for tensor in own.values()))


Table = dict[str, list[tuple[str, Rule]]]
"""Rules by name with all numbers replaced by `{}`, since some rules name a layer literally."""


def _table(pairs: Iterable[tuple[str, Rule]]) -> Table:
    table: Table = {}
    for name, rule in pairs:
        rules = table.setdefault(NUMBER.sub("{}", name), [])
        if name in [other for other, _ in rules]:
            raise ValueError(f"two rules claim {name}")
        rules.append((name, rule))
    return table


def _claim(key: str, table: Table) -> tuple[Rule, list[str]]:
    """The one rule that matches a name, and the layer numbers in its slots."""
    matches = []
    numbers = NUMBER.findall(key)
    for name, rule in table.get(NUMBER.sub("{}", key), []):
        slots = list(zip(SLOT.findall(name), numbers, strict=True))
        if all(slot in ("{}", number) for slot, number in slots):
            matches.append((rule, [number for slot, number in slots if slot == "{}"], name))
    if not matches:
        raise ValueError(f"no rule claims {key}: it belongs to another kind of model, or size")
    if len(matches) > 1:
        raise ValueError(f"two rules claim {key}: {matches[0][2]} and {matches[1][2]}")
    return matches[0][:2]


def _parts(key: str, tensor: Tensor, rule: Rule) -> Sequence[Tensor]:
    count = len(rule.ours)
    if count < 2:
        return [tensor] * count
    sizes = rule.sizes or (tensor.shape[0] // count,) * count
    if len(sizes) != count or sum(sizes) != tensor.shape[0]:
        raise ValueError(f"{key} has {tensor.shape[0]} rows, which are not {count} parts: {sizes}")
    if rule.stride:
        if tensor.shape[0] % (count * rule.stride):
            raise ValueError(
                f"{key} has {tensor.shape[0]} rows, which are not heads of {rule.stride}"
            )
        heads = tensor.unflatten(0, (-1, count, rule.stride)).transpose(0, 1)  # type: ignore[no-untyped-call]
        return list(heads.flatten(1, 2))
    parts: tuple[Tensor, ...] = tensor.split(list(sizes))
    return parts


def _join(parts: list[Tensor], rule: Rule) -> Tensor:
    """The inverse of `_parts`."""
    if len(parts) == 1:
        return parts[0]
    if rule.stride:
        heads: Tensor = torch.stack(parts).unflatten(1, (-1, rule.stride))  # type: ignore[no-untyped-call]
        return heads.transpose(0, 1).flatten(0, 2)  # from (parts, heads, rows, ...)
    return torch.cat(parts)

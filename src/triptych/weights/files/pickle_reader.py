"""A pickle reader that imports and calls nothing.

A pickle is a program for a stack machine. Python's reader runs it, and it can call any function.
This one builds containers, numbers, strings and references to tensors; every other object becomes
an `Opaque` with the name of its class, which is never imported.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pickletools import genops
from typing import Any, BinaryIO

from triptych.weights.files.shapes import MAX_VALUES, read_shape

MAX_OPERATIONS = 1_000_000  # a checkpoint has about forty per tensor
DAMAGED = "its pickle is damaged or cut short. Fetch it again"

HARMLESS = {
    *("argparse.Namespace", "types.SimpleNamespace", "uuid.UUID", "_codecs.encode"),
    *("collections.OrderedDict", "collections.defaultdict", "collections.Counter"),
    *("collections.deque", "copyreg._reconstructor", "copy_reg._reconstructor"),
    *("datetime.datetime", "datetime.date", "datetime.time", "datetime.timedelta"),
    *("pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath"),
    *("pathlib._local.PosixPath", "pathlib._local.WindowsPath", "typing.Any"),
    *(f"{python}.{kind}" for python in ("builtins", "__builtin__") for kind in (
        "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list",
        "object", "set", "slice", "str", "tuple", "unicode", "long",
    )),
}  # fmt: skip
"""What training saves beside weights. Any other name in Python's standard library is refused."""

STANDARD = {*sys.stdlib_module_names, "__builtin__", "copy_reg", "commands", "posix", "nt"}


class Refused(ValueError):
    """What a pickle holds that is not read, in words."""


@dataclass(frozen=True, eq=False)
class Global:
    """The name of a function or class."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False)
class Opaque:
    """An object of an unknown class, in place of which only the name is kept."""

    name: str


@dataclass(frozen=True, eq=False)
class Scripted:
    """A TorchScript module as its attributes."""

    attributes: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StorageRef:
    """A storage outside the pickle, which tensors share."""

    key: str
    kind: str  # such as FloatStorage
    size: int  # in elements


@dataclass(frozen=True, eq=False)
class TensorRef:
    """A tensor as a view of a storage; offset and strides in elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str = ""  # if it is not the storage's


@dataclass
class _Machine:
    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)  # stacks under the marks
    memo: dict[int, Any] = field(default_factory=dict)
    copied: int = 0  # items that calls and states may have copied

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items


def _operations(stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    try:
        for count, (opcode, argument, _) in enumerate(genops(stream)):
            if count > MAX_OPERATIONS:
                break
            yield opcode.name, argument
    except Exception as error:  # of many kinds, from the bytes of a damaged file
        raise Refused(DAMAGED) from error


def read_pickle(stream: BinaryIO) -> Any:
    """Interpret one pickle; the stream is left at its end.

    Raises:
        ValueError: it is damaged, or names a function of Python that weights do not need.
    """
    machine = _Machine()
    try:
        for opcode, argument in _operations(stream):
            if opcode == "STOP":
                return machine.stack.pop()
            step = _STEPS.get(opcode)
            if step is None:
                raise Refused(f"its pickle uses {opcode}, which no checkpoint needs")
            step(machine, argument)
    except Refused:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Refused(DAMAGED) from error
    raise Refused(DAMAGED)


def _global(module: Any, name: Any) -> Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError
    reference = Global(module[:200], name[:200])
    if module.split(".")[0] in STANDARD and str(reference) not in HARMLESS:
        raise Refused(
            f"it names {reference}, with which a pickle can run programs: nothing of it was read. "
            "Do not open this file with other tools; get the weights as safetensors"
        )
    return reference


def _call(function: Any, arguments: Any) -> Any:
    """The result of a call: a container, a tensor, or an `Opaque`; nothing else is called."""
    if not isinstance(arguments, tuple):
        raise TypeError
    if isinstance(function, Global):
        if function.module.startswith("__torch__"):
            return Scripted()
        make = _KNOWN.get(str(function))
        return make(*arguments) if make else Opaque(str(function))
    return Opaque(function.name if isinstance(function, Opaque) else "no class")


def _dictionary(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    return {_key(key): value for key, value in (pairs.items() if type(pairs) is dict else pairs)}


def _key(key: Any) -> Any:
    """A key, if it is a simple one: nested tuples can take exponential time to hash."""
    simple = isinstance(key, str | int | float | bytes | None | Opaque | Global)
    return key if simple else Opaque("no name")


def _list(items: Any = (), *_: Any) -> list[Any]:
    return list(items) if isinstance(items, list | tuple) else []


def _storage(identity: Any) -> StorageRef:
    word, kind, key, _, size, *view = identity
    known = isinstance(kind, Global) and kind.module in ("torch", "torch.cuda", "torch.storage")
    if word != "storage" or not known or any(part is not None for part in view):
        raise Refused("it refers to numbers outside itself, or in a form no longer in use")
    if not isinstance(key, str) or not _is_count(size):
        raise TypeError
    return StorageRef(key, kind.name, size)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> TensorRef:
    if not isinstance(storage, StorageRef) or not _is_count(offset):
        raise TypeError
    try:
        sides = read_shape(shape)
    except ValueError as error:
        raise Refused(f"it {error}") from error
    return TensorRef(storage, offset, sides, _strides(strides))


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _: Any, hooks: Any, dtype: Any, *rest: Any
) -> TensorRef:
    return replace(_tensor(storage, offset, shape, strides), dtype=dtype.name)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _subclass(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    plain = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")
    if str(kind) not in plain or str(function) not in _TENSORS:
        return Opaque(str(kind) if isinstance(kind, Global) else "no class")
    return _call(function, arguments)


def _is_count(number: Any) -> bool:
    return type(number) is int and 0 <= number <= MAX_VALUES


def _strides(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or not all(map(_is_count, values)):
        raise Refused("it has a tensor whose strides are no whole numbers")
    return tuple(values)


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
_KNOWN = _TENSORS | {
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": lambda items=(): tuple(_list(items)),
    "torch.jit._pickle.restore_type_tag": _parameter,
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.defaultdict": lambda *_: {},
    **{f"torch.jit._pickle.build_{k}list": _list for k in ("int", "double", "bool", "tensor")},
    **{f"{p}.{k}": _list for p in ("builtins", "__builtin__") for k in ("set", "frozenset")},
}


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda m, _: m.push(value)


def _mark(m: _Machine, _: Any) -> None:
    m.below.append(m.stack)
    m.stack = []


def _pop(m: _Machine, _: Any) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.since_mark()


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    return lambda m, _: m.push(tuple(m.pop(count)))


def _from_mark(make: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    return lambda m, _: m.push(make(m.since_mark()))


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return _dictionary(list(zip(items[::2], items[1::2], strict=True)))


def _extend(m: _Machine, items: list[Any]) -> None:
    if isinstance(m.stack[-1], list):
        m.stack[-1].extend(items)


def _update(m: _Machine, items: list[Any]) -> None:
    if isinstance(m.stack[-1], dict):
        m.stack[-1].update(_pairs(items))


def _memoise(m: _Machine, index: Any) -> None:
    m.memo[len(m.memo) if index is None else index] = m.stack[-1]


def _count_items(m: _Machine, *values: Any) -> None:
    """Stop where one long list is copied again and again."""
    m.copied += sum(len(value) for value in values if isinstance(value, dict | list | tuple))
    if m.copied > MAX_OPERATIONS:
        raise Refused(DAMAGED)


def _reduce(m: _Machine, _: Any) -> None:
    function, arguments = m.pop(2)
    _count_items(m, *arguments)
    m.push(_call(function, arguments))


def _reduce_without_keywords(m: _Machine, _: Any) -> None:
    m.pop(1)
    _reduce(m, None)


def _instance(m: _Machine, argument: str) -> None:
    kind, arguments = _global(*argument.split(" ", 1)), tuple(m.since_mark())
    _count_items(m, *arguments)
    m.push(_call(kind, arguments))


def _object(m: _Machine, _: Any) -> None:
    kind, *arguments = m.since_mark()
    _count_items(m, *arguments)
    m.push(_call(kind, tuple(arguments)))


def _build(m: _Machine, _: Any) -> None:
    (state,) = m.pop(1)
    if isinstance(m.stack[-1], Scripted):  # any other object is not made, and needs no state
        _count_items(m, state)
        m.stack[-1].attributes.update(state)


_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _Machine.push
    ),
    **dict.fromkeys(("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.push),
    **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _Machine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _Machine.push),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), lambda m, _: m.push([])),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_TUPLE": _constant(()),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": _from_mark(tuple),
    "LIST": _from_mark(list),
    "FROZENSET": _from_mark(list),
    "DICT": _from_mark(_pairs),
    "APPEND": lambda m, _: _extend(m, m.pop(1)),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: _extend(m, m.since_mark())),
    "SETITEM": lambda m, _: _update(m, m.pop(2)),
    "SETITEMS": lambda m, _: _update(m, m.since_mark()),
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": lambda m, _: m.since_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _memoise),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, i: m.push(m.memo[i])),
    "GLOBAL": lambda m, name: m.push(_global(*name.split(" ", 1))),
    "STACK_GLOBAL": lambda m, _: m.push(_global(*m.pop(2))),
    "INST": _instance,
    "OBJ": _object,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _reduce_without_keywords,
    "BUILD": _build,
    "BINPERSID": lambda m, _: m.push(_storage(*m.pop(1))),
}

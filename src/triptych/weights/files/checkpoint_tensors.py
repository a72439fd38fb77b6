"""Which tensors of an unpickled checkpoint are the weights, and their names."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from triptych.weights.files.pickle_reader import Opaque, Scripted, TensorRef

MAX_OBJECTS = 200_000
MAX_DEPTH = 32
MAX_NAME = 500  # characters


def named_tensors(root: Any) -> dict[str, TensorRef]:
    """The weights of a checkpoint by name; the keys of nested dictionaries are joined with dots.

    Raises:
        ValueError: there are none, or one of them is an object of an unknown class.
    """
    tensors: dict[str, TensorRef] = {}
    waiting: list[tuple[str, Any, int]] = [("", _find_state(root), 0)]
    for _ in range(MAX_OBJECTS):
        if not waiting:
            break
        name, value, depth = waiting.pop()
        if isinstance(value, TensorRef):
            if (name or "tensor") in tensors:
                raise ValueError(f"it has two tensors of the name {name[:200]}")
            tensors[name or "tensor"] = value
        elif isinstance(value, Opaque):
            raise ValueError(
                f"{name[:200] or 'it'} is an object of {value.name}, not a tensor. Where that "
                "class is at hand, save the model's state_dict() and use that file"
            )
        elif (children := _children(value)) is not None:
            if depth == MAX_DEPTH:
                raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
            below = [(_join_name(name, key), child, depth + 1) for key, child in children]
            waiting += reversed(below)
            if len(waiting) > MAX_OBJECTS:
                break
    if waiting:
        raise ValueError(f"it holds more than {MAX_OBJECTS:,} objects")
    if not tensors:
        raise ValueError("it holds no tensors: it is something other than a model's weights")
    return tensors


def _find_state(root: Any) -> Any:
    """The weights of a training checkpoint, without its optimizer and settings."""
    if not isinstance(root, dict):
        return root
    for key in ("state_dict", "model_state_dict"):
        if isinstance(root.get(key), dict | Scripted):
            return root[key]
    if any(isinstance(value, TensorRef) for value in root.values()):
        return root
    left = iter(range(MAX_OBJECTS))
    groups = [k for k, value in root.items() if not _is_training(k) and _has_tensors(value, left)]
    if groups == ["model"]:
        return root["model"]
    return {key: root[key] for key in groups} or root


def _is_training(key: Any) -> bool:
    prefixes = ("optim", "lr", "sched", "scaler", "callbacks", "loops", "hyper", "args", "config")
    return isinstance(key, str) and key.startswith(prefixes)


def _has_tensors(value: Any, left: Iterator[int]) -> bool:
    """Whether a value contains a tensor, searching its first 10,000 entries while any are left."""
    waiting = [value]
    for _ in islice(left, 10_000):
        if not waiting:
            return False
        value = waiting.pop()
        if isinstance(value, TensorRef):
            return True
        waiting += [child for _, child in _children(value) or ()]
    return True


def _children(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Scripted):
        return list(value.attributes.items())
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else None


def _join_name(name: str, key: Any) -> str:
    named = isinstance(key, int) or (isinstance(key, str) and len(key) <= MAX_NAME)
    if not named or len(name) > MAX_NAME:
        raise ValueError(f"{name[:200] or 'it'} has a key that is no name")
    return f"{name}.{key}" if name else str(key)

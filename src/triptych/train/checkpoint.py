"""Atomic, verified checkpoints: one folder per step, tensors as safetensors, the rest as JSON.

A checkpoint is written to a temporary folder, each file synced, the manifest last, then renamed.
Only then are old ones removed, and never below two good ones. Whenever a process dies, the newest
folder that verifies is a state that training really had. The caller must hold the run's lock.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from triptych import atomic
from triptych.config import read_json, write_json
from triptych.train.journal import explain_write_errors
from triptych.weights.digests import file_digest
from triptych.weights.files.safetensors import write_safetensors, write_tensors

STEP = re.compile(r"step-(\d{6,})(-old-\d+)?$")  # old: renamed by a save that was killed then
MANIFEST = "manifest.json"


class Checkpoint(NamedTuple):
    step: int
    state: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]  # by file: model, ema, optimizer-d, ...


def save(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: dict[str, Any],
    keep: int,
) -> Path:
    """Write `run/step-NNNNNN`, and remove all but the newest `keep` checkpoints.

    Raises:
        FloatingPointError: a weight is not finite; nothing is written and older checkpoints stay.
        OSError: the disk is full or the folder cannot be written; older checkpoints stay.
    """
    for name, group in tensors.items():
        require_finite(name, group)

    def fill(folder: Path) -> None:
        for name, group in tensors.items():
            write_tensors(folder / f"{name}.safetensors", group)

    with explain_write_errors(run / f"step-{step:06d}"):
        remove_leftovers(run)
    return complete(run, step, fill, state, keep)


def complete(
    run: Path, step: int, fill: Callable[[Path], None], state: dict[str, Any], keep: int
) -> Path:
    """Write `run/step-NNNNNN` with the files of tensors that `fill` puts into a folder, and remove
    all but the newest `keep` checkpoints.

    Raises:
        OSError: as `save`.
    """
    final = run / f"step-{step:06d}"
    with explain_write_errors(final):
        with atomic.replace_folder(final) as folder:
            fill(folder)
            atomic.write_text(folder / "state.json", json.dumps(state))
            files = {p.name: _known_fingerprint(p) for p in sorted(folder.iterdir())}
            manifest = json.dumps({"step": step, "files": files}, indent=1)
            atomic.write_text(folder / MANIFEST, manifest)
        write_json(run / "latest", final.name)
        _prune(run, keep)
    return final


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what is wrong with newer ones."""
    faults: list[str] = []
    for path in reversed(steps(run)):
        fault = verify(path)
        if not fault:
            return path, faults
        faults.append(f"{path.name}: {fault}")
    return None, faults


def steps(run: Path) -> list[Path]:
    """Every checkpoint folder, oldest first, good or bad."""
    paths = run.iterdir() if run.is_dir() else ()
    folders = [path for path in paths if STEP.match(path.name) and path.is_dir()]
    return sorted(folders, key=lambda path: (_number(path), "-old-" not in path.name))


def verify(path: Path, known: bool = False) -> str:
    """What is wrong with a checkpoint; empty when nothing is. With `known`, files that this process
    has read before are read again only if they have changed since.
    """
    fingerprint_of = _known_fingerprint if known else _fingerprint
    try:
        manifest = read_json(path / MANIFEST)
        if manifest["step"] != _number(path):
            return f"{MANIFEST} is of step {manifest['step']}"
        for name, fingerprint in manifest["files"].items():
            size = (path / name).stat().st_size
            if size != fingerprint["size"]:
                return f"{name} has {size} bytes instead of {fingerprint['size']}"
            if fingerprint_of(path / name) != fingerprint:
                return f"{name} has changed since it was written"
        for name in sorted({p.name for p in path.iterdir()} - {MANIFEST, *manifest["files"]}):
            return f"{name} is not listed in {MANIFEST}"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except OSError as error:
        return f"{Path(str(error.filename)).name} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return ""


def load(path: Path) -> Checkpoint:
    """Read a checkpoint that has been verified."""
    # Copies: mapped tensors have another alignment in memory, and kernels round by it.
    tensors = {
        file.stem: {key: tensor.clone() for key, tensor in load_file(file).items()}
        for file in sorted(path.glob("*.safetensors"))
    }
    return Checkpoint(*read_state(path), tensors)


def read_state(path: Path) -> tuple[int, dict[str, Any]]:
    """The step of a checkpoint, and what it holds beside tensors."""
    return _number(path), json.loads((path / "state.json").read_text())


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer under flat names; its settings come from the recipe."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value for i, entry in state.items() for name, value in entry.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `pack_optimizer`, into an optimizer over the same parameters."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def export(run: Path, module: nn.Module, card: dict[str, Any]) -> None:
    """`model.safetensors` and `config.json`: what `triptych.load` and other programs read.

    Raises:
        FloatingPointError: a weight is not finite; what was exported before stays.
        OSError: the disk is full or the folder cannot be written; what was exported before stays.
    """
    tensors = module.state_dict()
    require_finite("model", tensors)
    with explain_write_errors(run / "model.safetensors"):
        write_safetensors(run / "model.safetensors", tensors)
        write_json(run / "config.json", card)


def _prune(run: Path, keep: int) -> None:
    good = 0
    for path in reversed(steps(run)):
        if good >= max(2, keep):
            shutil.rmtree(path)
        else:
            good += not verify(path, known=True)


def remove_leftovers(run: Path) -> None:
    """Remove or restore what an interrupted save left."""
    for path in run.glob("step-*-old-*"):
        final = run / path.name.split("-old-")[0]
        if final.exists():
            shutil.rmtree(path)
        else:
            path.rename(final)
    atomic.remove_temporary(run)
    atomic.remove_temporary(run / "samples")


def _number(path: Path) -> int:
    match = STEP.match(path.name)
    assert match is not None, path
    return int(match[1])


def require_finite(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises FloatingPointError if a tensor, one of a file's, is not finite."""
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise FloatingPointError(f"{name}: {key} is not finite; nothing was saved")


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


_fingerprints: dict[tuple[int, ...], dict[str, Any]] = {}
"""Of files that this process has read, by what changes when they are replaced or written to."""


def _known_fingerprint(path: Path) -> dict[str, Any]:
    """The fingerprint of a file, read only where it has changed: renaming does not count."""
    stat = path.stat()
    identity = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if identity not in _fingerprints:
        _fingerprints[identity] = _fingerprint(path)
    return _fingerprints[identity]

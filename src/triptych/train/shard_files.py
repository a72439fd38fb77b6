"""Checkpoints of sharded training: every process writes its shares, while training goes on.

torch.distributed.checkpoint with its safetensors storage, which any number of processes reads. The
shares are copied, then written by a thread into a folder aside; when all are there the first
process lists them in a manifest and gives the folder its name, as `checkpoint.save` does.
A tensor is called FILE/NAME, FILE being its file in the checkpoint of a single process.
"""

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shares
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor, distribute_tensor

from triptych.train import checkpoint
from triptych.train.distributed import TIMEOUT, World, own_part
from triptych.train.journal import explain_write_errors

Tensors = dict[str, dict[str, Tensor]]
"""By file, then by name."""


class ShardWriter:
    """Writes checkpoints of a run in the background, one at a time."""

    def __init__(self, run: Path, world: World):
        self.run, self.world = run, world
        # Of its own: the thread's exchanges must not get between those of the training.
        self.group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.threads = ThreadPoolExecutor(1, "finish-checkpoint")
        self.pending: Future[Any] | None = None

    def begin(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        finish: Callable[[Callable[[Path], None]], None],
    ) -> None:
        """Begin a checkpoint, after the one before is complete. The tensors may change afterwards.

        `finish` is called by a thread of the first process once all shares are written, with a
        function that moves them into a folder.

        Raises:
            FloatingPointError: a weight is not finite; nothing is written.
            OSError: this checkpoint or the one before could not be written; older ones stay.
        """
        self.wait()
        aside = self.run / f".step-{step:06d}.tmp-shares"
        flat = {f"{file}/{name}": x for file, group in tensors.items() for name, x in group.items()}

        def prepare() -> None:
            checkpoint.remove_leftovers(self.run)
            aside.mkdir()

        def check() -> None:
            if not aside.exists():
                raise OSError(f"{self.run} must be one folder that all processes see")
            checkpoint.require_finite("", {name: own_part(x) for name, x in flat.items()})

        with explain_write_errors(aside):
            self.world.run_on_first(prepare)
        self.world.run_on_all(check)
        writer = HuggingFaceStorageWriter(str(aside), save_distributed=True)
        written = async_save(flat, storage_writer=writer, process_group=self.group)
        assert isinstance(written, Future)
        self.pending = written
        if self.world.first:
            self.pending = self.threads.submit(finish, partial(_move, written, aside))

    def wait(self) -> None:
        """Wait until what was begun is complete.

        Raises:
            OSError: it could not be written; older checkpoints stay.
        """
        pending, self.pending = self.pending, None
        if pending is not None:  # in one process as in all
            self.world.run_on_all(partial(_wait, pending))


def _move(written: Future[Any], aside: Path, folder: Path) -> None:
    """Move the shares into a folder, once they are written."""
    _wait(written)
    for path in sorted(aside.iterdir()):
        path.rename(folder / path.name)
    aside.rmdir()


def _wait(future: Future[Any]) -> None:
    """Wait for the library's or our own thread; the error of one process is raised in all."""
    try:
        future.result()
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise causes[0] from error


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint was written by sharded training."""
    return any(path.glob("shard-*.safetensors"))


def load(path: Path, layout: Mapping[str, Tensor]) -> checkpoint.Checkpoint:
    """Read a checkpoint that has been verified, of any number of processes.

    Args:
        path: the folder; of sharded training or not.
        layout: tensors by FILE/NAME, and parameters by FILE/NUMBER for the state of optimizers:
            what is read is shared out like these, and whole where there is none.
    """
    if not is_sharded(path):
        return _share_whole(checkpoint.load(path), layout)
    reader = HuggingFaceStorageReader(str(path))
    flat = {
        name: _room(entry, _like(layout, name))
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no process group is used: each reads its shares
        load_shares(flat, storage_reader=reader, no_dist=True)
    tensors: Tensors = {}
    for flat_name, tensor in flat.items():
        file, name = flat_name.split("/", 1)
        tensors.setdefault(file, {})[name] = tensor
    return checkpoint.Checkpoint(*checkpoint.read_state(path), tensors)


def _share_whole(
    stored: checkpoint.Checkpoint, layout: Mapping[str, Tensor]
) -> checkpoint.Checkpoint:
    """The shares of a checkpoint that was read whole."""
    for file, group in stored.tensors.items():
        for name, tensor in group.items():
            like = _like(layout, f"{file}/{name}")
            if isinstance(like, DTensor) and like.shape == tensor.shape:
                group[name] = distribute_tensor(
                    tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
                )
    return stored


def _like(layout: Mapping[str, Tensor], name: str) -> Tensor | None:
    """What a tensor is laid out like: itself, or the parameter that it is the state of."""
    return layout.get(name, layout.get(name.rpartition(".")[0]))


def _room(entry: TensorStorageMetadata, like: Tensor | None) -> Tensor:
    """Room for a stored tensor, or for this process's share of it."""
    dtype = entry.properties.dtype
    if like is None or like.shape != entry.size:
        return torch.empty(entry.size, dtype=dtype)
    return torch.zeros_like(like, dtype=dtype, requires_grad=False)

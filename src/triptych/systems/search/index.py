"""The vectors of a folder of pictures on disk: computed once, kept up to date, resumable anywhere.

An index is a folder of numbered safetensors files. Each holds vectors and, for every picture file
that was read, its name, size, time and, if it is not a valid picture, the reason. Where two files
have the same picture, the one with the higher number counts.

Dimensions: N pictures, D width of a vector.
"""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych import runtime
from triptych.atomic import lock_folder, remove_temporary
from triptych.data.disk.files import is_picture, list_files
from triptych.fields import to_json
from triptych.vision.pixels import read_picture
from triptych.vision.transforms import ImageTransform
from triptych.weights.files.store import Store
from triptych.weights.loaded import Loaded

BATCH = 32  # pictures in a batch of the model
SHARD, SECONDS = 256, 20.0  # a file is written after this many pictures, or after this time
FULL = 65_536  # most rows of a file
MANY = 8  # more small files than this are merged
FORM = 1  # version of the files
MISSING = os.strerror(errno.ENOENT)  # a file that is there was not missing for good
SAMPLED = 4096  # values of each tensor that the digest of a model reads
OURS = re.compile(r"\.?(\d{6,}\.safetensors|nearest-\w+\.faiss)(\.tmp-\d+)?|lock")


class File(NamedTuple):
    """A picture file at the time it was read."""

    name: str  # relative to the folder, bytes that are not UTF-8 escaped
    size: int
    time: int  # of its last change, in nanoseconds
    reason: str = ""  # why it is not a valid picture


@dataclass(frozen=True)
class Index:
    """The valid pictures of a folder and their vectors."""

    folder: Path
    place: Path
    """The folder of the index."""
    names: tuple[str, ...] = ()
    blocks: tuple[Float[Tensor, "_N D"], ...] = ()
    """Unit length, float32, memory-mapped; concatenated they are the rows of `names`."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Files that are not valid pictures, with the reason."""
    state: str = ""
    """A digest that changes whenever the rows do."""
    paths: Mapping[str, str] = field(default_factory=dict)
    """Where the file of each name is; a name that is not UTF-8 is no path."""


@dataclass(frozen=True)
class Progress:
    """The progress of an update."""

    done: int  # pictures read in this update
    total: int
    index: Index | None  # in the last item


class Shard(NamedTuple):
    """One file of an index."""

    path: Path
    files: list[File]
    vectors: Float[Tensor, "N D"]  # of the files without a reason, in their order


def model_digest(loaded: Loaded) -> str:
    """A digest of what a model computes, the same in every precision that it is loaded in.

    It covers the name, the shape and up to 4,096 evenly spaced values (as bfloat16) of each tensor,
    the tokenizer's configuration and the image transform.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(loaded.model.state_dict().items()):
        flat = tensor.detach().flatten()
        step = max(1, len(flat) // SAMPLED)
        numbers = flat[::step].to("cpu", torch.bfloat16).contiguous().view(torch.uint8)
        digest.update(f"{name} {tuple(tensor.shape)} ".encode() + numbers.numpy().tobytes())
    settings = [to_json(part) for part in (loaded.card.tokenizer, loaded.transform) if part]
    digest.update(json.dumps([loaded.card.model, settings], sort_keys=True).encode())
    return digest.hexdigest()[:32]


def index_place(folder: Path, model: str, chosen: str = "") -> Path:
    """The folder of an index: `chosen`, or one in the user's cache named by pictures and model.

    Raises:
        ValueError: the chosen folder has other files in it.
    """
    if chosen:
        place = Path(chosen).expanduser()
        if place.exists() and not place.is_dir():
            raise ValueError(f"--index {chosen} is a file: give a new or empty folder")
        names = [path.name for path in place.iterdir()] if place.is_dir() else []
        others = sorted(name for name in names if not OURS.fullmatch(name))
        if others:
            raise ValueError(
                f"--index {chosen} already has other files in it ({others[0]!r}): give a new or "
                "empty folder"
            )
        return place
    real = folder.resolve()
    key = hashlib.sha256(f"{real}\0{model}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    label = re.sub(r"[^\w-]+", "-", real.name)[:40] or "root"
    return runtime.cache_folder("index") / f"{label}-{key}"


def open_reduced(picture: Path | str, loaded: Loaded) -> UInt8[np.ndarray, "H W 3"]:
    """Open a picture, a path or one in memory; a large JPEG is decoded at a half, quarter or eighth
    of its size, at least twice the input size of the model.

    Raises:
        ValueError: it is not a valid picture.
        OSError: it cannot be read.
    """
    size = loaded.transform.size if isinstance(loaded.transform, ImageTransform) else None
    return read_picture("image", picture, channels=3, near=size)


def update(folder: Path, place: Path, loaded: Loaded, model: str) -> Iterator[Progress]:
    """Bring the index in `place` up to date with a folder; the last item that is yielded holds it.

    New and changed files (by size and time) are read, removed ones dropped, invalid ones remembered
    with the reason. `model` is the model's digest. It may be stopped at any time: closing the
    generator keeps all finished work, killing the process loses that of the last seconds.

    Raises:
        ValueError: the folder has no pictures, or the index is of another model.
        RuntimeError: another process is writing this index.
        OSError: the disk is full or the index cannot be written.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}")
    dim = _embedding_size(loaded)  # refuses a model that cannot embed pictures
    files, paths, refused = _list_pictures(folder)
    if not files:
        why = f" ({len(refused)} were refused: {next(iter(refused.items()))})" if refused else ""
        raise ValueError(f"{folder} holds no pictures{why}")
    with lock_folder(place, instead="give another --index"):
        store = Store(place, "", "files")
        latest = _latest(_read_shards(store, model, dim))
        known = {file[:3] for file in latest if file.reason != MISSING}
        new = [file for file in files.values() if file[:3] not in known]
        yield Progress(0, len(new), None)
        for done in _add(paths, store, loaded, model, new):
            yield Progress(done, len(new), None)
        shards = _tidy(store, model, _read_shards(store, model, dim), files)
    index = replace(_assemble(folder, place, shards, refused), paths=paths)
    yield Progress(len(new), len(new), index)


def _list_pictures(folder: Path) -> tuple[dict[str, File], dict[str, str], dict[str, str]]:
    """The picture files of a folder by name, their paths, and those that cannot be opened, with the
    reason.
    """
    listing = list_files(folder)
    refused = {name: why for name, why in listing.skipped.items() if is_picture(name)}
    files, paths = {}, {}
    for name, where in listing.files.items():
        if not is_picture(name):
            continue
        try:
            status = os.stat(where.path)
        except OSError as error:
            refused[name] = error.strerror or "cannot be opened"
            continue
        files[name] = File(name, status.st_size, status.st_mtime_ns)
        paths[name] = where.path
    return files, paths, refused


def _add(
    paths: Mapping[str, str], store: Store, loaded: Loaded, model: str, new: Sequence[File]
) -> Iterator[int]:
    """Embed pictures and write them to new files; yields how many are done."""
    files: list[File] = []
    vectors: list[Tensor] = []
    since = time.monotonic()

    def write() -> None:
        nonlocal files, vectors, since
        if files:
            rows = torch.cat([*vectors, torch.empty(0, _embedding_size(loaded))])
            _write(store, model, files, rows)
        files, vectors, since = [], [], time.monotonic()

    try:
        done = 0
        for batch, pictures in _decode(paths, loaded, new):
            valid = [picture for picture in pictures if not isinstance(picture, str)]
            rows = loaded.embed_image(valid) if valid else torch.empty(0, _embedding_size(loaded))
            finite = rows.isfinite().all(1)
            usable = iter(finite.tolist())
            for file, picture in zip(batch, pictures, strict=True):
                reason = picture if isinstance(picture, str) else ""
                if not reason and not next(usable):
                    reason = "its vector is not finite"
                files.append(file._replace(reason=reason))
            vectors.append(rows[finite])
            done += len(batch)
            if len(files) >= SHARD or time.monotonic() - since > SECONDS:
                write()
            yield done
    except (GeneratorExit, KeyboardInterrupt):
        write()
        raise
    write()


def _decode(
    paths: Mapping[str, str], loaded: Loaded, new: Sequence[File]
) -> Iterator[tuple[Sequence[File], list[np.ndarray | str]]]:
    """Batches of pictures, or the reasons why they cannot be read, decoded one batch ahead."""

    def decode(file: File) -> np.ndarray | str:
        try:
            return open_reduced(paths[file.name], loaded)
        except (ValueError, OSError) as error:
            return (getattr(error, "strerror", None) or str(error)).strip() or "cannot be read"

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        batches = [new[start : start + BATCH] for start in range(0, len(new), BATCH)]
        waiting: list[Future[np.ndarray | str]] = []
        for number, batch in enumerate(batches):
            current = waiting or [pool.submit(decode, file) for file in batch]
            following = batches[number + 1] if number + 1 < len(batches) else ()
            waiting = [pool.submit(decode, file) for file in following]
            yield batch, [future.result() for future in current]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read_shards(store: Store, model: str, dim: int) -> list[Shard]:
    """The files of an index, the highest number first; damaged ones are left out."""
    shards = []
    for number in reversed(store.numbers()):
        if (read := store.read(number)) is None:
            continue
        try:
            notes, vectors = read.notes, read.tensors["vectors"]
            files = [File(*row) for row in notes["files"]]
            form, made_by = notes["form"], notes["model"]
        except (LookupError, TypeError):
            continue
        if made_by != model:
            raise ValueError(
                f"the index in {store.folder} was made by another model, and vectors of different "
                "models cannot be compared: search with that model, or give another --index"
            )
        valid = sum(not file.reason for file in files)
        if form == FORM and vectors.shape == (valid, dim) and vectors.dtype == torch.float32:
            shards.append(Shard(read.path, files, vectors))
    return shards


def _latest(shards: Sequence[Shard]) -> list[File]:
    """Each file as the shard with the highest number has it."""
    latest: dict[str, File] = {}
    for shard in shards:
        for file in shard.files:
            latest.setdefault(file.name, file)
    return list(latest.values())


def _tidy(
    store: Store, model: str, shards: Sequence[Shard], current: dict[str, File]
) -> list[Shard]:
    """Drop outdated rows, merge many small shards, and remove unreadable files."""
    seen: set[str] = set()
    alive: list[list[bool]] = []
    for shard in shards:
        rows = []
        for file in shard.files:  # the first of a name is the latest
            rows.append(file.name in current and file.name not in seen)
            seen.add(file.name)
        alive.append(rows)
    small = [len(shard.files) < FULL // 2 for shard in shards]
    merge = sum(small) > MANY
    moved = [not all(rows) or (merge and few) for rows, few in zip(alive, small, strict=True)]
    paths = {store.path(number) for number in store.numbers()}
    damaged = paths - {shard.path for shard in shards}
    if any(moved):
        old = [(s, a) for s, a, m in zip(shards, alive, moved, strict=True) if m]
        _rewrite(store, model, old)
    remove_temporary(store.folder)
    for path in [*damaged, *(s.path for s, m in zip(shards, moved, strict=True) if m)]:
        path.unlink()
    return _read_shards(store, model, shards[0].vectors.shape[1]) if any(moved) else list(shards)


def _rewrite(store: Store, model: str, old: Sequence[tuple[Shard, list[bool]]]) -> None:
    """Write the rows of some shards that are still valid to new ones, sorted by name."""
    pairs: list[tuple[File, Tensor | None]] = []
    for shard, alive in old:
        vectors = iter(shard.vectors)
        for file, lives in zip(shard.files, alive, strict=True):
            row = None if file.reason else next(vectors)
            if lives:
                pairs.append((file, row))
    pairs.sort(key=lambda pair: pair[0].name)
    for start in range(0, len(pairs), FULL):
        part = pairs[start : start + FULL]
        rows = [row for _, row in part if row is not None]
        empty = old[0][0].vectors[:0]
        _write(store, model, [file for file, _ in part], torch.stack(rows) if rows else empty)


def _write(store: Store, model: str, files: Sequence[File], vectors: Float[Tensor, "N D"]) -> None:
    number = max(store.numbers(), default=0) + 1
    notes = {"form": FORM, "model": model, "files": files}
    store.write(number, {"vectors": vectors.float().contiguous()}, notes)


def _assemble(folder: Path, place: Path, shards: Sequence[Shard], refused: dict[str, str]) -> Index:
    names = tuple(file.name for shard in shards for file in shard.files if not file.reason)
    invalid = {file.name: file.reason for shard in shards for file in shard.files if file.reason}
    state = hashlib.sha256()
    for shard in shards:
        status = shard.path.stat()
        state.update(f"{shard.path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    blocks = tuple(shard.vectors for shard in shards if len(shard.vectors))
    skipped = dict(sorted((refused | invalid).items()))
    return Index(folder, place, names, blocks, skipped, state.hexdigest()[:16])


def _embedding_size(loaded: Loaded) -> int:
    return loaded.embed_image([]).shape[1]

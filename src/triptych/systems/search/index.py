"""A folder of pictures as vectors on disk: computed once, brought up to date, resumable anywhere.

An index is a folder of numbered safetensors files, each whole in itself: vectors, and for each file
that was looked at its name, size, time and, where it is no sound picture, the reason. A file
appears whole or not at all, and of two that speak of one picture the higher number is right, so a
process may be killed at any moment. Vectors are memory-mapped.

Dimensions: N pictures, D numbers of a vector.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych import runtime
from triptych.atomic import lock_folder
from triptych.config import to_json
from triptych.data.disk.files import is_picture, walk
from triptych.vision.images import open_picture
from triptych.vision.transforms import ImageTransform
from triptych.weights.files.read import read_safetensors, write_safetensors
from triptych.weights.loaded import Loaded

BATCH = 32  # pictures that go through the model at once
SHARD, SECONDS = 256, 20.0  # a file is written after so many pictures, or so much time
FULL = 65_536  # rows of a file that is left alone
MANY = 8  # small files from which on they are joined
FORM = 1  # of what stands in a file
SAMPLED = 4096  # numbers of each tensor that go into a model's digest
NAME = re.compile(r"\d{6,}\.safetensors")
LEFT = re.compile(r"\d{6,}\.safetensors|\.\d{6,}\.safetensors\.tmp-\d+")  # by a kill
OURS = re.compile(r"\.?(\d{6,}\.safetensors|nearest-\w+\.faiss)(\.tmp-\d+)?|lock")


class File(NamedTuple):
    """A picture file as it was when it was looked at."""

    name: str  # inside the folder
    size: int
    time: int  # of its last change, in nanoseconds
    reason: str = ""  # why it is no sound picture


@dataclass(frozen=True)
class Index:
    """The sound pictures of a folder and their vectors."""

    folder: Path
    place: Path
    """Where the index lies."""
    names: tuple[str, ...] = ()
    blocks: tuple[Float[Tensor, "_N D"], ...] = ()
    """Unit length, float32, memory-mapped; one after the other they are the rows of `names`."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Files that are no sound pictures, and why."""
    state: str = ""
    """Changes whenever the rows do."""


@dataclass(frozen=True)
class Progress:
    """How far an index is."""

    done: int  # pictures looked at in this pass
    total: int
    index: Index | None  # in the last one


@dataclass
class Shard:
    """One file of an index."""

    path: Path
    files: list[File]
    vectors: Float[Tensor, "N D"]  # of those without a reason, in their order


def model_digest(loaded: Loaded) -> str:
    """A name for what a model computes, the same in every precision that it is loaded in.

    Of each tensor its name, its shape and up to 4,096 of its numbers spread over it, as bfloat16;
    and what is done to pictures and texts before.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(loaded.model.state_dict().items()):
        flat = tensor.detach().flatten()
        step = max(1, len(flat) // SAMPLED)
        numbers = flat[::step].to("cpu", torch.bfloat16).contiguous().view(torch.uint8)
        found.update(f"{name} {tuple(tensor.shape)} ".encode() + numbers.numpy().tobytes())
    settings = [to_json(part) for part in (loaded.card.tokenizer, loaded.transform) if part]
    found.update(json.dumps([loaded.card.model, settings], sort_keys=True).encode())
    return found.hexdigest()[:32]


def index_place(folder: Path, model: str, chosen: str = "") -> Path:
    """Where the index of a folder lies: in the user's cache, never among the pictures, or where it
    was `chosen` to be.

    Raises:
        ValueError: the chosen folder holds other things.
    """
    if chosen:
        place = Path(chosen).expanduser()
        if place.exists() and not place.is_dir():
            raise ValueError(f"--index {chosen} is a file: give a folder, new or empty")
        there = [path.name for path in place.iterdir()] if place.is_dir() else []
        others = sorted(name for name in there if not OURS.fullmatch(name))
        if others:
            raise ValueError(
                f"--index {chosen} holds other things ({others[0]!r}): give a folder of its own, "
                "new or empty"
            )
        return place
    real = folder.resolve()
    key = hashlib.sha256(f"{real}\0{model}".encode("utf-8", "surrogateescape")).hexdigest()[:16]
    label = re.sub(r"[^\w-]+", "-", real.name)[:40] or "root"
    return runtime.cache_folder("index") / f"{label}-{key}"


def opened(path: Path | str, loaded: Loaded) -> UInt8[np.ndarray, "H W 3"]:
    """A picture as an index reads it: a large JPEG is decoded at a half, quarter or eighth of its
    size where that is still at least twice what the model looks at.

    Raises:
        ValueError: it is no sound picture.
        OSError: it cannot be read.
    """
    size = loaded.transform.size if isinstance(loaded.transform, ImageTransform) else None
    return open_picture(Path(path), channels=3, near=size)


def update(folder: Path, place: Path, loaded: Loaded, model: str) -> Iterator[Progress]:
    """Bring an index up to date with its folder; the last item that is yielded holds it.

    New and changed files (by size and time) are looked at, removed ones are dropped, broken ones
    are remembered with the reason. `model` is the model's digest. Stop at any time: what is done
    is kept, all of it where the generator is closed, all but the last seconds where it is killed.

    Raises:
        ValueError: the folder has no pictures, or the index is of another model.
        RuntimeError: another process is writing this index.
        OSError: the disk is full or the index cannot be written.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r}")
    dim = _dim_of(loaded)  # also says that the model embeds pictures
    files, refused = _pictures(folder)
    if not files:
        why = f" ({len(refused)} were refused: {next(iter(refused.items()))})" if refused else ""
        raise ValueError(f"{folder} holds no pictures{why}")
    with lock_folder(place, instead="give another --index"):
        shards = _shards(place, model, dim)
        known = {file[:3] for file in _latest(shards)}
        new = [file for file in files.values() if file[:3] not in known]
        yield Progress(0, len(new), None)
        for done in _added(folder, place, loaded, model, new):
            yield Progress(done, len(new), None)
        shards = _shards(place, model, dim)
        shards = _joined(place, model, shards, files)
    yield Progress(len(new), len(new), _assembled(folder, place, shards, refused))


def _pictures(folder: Path) -> tuple[dict[str, File], dict[str, str]]:
    """Picture files as they are now, and those that are not even opened."""
    listing = walk(folder)
    refused = {name: why for name, why in listing.skipped.items() if is_picture(name)}
    files = {}
    for name, where in listing.files.items():
        if not is_picture(name):
            continue
        try:
            status = os.stat(where.path)
        except OSError as error:
            refused[name] = error.strerror or "cannot be looked at"
            continue
        files[name] = File(name, status.st_size, status.st_mtime_ns)
    return files, refused


def _added(
    folder: Path, place: Path, loaded: Loaded, model: str, new: Sequence[File]
) -> Iterator[int]:
    """Look at pictures and write them to new shards; yields how many were looked at."""
    files: list[File] = []
    vectors: list[Tensor] = []
    since = time.monotonic()

    def write() -> None:
        nonlocal files, vectors, since
        if files:
            rows = torch.cat([*vectors, torch.empty(0, _dim_of(loaded))])
            _write(place, model, files, rows)
        files, vectors, since = [], [], time.monotonic()

    try:
        done = 0
        for batch, pictures in _decoded(folder, loaded, new):
            sound = [picture for picture in pictures if not isinstance(picture, str)]
            rows = loaded.embed_image(sound) if sound else torch.empty(0, _dim_of(loaded))
            finite = rows.isfinite().all(1)
            found = iter(finite.tolist())
            for file, picture in zip(batch, pictures, strict=True):
                reason = picture if isinstance(picture, str) else ""
                if not reason and not next(found):
                    reason = "the model gives no finite vector for it"
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


def _decoded(
    folder: Path, loaded: Loaded, new: Sequence[File]
) -> Iterator[tuple[Sequence[File], list[np.ndarray | str]]]:
    """Batches of pictures, the next one decoded while the model is busy; or why there is none."""

    def one(file: File) -> np.ndarray | str:
        try:
            return opened(folder / file.name, loaded)
        except (ValueError, OSError) as error:
            return (getattr(error, "strerror", None) or str(error)).strip() or "cannot be read"

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        batches = [new[start : start + BATCH] for start in range(0, len(new), BATCH)]
        waiting: list[Future[np.ndarray | str]] = []
        for number, batch in enumerate(batches):
            current = waiting or [pool.submit(one, file) for file in batch]
            following = batches[number + 1] if number + 1 < len(batches) else ()
            waiting = [pool.submit(one, file) for file in following]
            yield batch, [future.result() for future in current]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _shards(place: Path, model: str, dim: int) -> list[Shard]:
    """The files of an index, the highest number first; a damaged one counts as not there."""
    paths = sorted((p for p in place.iterdir() if NAME.fullmatch(p.name)), key=_number)
    shards = []
    for path in reversed(paths):
        try:
            tensors = read_safetensors(path)
            notes: Any = json.loads(bytes(tensors["files"].numpy()))
            files = [File(*row) for row in notes["files"]]
            vectors, form, made_by = tensors["vectors"], notes["form"], notes["model"]
        except (ValueError, LookupError, TypeError):
            continue
        if made_by != model:
            raise ValueError(
                f"the index in {place} was made by another model, and vectors of two models cannot "
                "be compared: name that model, or another --index"
            )
        sound = sum(not file.reason for file in files)
        if form == FORM and vectors.shape == (sound, dim) and vectors.dtype == torch.float32:
            shards.append(Shard(path, files, vectors))
    return shards


def _latest(shards: Sequence[Shard]) -> list[File]:
    """What the highest shard says of each file."""
    found: dict[str, File] = {}
    for shard in shards:
        for file in shard.files:
            found.setdefault(file.name, file)
    return list(found.values())


def _joined(
    place: Path, model: str, shards: Sequence[Shard], current: dict[str, File]
) -> list[Shard]:
    """Without rows that no longer hold, and without a crowd of small files."""
    seen: set[str] = set()
    alive: list[list[bool]] = []
    for shard in shards:
        rows = []
        for file in shard.files:  # of one name the first: what the others say no longer holds
            rows.append(file.name in current and file.name not in seen)
            seen.add(file.name)
        alive.append(rows)
    small = [len(shard.files) < FULL // 2 for shard in shards]
    crowd = sum(small) > MANY
    moved = [not all(rows) or (crowd and few) for rows, few in zip(alive, small, strict=True)]
    readable = {shard.path for shard in shards}
    left = [p for p in place.iterdir() if LEFT.fullmatch(p.name) and p not in readable]
    if any(moved):
        old = [(s, a) for s, a, m in zip(shards, alive, moved, strict=True) if m]
        _rewrite(place, model, old)
    for path in [*left, *(s.path for s, m in zip(shards, moved, strict=True) if m)]:
        path.unlink()
    return _shards(place, model, shards[0].vectors.shape[1]) if any(moved) else list(shards)


def _rewrite(place: Path, model: str, old: Sequence[tuple[Shard, list[bool]]]) -> None:
    """The living rows of some shards, by name, in new ones."""
    found: list[tuple[File, Tensor | None]] = []
    for shard, alive in old:
        vectors = iter(shard.vectors)
        for file, lives in zip(shard.files, alive, strict=True):
            row = None if file.reason else next(vectors)
            if lives:
                found.append((file, row))
    found.sort(key=lambda pair: pair[0].name)
    for start in range(0, len(found), FULL):
        part = found[start : start + FULL]
        rows = [row for _, row in part if row is not None]
        empty = old[0][0].vectors[:0]
        _write(place, model, [file for file, _ in part], torch.stack(rows) if rows else empty)


def _write(place: Path, model: str, files: Sequence[File], vectors: Float[Tensor, "N D"]) -> None:
    numbers = [_number(path) for path in place.iterdir() if NAME.fullmatch(path.name)]
    path = place / f"{max(numbers, default=0) + 1:06d}.safetensors"
    notes = json.dumps({"form": FORM, "model": model, "files": files}).encode()
    write_safetensors(
        path,
        {
            "vectors": vectors.float().contiguous(),
            "files": torch.frombuffer(bytearray(notes), dtype=torch.uint8),
        },
    )


def _assembled(
    folder: Path, place: Path, shards: Sequence[Shard], refused: dict[str, str]
) -> Index:
    names = tuple(file.name for shard in shards for file in shard.files if not file.reason)
    bad = {file.name: file.reason for shard in shards for file in shard.files if file.reason}
    state = hashlib.sha256()
    for shard in shards:
        status = shard.path.stat()
        state.update(f"{shard.path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    blocks = tuple(shard.vectors for shard in shards if len(shard.vectors))
    skipped = dict(sorted((refused | bad).items()))
    return Index(folder, place, names, blocks, skipped, state.hexdigest()[:16])


def _number(path: Path) -> int:
    return int(path.stem)


def _dim_of(loaded: Loaded) -> int:
    return loaded.embed_image([]).shape[1]

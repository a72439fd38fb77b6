"""A digest of a source's content, which names caches of what was computed from its pictures."""

import hashlib
import json
import os

import numpy as np

from triptych.data.disk.arrays import InMemory
from triptych.data.disk.folder import InFiles
from triptych.data.disk.table import Table
from triptych.data.order.buckets import BucketedSource
from triptych.data.source import Source

PROBED = 8  # pictures that are read of a source that is drawn, not stored


def fingerprint(source: Source) -> str:
    """A digest that changes with the pictures, their order, and their captions or labels.

    No picture file is opened: names, sizes and modification times are used, but not the folder's
    path. Of arrays every byte counts; of drawn pictures the first few.

    Raises:
        ValueError: a form of storage that has no digest.
    """
    if isinstance(source, BucketedSource):
        content = repr((source.shapes, fingerprint(source.table)))
        return hashlib.sha256(content.encode()).hexdigest()
    info = source.info
    digest = hashlib.sha256(repr((info.split, info.length, info.shape)).encode())
    if not isinstance(source, Table):
        columns = source.read(range(min(PROBED, info.length or PROBED)))
        digest.update(np.ascontiguousarray(columns["image"]).data)
        digest.update(_json([info.name, columns.get("caption")]))
        return digest.hexdigest()
    index, rows = source.index, source.rows.tolist()
    annotations = index.annotations
    if annotations.captions is not None:
        digest.update(_json([annotations.captions[row] for row in rows]))
    if annotations.labels is not None:
        digest.update(_json([annotations.classes, annotations.labels[source.rows].tolist()]))
    if isinstance(index.stored, InMemory):
        digest.update(np.ascontiguousarray(index.stored.images[source.rows]).data)
    elif isinstance(index.stored, InFiles):
        status: dict[str, list[int]] = {}
        for row in rows:
            place = index.stored.places[row]
            if place.path not in status:
                file = os.stat(place.path)
                status[place.path] = [file.st_size, file.st_mtime_ns]
            digest.update(_json([index.names[row], *place[1:], *status[place.path]]))
    else:
        raise ValueError(f"{info.name!r} is {index.form}: there is no fingerprint for this form")
    return digest.hexdigest()


def digest_files(source: Source) -> str:
    """A digest that changes when the stored pictures behind a source do, also behind one that adds
    questions or reads a cache; empty for pictures that are drawn.
    """
    while not isinstance(source, Table | BucketedSource):
        inner = getattr(source, "source", None)
        if inner is None:
            return ""
        source = inner
    try:
        return fingerprint(source)
    except OSError as error:
        return f"{error.filename} cannot be read"
    except ValueError:
        return ""


def _json(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")

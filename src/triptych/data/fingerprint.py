"""A name for what a source holds, so that what was computed of its pictures is not taken for that
of others.
"""

import hashlib
import json
import os

import numpy as np

from triptych.data.disk.arrays import InMemory
from triptych.data.disk.folder import InFiles
from triptych.data.disk.table import Table
from triptych.data.order.buckets import Bucketed
from triptych.data.source import Source

PROBED = 8  # pictures of a source that is drawn, not stored


def fingerprint(source: Source) -> str:
    """Changes with the pictures, their order, and what is said of them; no file is opened.

    Of pictures in files their names, sizes and times of change count, not where the folder lies; of
    arrays every byte; of pictures that are drawn the first few.
    """
    if isinstance(source, Bucketed):
        whole = repr((source.shapes, fingerprint(source.table)))
        return hashlib.sha256(whole.encode()).hexdigest()
    info = source.info
    found = hashlib.sha256(repr((info.split, info.length, info.shape)).encode())
    if not isinstance(source, Table):
        columns = source.read(range(min(PROBED, info.length or PROBED)))
        found.update(np.ascontiguousarray(columns["image"]).data)
        found.update(_json([info.name, columns.get("caption")]))
        return found.hexdigest()
    index, rows = source.index, source.rows.tolist()
    annotations = index.annotations
    if annotations.captions is not None:
        found.update(_json([annotations.captions[row] for row in rows]))
    if annotations.labels is not None:
        found.update(_json([annotations.classes, annotations.labels[source.rows].tolist()]))
    if isinstance(index.stored, InMemory):
        found.update(np.ascontiguousarray(index.stored.images[source.rows]).data)
    elif isinstance(index.stored, InFiles):
        status: dict[str, list[int]] = {}
        for row in rows:
            place = index.stored.places[row]
            if place.path not in status:
                there = os.stat(place.path)
                status[place.path] = [there.st_size, there.st_mtime_ns]
            found.update(_json([index.names[row], *place[1:], *status[place.path]]))
    else:
        raise ValueError(f"{info.name!r} is {index.form}: what it holds cannot be told apart")
    return found.hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")

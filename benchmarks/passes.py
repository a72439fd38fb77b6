"""Passes over many pictures: what the machinery costs, and an index of the vectors.

`overhead`: `embed --batch` of PNG files by a CLIP with random weights, as deep as a picture needs
to take 50 ms, against a plain loop with the same number of threads: here, in one process, and in
two processes against two loops at a time. Milliseconds per picture without the start, in turns.

`index`: vectors as a pass leaves them, opened and searched: seconds of each part, bytes on the
disk, peak memory, and the share of the ten nearest rows that faiss finds. The vectors have 24
degrees of freedom, and a little noise.

    python benchmarks/passes.py overhead [--pictures 640] [--pairs 3] [--only "2 processes"]
    python benchmarks/passes.py index [--rows 1000000]
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
import pyarrow
import pyarrow.parquet
import torch

from triptych.data.disk.parts import MANIFEST, PLAN, Finished
from triptych.fields import to_json
from triptych.loading import load
from triptych.passes.carry_out import carry_out
from triptych.passes.settings import HERE, Pass
from triptych.requests import Embed
from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, VitConfig
from triptych.systems.search import nearest
from triptych.systems.search.pass_index import open_pass
from triptych.text.tokenizer import train_tokenizer
from triptych.train.checkpoint import export
from triptych.vision.images import open_picture, save_picture
from triptych.vision.transforms import ImageTransform
from triptych.weights.loaded import Card

TOGETHER = 16  # pictures of a part, and of a batch of the loop
SIDE, WIDTH = 224, 768
MILLISECONDS = 50
PART, DEGREES = 1000, 24


def write_model(folder: Path, layers: int) -> None:
    """A CLIP with random weights and patches of 32 pixels, as a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(["a photo of a dog", "two cats"] * 3, 600, 16)
    text = TextConfig(tokenizer.vocabulary, 16, 32, 1, 2, 64, end=tokenizer.config.end or 0)
    vit = VitConfig(SIDE, 32, WIDTH, layers, WIDTH // 64, 4 * WIDTH)
    config = ClipConfig(128, vit, None, text)
    transform = ImageTransform(size=SIDE)
    card = Card("clip", to_json(config), tokenizer=tokenizer.config, transform=transform)
    export(folder, Clip(config), to_json(card))
    tokenizer.save(folder)


def loop(folder: Path) -> list[float]:
    """When the plain loop was done with each batch."""
    loaded = load(str(folder / "model"))
    files = sorted((folder / "photos").iterdir())
    done, vectors = [], []
    for start in range(0, len(files), TOGETHER):
        pictures = [open_picture(file, channels=3) for file in files[start : start + TOGETHER]]
        vectors.append(loaded.embed_image(pictures).numpy())
        done.append(time.perf_counter())
    np.save(folder / f"vectors-{os.getpid()}.npy", np.concatenate(vectors))
    return done


def carry(folder: Path, on: Any, workers: int) -> list[float]:
    """When each part of a pass was entered."""
    out = folder / f"out-{os.getpid()}"
    options = Pass(str(folder / "photos"), str(out), on, workers, part_size=TOGETHER)
    steps = carry_out(Embed(str(folder / "model"), image=(HERE,)), options)
    return [time.perf_counter() for _ in steps][1:]


def milliseconds(done: list[float], workers: int) -> float:
    """Per picture, while all were at work."""
    steady = done[workers - 1 : len(done) - workers + 1]
    return 1000 * (steady[-1] - steady[0]) / (TOGETHER * (len(steady) - 1))


def timed(folder: Path, role: str, threads: int, count: int = 1) -> float:
    """Milliseconds per picture of processes of this script, all together."""
    words = [sys.executable, __file__, "role", "--folder", str(folder), "--role", role]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    processes = [
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(count)
    ]
    found = [float(process.communicate()[0].splitlines()[-1]) for process in processes]
    return statistics.mean(found) / count


def overhead(options: argparse.Namespace) -> None:
    measure.emit(**measure.machine())
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as spare:
        folder = Path(spare)
        (folder / "photos").mkdir()
        draw = np.random.default_rng(0)
        for number in range(options.pictures):
            coarse = draw.integers(0, 256, (12, 16, 3), np.uint8)
            picture = np.repeat(np.repeat(coarse, 20, 0), 20, 1)
            save_picture(folder / f"photos/{number:05}.png", picture)
        write_model(folder / "model", 4)
        layers = max(1, round(4 * MILLISECONDS / timed(folder, "loop", cores)))
        write_model(folder / "model", layers)
        half = max(1, cores // 2)
        compared = {
            "here": (("here", cores, 1), ("loop", cores, 1)),
            "1 process": (("processes-1", cores, 1), ("loop", cores, 1)),
            "2 processes": (("processes-2", half, 1), ("loop", half, 2)),
        }
        for what in options.only or compared:
            ours, theirs = compared[what]
            a, b = measure.pairs(
                lambda ours=ours: timed(folder, *ours),  # type: ignore[misc]
                lambda theirs=theirs: timed(folder, *theirs),  # type: ignore[misc]
                options.pairs,
            )
            ratios = [one / other for one, other in zip(a, b, strict=True)]
            measure.emit(
                what=f"a picture of a pass, {what}", layers=layers, pictures=options.pictures,
                ours_ms=statistics.median(a), loop_ms=statistics.median(b),
                overhead=statistics.median(ratios) - 1, low=min(ratios) - 1, high=max(ratios) - 1,
            )  # fmt: skip


def write_vectors(folder: Path, rows: int, width: int) -> None:
    """The folder of a pass of so many rows."""
    draw = np.random.default_rng(0)
    directions = draw.normal(size=(DEGREES, width)).astype(np.float32)
    lines = []
    for number, start in enumerate(range(0, rows, PART)):
        count = min(PART, rows - start)
        vectors = draw.normal(size=(count, DEGREES)).astype(np.float32) @ directions
        vectors += 0.1 * draw.normal(size=vectors.shape).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        file = folder / f"part-{number:06}.parquet"
        columns = {
            "key": pyarrow.array([f"{start + row:09}.png" for row in range(count)]),
            "embedding": pyarrow.FixedSizeListArray.from_arrays(vectors.ravel(), width),
            "error": pyarrow.array([""] * count),
        }
        pyarrow.parquet.write_table(
            pyarrow.table(columns), file, compression="zstd", use_dictionary=False
        )
        size = file.stat().st_size
        lines.append(Finished(number, file.name, count, 0, size, f"{number:064}", "model").line())
    plan = {"form": 1, "request": {"kind": "Embed"}, "settings": {"batch": "made"}}
    (folder / PLAN).write_text(json.dumps(plan))
    (folder / MANIFEST).write_text("".join(line + "\n" for line in lines))


def index(options: argparse.Namespace) -> None:
    measure.emit(**measure.machine())
    nearest.LARGE = min(nearest.LARGE, options.rows - 1)  # inverted lists for fewer rows, too
    clock = time.perf_counter
    with tempfile.TemporaryDirectory() as spare:
        folder, place = Path(spare) / "pass", Path(spare) / "kept"
        folder.mkdir()
        place.mkdir()
        began = clock()
        write_vectors(folder, options.rows, options.width)
        wrote = clock()
        opened = open_pass(folder, place, "model", options.width)
        read = clock()
        queries = [nearest.row_at(opened.blocks, k * options.rows // 100) for k in range(100)]
        store = place / "nearest-1.faiss"
        asked = clock()
        exact = [nearest.nearest(opened.blocks, opened.names, q, 10) for q in queries[:10]]
        compared = clock()
        nearest.nearest_by_faiss(opened.blocks, opened.names, queries[0], 10, store)
        built = clock()
        for query in queries:
            nearest.nearest_by_faiss(opened.blocks, opened.names, query, 10, store)
        searched = clock()
        recall = nearest.faiss_recall(opened.blocks, store)
        measure.emit(
            what="an index of a pass", rows=options.rows, width=options.width,
            write_s=wrote - began, open_s=read - wrote, build_s=built - compared,
            exact_query_ms=100 * (compared - asked), query_ms=10 * (searched - built),
            recall=recall, exact=len(exact), vectors_mb=_bytes(folder) / 1e6,
            index_mb=_bytes(place) / 1e6,
            peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20),
        )  # fmt: skip


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("overhead", "index", "role"))
    parser.add_argument("--pictures", type=int, default=640)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=("here", "1 process", "2 processes"))
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--role", default="loop")
    options = parser.parse_args()
    if options.what != "role":
        (overhead if options.what == "overhead" else index)(options)
        return
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    on, _, workers = options.role.partition("-")
    count = int(workers or 1)
    done = loop(options.folder) if on == "loop" else carry(options.folder, on, count)
    print(milliseconds(done, count))


if __name__ == "__main__":
    main()

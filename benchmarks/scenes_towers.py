"""CLIP against SigLIP over batch sizes, and tower against tower, on the built-in world.

    python benchmarks/scenes_towers.py batches --pairs 60000 --out runs/batches
    python benchmarks/scenes_towers.py towers --pairs 60000 --out runs/towers

`batches`: both losses with the same towers (texts as bags of words, which learn fastest) at batch
sizes 16, 64, 256 and 1,024, each trained on the same number of pairs. `towers`: ViT and ResNet,
transformer and bag of words. Each point is a training run, evaluated as in `scenes_clip.py`; points
that exist are not repeated, so an interrupted series can be resumed.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from scenes_clip import retrieval, zero_shot

from triptych.loading import load
from triptych.requests import TrainClip, TrainSiglip
from triptych.systems.two_towers.request import CLIP_PRESETS, SIGLIP_PRESETS
from triptych.training import train

BATCHES = (16, 64, 256, 1024)


def points(what: str) -> dict[str, TrainClip | TrainSiglip]:
    """Every run of a series by its name."""
    clip, siglip = CLIP_PRESETS["tiny"], SIGLIP_PRESETS["tiny"]
    assert isinstance(clip, TrainClip) and isinstance(siglip, TrainSiglip)
    words = replace(clip.towers, text="words")
    if what == "batches":
        both = ("clip", replace(clip, towers=words)), ("siglip", replace(siglip, towers=words))
        return {
            f"{name} {size}": replace(made, training=replace(made.training, batch_size=size))
            for size in BATCHES
            for name, made in both
        }
    return {
        "ViT, transformer": clip,
        "ViT, words": replace(clip, towers=words),
        "ResNet, transformer": replace(clip, image="resnet"),
        "ResNet, words": replace(clip, image="resnet", towers=words),
    }


def measured(
    request: TrainClip | TrainSiglip, pairs: int, run: Path, count: int
) -> dict[str, object]:
    """One run and what it learned."""
    training = request.training
    steps = max(1, pairs // training.batch_size)
    # square-root scaling of the rate over batch sizes, from 1e-3 at 256
    rate = request.towers.learning_rate * (training.batch_size / 256) ** 0.5
    request = replace(
        request,
        training=replace(
            training,
            steps=steps,
            warmup=max(1, steps // 20),
            ema_halflife=max(1.0, steps / 40),
            evaluate_every=0,
            save_every=steps,
            log_every=max(1, steps // 20),
        ),
        towers=replace(request.towers, learning_rate=rate),
    )
    began = time.process_time()
    for _ in train(request, run):
        pass
    seconds = time.process_time() - began
    loaded = load(str(run), dtype="float32")
    parameters = {
        part: sum(p.numel() for p in getattr(loaded.model, part).parameters())
        for part in ("image", "text")
    }
    return {
        "batch": training.batch_size,
        "steps": steps,
        "pairs": steps * training.batch_size,
        "cpu_seconds": round(seconds, 1),
        "parameters": parameters,
        "test": zero_shot(loaded, "test", loaded.config.size, count),
        "held-out": zero_shot(loaded, "held-out", loaded.config.size, count),
        "retrieval": retrieval(loaded, loaded.config.size),
    }


def plot(rows: dict[str, dict], path: Path) -> None:
    """Recall and zero-shot accuracy over batch sizes, a line a loss."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3))
    kinds = (("recall@1", "retrieval", "recall_1"), ("colour", "test", "colour"),
             ("shape", "test", "shape"))  # fmt: skip
    for axis, (title, part, key) in zip(axes, kinds, strict=True):
        for name, mark in (("clip", "o-"), ("siglip", "s--")):
            found = [(size, rows.get(f"{name} {size}")) for size in BATCHES]
            there = [(size, row[part][key]) for size, row in found if row]
            axis.plot(*zip(*there, strict=True), mark, label=name)
        axis.set(title=title, xlabel="batch", xscale="log", ylim=(0, 1.02))
        axis.set_xticks(BATCHES, [str(size) for size in BATCHES])
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["batches", "towers"])
    parser.add_argument("--pairs", type=int, default=60_000)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict] = {}
    for name, request in points(given.what).items():
        stored = given.out / f"{name}.json"
        if not stored.exists():
            run = given.out / name.replace(", ", "-")
            row = measured(request, given.pairs, run, given.count)
            stored.write_text(json.dumps(row))
        rows[name] = json.loads(stored.read_text())
        print(json.dumps({"point": name, **rows[name]}), flush=True)
    if given.what == "batches":
        plot(rows, given.out / "batches.png")


if __name__ == "__main__":
    main()

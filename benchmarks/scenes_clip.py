"""What a CLIP or SigLIP trained on the built-in world has learned, by attribute.

    python benchmarks/scenes_clip.py runs/clip-scenes [--count 2000] [--classifier runs/judge]

Zero-shot accuracy of colour and of shape over labels that training captions use ("a red object",
"a star"), on test pictures and on the pairs of colour and shape held out of training; recall@1 of a
picture among 1,000 by a caption that the reader finds true of that picture only; and zero-shot
accuracy on line drawings, compared with a supervised classifier of shapes.
"""

import argparse
import json
import time

import numpy as np
import torch

from triptych.data.order.batches import to_images
from triptych.data.scene_source import SceneSource
from triptych.loading import load
from triptych.scenes.descriptions import captions
from triptych.scenes.judge import satisfies
from triptych.scenes.reader import Reading, read
from triptych.scenes.scene import COLOURS, SHAPES
from triptych.systems.two_towers.labels import embed_labels
from triptych.systems.two_towers.retrieval import recall_at
from triptych.weights.loaded import Loaded

SHAPE_PROMPTS = ("a {}", "a picture of a {}", "there is a {}", "an image with a {}")
COLOUR_PROMPTS = ("a {} object", "a {} thing", "there is a {} shape", "a picture of a {} object")
RETRIEVED = 1000


def zero_shot(loaded: Loaded, split: str, size: int, count: int) -> dict[str, float]:
    """Accuracy of shape and of colour, and of both together, over one-object pictures."""
    source = SceneSource("scenes-one", split, size)
    things = [scene.things[0] for scene in source.scenes(range(count))]
    pictures = loaded.embed_image(list(source.read(range(count))["image"]))
    row: dict[str, float] = {}
    right = []
    for name, labels, prompts in (
        ("shape", SHAPES, SHAPE_PROMPTS),
        ("colour", COLOURS, COLOUR_PROMPTS),
    ):
        said = (pictures @ embed_labels(loaded, labels, prompts).text.T).argmax(1)
        true = torch.tensor([labels.index(getattr(thing, name)) for thing in things])
        right.append(said == true)
        row[name] = right[-1].float().mean().item()
    row["both"] = (right[0] & right[1]).float().mean().item()
    return row


def unique_pairs(size: int) -> tuple[np.ndarray, list[str]]:
    """1,000 test pictures, each with a caption that the reader finds true of it alone."""
    source = SceneSource("scenes-one", "test", size)
    kept: list[tuple[np.ndarray, str, Reading]] = []
    for start in range(0, 20 * RETRIEVED, 200):
        rows = range(start, start + 200)
        for scene, picture in zip(source.scenes(rows), source.read(rows)["image"], strict=True):
            reading, caption = read(picture), captions(scene)[0]
            if not satisfies(reading, caption).whole:
                continue  # the reader errs about this picture
            if any(satisfies(r, caption).whole or satisfies(reading, c).whole for _, c, r in kept):
                continue
            kept.append((picture, caption, reading))
            if len(kept) == RETRIEVED:
                return np.stack([row[0] for row in kept]), [row[1] for row in kept]
    raise RuntimeError("the world is too small for so many captions")


def retrieval(loaded: Loaded, size: int) -> dict[str, float]:
    pictures, texts = unique_pairs(size)
    scores = loaded.embed_text(texts) @ loaded.embed_image(list(pictures)).T
    shares = recall_at(scores, torch.eye(len(texts), dtype=torch.bool))
    return {f"recall_{k}": share for k, share in shares.items()}


def supervised(name: str, split: str, size: int, count: int) -> float:
    """Accuracy of a classifier of shapes."""
    judge = load(name)
    source = SceneSource("scenes-one", split, size)
    read_ = source.read(range(count))
    with torch.inference_mode():
        said = judge.model(to_images(read_["image"]))[0].argmax(1)
    return (said == torch.from_numpy(np.asarray(read_["label"]))).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--classifier", default="")
    parser.add_argument("--no-retrieval", action="store_true")
    given = parser.parse_args()
    began = time.monotonic()
    loaded = load(given.run, dtype="float32")
    size = loaded.config.size
    result: dict[str, object] = {"run": given.run, "size": size, "pictures": given.count}
    result["chance"] = {"shape": 1 / len(SHAPES), "colour": 1 / len(COLOURS), "recall_1": 1e-3}
    for split in ("test", "held-out", "line"):
        result[split] = zero_shot(loaded, split, size, given.count)
        if given.classifier:
            shape = supervised(given.classifier, split, size, given.count)
            result[split]["supervised shape"] = shape  # type: ignore[index]
    if not given.no_retrieval:
        result["retrieval"] = retrieval(loaded, size)
    result["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

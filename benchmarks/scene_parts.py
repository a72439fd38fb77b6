"""Writes crops of scenes as a folder of captioned pictures, to train a CLIP for windows.

Of every picture of `scenes` (training split, 64 x 64): a square around each object with some
jitter, captioned with colour and shape; a square that cuts the object, captioned with its colour
only; and a square of ground. All are resized to 32 x 32, like the windows of detection.

    python benchmarks/scene_parts.py runs/parts --scenes 12000
    triptych train clip --preset tiny --text words --data runs/parts --run runs/clip-parts
    python benchmarks/detection.py --model runs/clip-parts --labels pair --parts
"""

import argparse
import json
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from triptych.data.scene_source import SceneSource
from triptych.scenes.drawing import boxes

SIDE = 64
SHOWN = 32
Box = tuple[float, float, float, float]


def overlap(square: Box, box: Box) -> float:
    """The share of the box that is inside the square."""
    wide = min(square[2], box[2]) - max(square[0], box[0])
    high = min(square[3], box[3]) - max(square[1], box[1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return max(0.0, wide) * max(0.0, high) / area


def square(middle: tuple[float, float], side: float) -> Box:
    """Inside the picture, moved there if need be; relative to its side."""
    left, top = (min(max(place - side / 2, 0.0), 1 - side) for place in middle)
    return left, top, left + side, top + side


def parts(scene_boxes: list[Box], names: list[str], ground: str, draw: Random) -> dict[str, Box]:
    """Squares by their captions."""
    found: dict[str, Box] = {}
    for box, name in zip(scene_boxes, names, strict=True):
        reach = max(box[2] - box[0], box[3] - box[1])
        middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        side = min(1.0, reach * draw.uniform(0.95, 1.5))
        off = [place + draw.uniform(-0.15, 0.15) * reach for place in middle]
        whole = square((off[0], off[1]), side)
        if overlap(whole, box) > 0.85:
            found[f"a {name}"] = whole
        far = [place + draw.choice((-1, 1)) * draw.uniform(0.4, 0.8) * reach for place in middle]
        cut = square((far[0], far[1]), reach * draw.uniform(0.5, 1.0))
        if 0.1 < overlap(cut, box) < 0.4:
            found[f"part of a {name.split()[0]} thing"] = cut
    side = draw.uniform(0.2, 0.5)
    bare = square((draw.random(), draw.random()), side)
    if all(overlap(bare, box) == 0 for box in scene_boxes):
        found[f"a {ground} background"] = bare
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--scenes", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, source = Random(given.seed), SceneSource("scenes", size=SIDE)
    given.out.mkdir(parents=True, exist_ok=True)
    with (given.out / "metadata.jsonl").open("w") as lines:
        for start in range(0, given.scenes, 200):
            indices = range(start, min(start + 200, given.scenes))
            pictures = source.read(indices)["image"]
            for index, scene, pixels in zip(indices, source.scenes(indices), pictures, strict=True):
                picture = Image.fromarray(np.asarray(pixels))
                names = [f"{thing.colour} {thing.shape}" for thing in scene.things]
                around = [tuple(map(float, box)) for box in boxes(scene)]
                found = parts(around, names, scene.ground.colour, draw)  # type: ignore[arg-type]
                for number, (caption, where) in enumerate(found.items()):
                    file = f"{index:06d}-{number}.png"
                    corners = tuple(place * SIDE for place in where)
                    shown = picture.resize((SHOWN, SHOWN), Image.Resampling.BICUBIC, corners)
                    shown.save(given.out / file)
                    row = {"file_name": file, "text": caption, "split": "train"}
                    if index >= given.scenes * 0.95:
                        row["split"] = "test"
                    lines.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()

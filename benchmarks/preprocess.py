"""JPEG files of 640 x 480 to normalised tensors of 224 x 224: ours against transformers'.

The peer is its default `CLIPImageProcessor` (torchvision's operators), fed with Pillow pictures as
its own examples do; `--model siglip` squashes instead of cropping. Interleaved pairs on the same
files, once with decoding and once on decoded pictures, and the largest difference in steps of 255.

    python benchmarks/preprocess.py [--model clip|siglip] [--files 32] [--pairs 20] [--threads 2]
"""

import argparse
import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import measure
import numpy as np
import torch
from PIL import Image

from triptych.vision.images import open_picture
from triptych.vision.transforms import HALF, ImageTransform


def photo(number: int) -> bytes:
    """Waves and grain: a file of the size that a photo has."""
    rng = np.random.default_rng(number)
    down, across = np.mgrid[:480, :640]
    waves = [np.sin(across / (20 + number + 7 * c)) * np.cos(down / (31 + c)) for c in range(3)]
    picture = 127 + 100 * np.stack(waves, -1) + rng.normal(0, 12, (480, 640, 3))
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def peer(model: str) -> Any:
    """Their processor."""
    logging.disable(logging.WARNING)
    import transformers

    names = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}
    return getattr(transformers, names[model])()


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["clip", "siglip"], default="clip")
    parser.add_argument("--files", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    files = [photo(number) for number in range(given.files)]
    siglip = ImageTransform(mean=HALF, std=HALF, resize="squash")
    transform = siglip if given.model == "siglip" else ImageTransform()
    theirs = peer(given.model)

    def opened(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data)).convert("RGB")

    decoded, images = [open_picture(f, channels=3) for f in files], [opened(f) for f in files]
    cases = {
        "JPEG in": (
            lambda: transform.open(files),
            lambda: theirs([opened(f) for f in files], return_tensors="pt").pixel_values,
        ),
        "decoded pictures in": (
            lambda: transform(decoded),
            lambda: theirs(images, return_tensors="pt").pixel_values,
        ),
    }
    for name, (ours, reference) in cases.items():
        off = (ours() - reference()).abs() * torch.tensor(transform.std).view(3, 1, 1) * 255
        a, b = measure.pairs(timed(ours), timed(reference), given.pairs)
        ratios = [theirs / ours for ours, theirs in zip(a, b, strict=True)]
        low, high = measure.interval(ratios)
        measure.emit(
            what=f"preprocessing, {given.model}, {name}", pictures=len(files),
            ours_per_second=len(files) / statistics.median(a),
            theirs_per_second=len(files) / statistics.median(b),
            ratio=statistics.median(ratios), ratio_low=low, ratio_high=high, pairs=given.pairs,
            largest_difference=off.max().item(), **measure.machine(),
        )  # fmt: skip


if __name__ == "__main__":
    main()

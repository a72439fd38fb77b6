"""The same U-Net in latents and on pixels of 64 x 64: what a training step and a picture cost.

An autoencoder of factor 4 makes 16 x 16 places of a picture; squares of 2 x 2 pixels make 32 x 32,
squares of 4 x 4 pixels 16 x 16 again. A training step encodes what it is given, a picture is
decoded; both count. Interleaved pairs, 16 pictures of 20 guided steps.

    python benchmarks/latents_or_pixels.py AUTOENCODER [--patch 2] [--batch 32] [--pairs 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import measure
import torch

from triptych import runtime
from triptych.diffusion.noise import PictureNoise
from triptych.requests import TrainTextToImage
from triptych.systems.stable_diffusion.model import StableDiffusion, sample
from triptych.systems.stable_diffusion.recipe import build
from triptych.systems.stable_diffusion.request import PRESETS
from triptych.train.loop import descend

PICTURES, STEPS = 16, 20
Timed = Callable[[], float]


def system(autoencoder: str, patch: int, batch: int) -> tuple[Timed, Timed]:
    """A training step, and drawing, each in seconds."""
    request = PRESETS["tiny"]
    assert isinstance(request, TrainTextToImage)
    training = replace(request.training, size=64, batch_size=batch, device="cpu")
    recipe = build(replace(request, training=training, autoencoder=autoencoder, patch=patch))
    data = list(islice(recipe.batches(0), 4))
    model, precision = recipe.model, runtime.precision("auto", torch.device("cpu"))
    assert isinstance(model, StableDiffusion)
    turn = iter(range(1 << 30))

    def step() -> float:
        began = time.perf_counter()
        descend(recipe.updates[0], [data[next(turn) % len(data)]], 1, precision)
        return time.perf_counter() - began

    @torch.inference_mode()
    def draw() -> float:
        began = time.perf_counter()
        width = model.config.unet.context
        states = torch.randn(PICTURES, 32, width)
        cond = {"context": states, "vector": states[:, 0]}
        with torch.autocast("cpu", torch.bfloat16, precision == "bfloat16"):
            noise = PictureNoise(range(PICTURES))
            *_, last = sample(model, cond, cond, noise, steps=STEPS)
            model.autoencoder.decode(last.x, (64, 64))
        return time.perf_counter() - began

    step(), draw()
    return step, draw


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("autoencoder")
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    latents, pixels = (system(a, args.patch, args.batch) for a in (args.autoencoder, ""))
    for name, ours, theirs in zip(("training step", "picture"), latents, pixels, strict=True):
        a, b = measure.pairs(ours, theirs, args.pairs)
        ratios = [y / x for x, y in zip(a, b, strict=True)]
        count = args.batch if name == "training step" else PICTURES
        measure.emit(
            what=name,
            patch=args.patch,
            latents_per_s=count / statistics.median(a),
            pixels_per_s=count / statistics.median(b),
            ratio=statistics.median(ratios),
            interval=measure.interval(ratios),
            **measure.machine(),
        )


if __name__ == "__main__":
    main()

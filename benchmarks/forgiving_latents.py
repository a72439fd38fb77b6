"""What an autoencoder makes of latents that are a little wrong, as those of a sampler are.

    python benchmarks/forgiving_latents.py runs/coder-32 runs/coder-forgiving

The latents of 200 scenes of one object (or of the pictures of --data, PSNR alone) get noise of a
share of each channel's own deviation, and are decoded; the strict judge reads the pictures.
"""

import argparse

import numpy as np
import torch

from triptych import runtime
from triptych.data.order.batches import take_first
from triptych.data.sources import open_train_and_test
from triptych.loading import load
from triptych.scenes.judge import report, satisfies
from triptych.scenes.reader import read
from triptych.systems.autoencoder.model import Autoencoder
from triptych.vision.images import to_pictures

SHARES = (0.0, 0.1, 0.2, 0.3, 0.5)


@torch.inference_mode()
def measure(name: str, data: str, size: int, count: int) -> None:
    """Print PSNR and the judge's share for every amount of noise."""
    model = load(name).model
    assert isinstance(model, Autoencoder)
    held = take_first(open_train_and_test(data, size=size)[1], count)
    image = held["image"]
    count = len(image)
    captions = held["caption"] if data.startswith("scenes") else None
    latents = torch.cat([model.encode(part) for part in image.split(64)])
    deviation = latents.std((0, 2, 3), keepdim=True)
    print(f"{name}: {latents.shape[1]} channels, deviations {deviation.flatten().tolist()}")
    noise = runtime.noise(tuple(latents.shape[1:]), range(count))
    for share in SHARES:
        moved = latents + share * deviation * noise
        decoded = torch.cat([model.decode(part, (size, size)) for part in moved.split(64)])
        error = (to_pictures(decoded).astype(float) - to_pictures(image)) ** 2
        decibels = -10 * np.log10(error.mean((1, 2, 3)) / 255**2)
        line = f"noise {share}: {decibels.mean():.2f} dB"
        if captions is not None:
            pictures = to_pictures(decoded)
            whole = report(satisfies(read(p), c) for p, c in zip(pictures, captions, strict=True))[
                "whole"
            ]
            line += f", judge {100 * whole.value:.1f} % of {count}"
        print(line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data", default="scenes-one")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--count", type=int, default=200)
    chosen = parser.parse_args()
    for name in chosen.runs:
        measure(name, chosen.data, chosen.size, chosen.count)

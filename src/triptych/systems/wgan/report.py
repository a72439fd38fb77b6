"""What a conditional GAN shows: the figures of one noise under many conditions.

Dimensions: R rows, S steps, C channels, H height, W width.
"""

from collections.abc import Generator as Steps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.runtime import noise
from triptych.systems.wgan import model as wgan
from triptych.systems.wgan.model import Generator
from triptych.train.evaluation import TrainedRun
from triptych.vision.grids import labelled_grid
from triptych.vision.images import save_picture, to_pictures

SHOWN, STEPS = 10, 9  # classes, and pictures from one to another
THRESHOLDS = (0.25, 0.5, 1.0, 2.0, float("inf"))


@torch.no_grad()
def draw_figures(
    model: Generator, classes: tuple[str, ...], folder: Path, *, seed: int = 0
) -> tuple[Path, ...]:
    """Write `shared-z.png`, `conditions.png` (from one class to the next at fixed noise) and
    `truncation.png` (less noise, less variety) of a label-conditional generator.
    """
    device = next(model.parameters()).device
    latent, names = model.config.latent, classes[:SHOWN]
    labels = torch.arange(len(names), device=device)
    z = noise((latent,), range(seed, seed + 8)).to(device)
    drawn: dict[str, tuple[Tensor, list[str], list[str], str]] = {}

    rows = torch.stack([wgan.sample(model, labels, row.expand(len(names), -1)) for row in z])
    drawn["shared-z"] = (rows, [f"z {i + 1}" for i in range(8)], list(names), "One z, every class")

    pairs = [(k, (k + 1) % len(names)) for k in range(0, len(names), 2)]
    first = torch.tensor([a for a, _ in pairs], device=device)
    second = torch.tensor([b for _, b in pairs], device=device)
    walk = wgan.interpolate_conditions(model, first, second, z[:1].expand(len(pairs), -1), STEPS)
    titles = [f"{names[a]} to {names[b]}" for a, b in pairs]
    drawn["conditions"] = (walk.transpose(0, 1), titles, [], "From class to class at one z")

    rows = torch.stack(
        [
            torch.cat([wgan.sample(model, labels[:1], _kept(row[None], t)) for row in z])
            for t in THRESHOLDS
        ]
    )
    titles = [f"at most {t:g}" for t in THRESHOLDS[:-1]] + ["all noise"]
    drawn["truncation"] = (rows, titles, [], f"Truncated noise, class {names[0]}")

    paths = []
    for name, (cells, row_names, column_names, title) in drawn.items():
        pictures = to_pictures(cells.flatten(0, 1))
        pictures = pictures.reshape(*cells.shape[:2], *pictures.shape[1:])
        path = folder / f"{name}.png"
        grid = labelled_grid(pictures, row_names, column_names, title)
        save_picture(path, grid, {"figure": name, "seed": seed})
        paths.append(path)
    return tuple(paths)


def _kept(z: Tensor, threshold: float) -> Tensor:
    return z if threshold == float("inf") else wgan.truncate(z, threshold)


def evaluate(options: None, run: TrainedRun) -> Steps[str, None, dict[str, Any]]:
    """Draw the figures of a generator of classes; its judge is in `class_to_image`."""
    if isinstance(run.loaded.model, Generator) and run.loaded.card.config["condition"] == "label":
        for path in draw_figures(
            run.loaded.model, run.test.info.classes, run.folder, seed=run.seed
        ):
            yield f"  {path}"
    return {}

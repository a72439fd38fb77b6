"""Figures of a conditional GAN: one noise under many conditions, and truncated noise.

Dimensions: R rows, S interpolation steps, C channels, H height, W width.
"""

from collections.abc import Generator as Steps
from pathlib import Path
from typing import Any

import torch

from triptych.runtime import noise
from triptych.systems.wgan import model as wgan
from triptych.systems.wgan.model import Generator
from triptych.train.evaluation import TrainedRun
from triptych.vision.grids import labelled_tensors, save_figures

CLASSES, STEPS = 10, 9  # most classes in a figure; pictures from one class to the next
THRESHOLDS = (0.25, 0.5, 1.0, 2.0, float("inf"))


@torch.no_grad()
def draw_figures(
    model: Generator, classes: tuple[str, ...], folder: Path, *, seed: int = 0
) -> tuple[Path, ...]:
    """Write `shared-z.png`, `conditions.png` (from one class to the next at fixed noise) and
    `truncation.png` of a label-conditional generator; returns their paths.
    """
    device = next(model.parameters()).device
    names = classes[:CLASSES]
    labels = torch.arange(len(names), device=device)
    z = noise((model.config.latent,), range(seed, seed + 8)).to(device)

    shared = torch.stack([wgan.sample(model, labels, row.expand(len(names), -1)) for row in z])
    row_names = [f"z {i + 1}" for i in range(8)]
    figures = {"shared-z": labelled_tensors(shared, row_names, names, "One z, every class")}

    pairs = [(k, (k + 1) % len(names)) for k in range(0, len(names), 2)]
    first = torch.tensor([a for a, _ in pairs], device=device)
    second = torch.tensor([b for _, b in pairs], device=device)
    between = wgan.interpolate_conditions(model, first, second, z[:1].expand(len(pairs), -1), STEPS)
    titles = [f"{names[a]} to {names[b]}" for a, b in pairs]
    figures["conditions"] = labelled_tensors(
        between.transpose(0, 1), titles, (), "From class to class at one z"
    )

    noises = [z if t == float("inf") else wgan.truncate(z, t) for t in THRESHOLDS]
    rows = [[wgan.sample(model, labels[:1], one) for one in some.split(1)] for some in noises]
    truncated = torch.stack([torch.cat(row) for row in rows])
    titles = [f"at most {t:g}" for t in THRESHOLDS[:-1]] + ["all noise"]
    figures["truncation"] = labelled_tensors(
        truncated, titles, (), f"Truncated noise, class {names[0]}"
    )

    return tuple(save_figures(figures, folder, seed))


def evaluate(options: None, run: TrainedRun) -> Steps[str, None, dict[str, Any]]:
    """Draw the figures of a label-conditional generator; its scores are in `class_to_image`."""
    model = run.loaded.model
    if isinstance(model, Generator) and model.config.condition == "label":
        for path in draw_figures(model, run.test.info.classes, run.folder, seed=run.seed):
            yield f"  {path}"
    return {}

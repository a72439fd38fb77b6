"""Figures of a conditional VAE: the lecture's, and reconstructions and interpolations.

Dimensions: R rows, K columns, C channels, H height, W width.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from triptych.data.order.batches import Batch, take_first
from triptych.data.source import Source
from triptych.runtime import noise
from triptych.scores.style import new_figure
from triptych.systems.cvae import model as cvae
from triptych.systems.cvae.likelihood import Codes, GetCondition, device_of, prepare_batch
from triptych.systems.cvae.model import Cvae
from triptych.vision.grids import labelled_tensors, save_figures

CLASSES = 10  # at most, in a figure
SHEET = 300  # approximate side of a manifold in pixels

Picture = UInt8[np.ndarray, "_H _W 3"]


@torch.no_grad()
def draw_figures(
    model: Cvae,
    test: Source,
    get_condition: GetCondition,
    codes: Codes,
    folder: Path,
    *,
    seed: int = 0,
) -> tuple[Path, ...]:
    """Write the figures that fit the model's condition as PNG files; returns their paths.

    `codes` are those of the test pictures.

    Raises:
        ValueError: matplotlib is missing.
    """
    batch = take_first(test, 1000)
    figures: dict[str, Picture] = {}
    if model.config.latent:
        figures["reconstructions"] = _reconstructions(model, batch, get_condition)
        figures["interpolation"] = _interpolation(model, batch, get_condition, test)
    if model.config.condition == "label":
        names = test.info.classes[:CLASSES]
        labels = torch.arange(len(names), device=device_of(model))
        z = noise((model.config.latent,), range(seed, seed + 8)).to(labels.device)
        figures["shared-z"] = labelled_tensors(
            cvae.shared_z(model, labels, z),
            [f"z {i + 1}" for i in range(8)],
            names,
            "One z, every class: what is left is the style",
        )
        figures["swap"] = _swap(model, batch, names)
        figures["manifold"] = _manifold(model, codes, labels, names)
    paths = save_figures(figures, folder, seed)
    if codes.label is not None and model.config.latent:
        paths.append(_scatter(codes, codes.label, test.info.classes, folder / "latent.png"))
    return tuple(paths)


def _reconstructions(model: Cvae, batch: Batch, get_condition: GetCondition) -> Picture:
    first = {name: column[:CLASSES] for name, column in batch.items()}
    image, condition = prepare_batch(model, first, get_condition)
    rows = [image, cvae.reconstruct(model, image, condition)]
    names = ["picture", "through z"]
    if model.config.condition == "image":
        assert condition is not None
        draws = noise((model.config.latent,), range(3 * len(image))).to(image.device)
        rows = [condition[:, :-1] + (condition[:, -1:] - 1) * 0.2, image]
        rows += [cvae.sample(model, condition, z) for z in draws.split(len(image))]
        names = ["what is seen", "the truth", "completed", "again", "and again"]
    return labelled_tensors(torch.stack(rows), names)


def _interpolation(model: Cvae, batch: Batch, get_condition: GetCondition, test: Source) -> Picture:
    """Between the codes of two pictures of one class, at that class."""
    rows, names = [], []
    labels = batch.get("label")
    image, condition = prepare_batch(model, batch, get_condition)
    for k in range(6):
        if labels is not None:
            pair = torch.as_tensor(labels == k % len(test.info.classes)).nonzero()[:2, 0].tolist()
            names.append(test.info.classes[k % len(test.info.classes)])
        else:
            pair = [2 * k, 2 * k + 1]
            names.append("")
        if len(pair) < 2:
            continue
        a, b = pair
        of_first = None if condition is None else condition[a : a + 1]
        first, second = image[a : a + 1], image[b : b + 1]
        rows.append(cvae.interpolate(model, first, second, of_first, CLASSES)[:, 0])
    title = "Between the codes of two pictures"
    return labelled_tensors(torch.stack(rows), names[: len(rows)], (), title)


def _swap(model: Cvae, batch: Batch, names: tuple[str, ...]) -> Picture:
    """Pictures encoded with their class and decoded with every class."""
    image = batch["image"][:8].to(device_of(model))
    label = batch["label"][:8].to(image.device)
    columns = [image]
    for target in range(len(names)):
        columns.append(cvae.swap(model, image, label, torch.full_like(label, target)))
    title = "The same style in every class"
    return labelled_tensors(torch.stack(columns, 1), (), ("picture", *names), title)


def _manifold(model: Cvae, codes: Codes, labels: Tensor, names: tuple[str, ...]) -> Picture:
    """The plane of the two numbers of z that vary most, the others at 0, for a few classes."""
    side, latent = 12, model.config.latent
    axes = codes.mean.var(0).argsort(descending=True)[:2]
    z = torch.zeros(side * side, latent, device=labels.device)
    z[:, axes.to(z.device)] = cvae.manifold(side).to(z.device)[:, : len(axes)]
    sheets = []
    for label in labels[:4]:
        pictures = cvae.sample(model, label.repeat(len(z)), z)  # (side * side, C, H, W)
        rows = pictures.unflatten(0, (side, side)).permute(2, 0, 3, 1, 4)
        sheet = rows.flatten(3, 4).flatten(1, 2)  # (C, side * H, side * W)
        scale = max(1, round(SHEET / sheet.shape[-1]))
        sheets.append(sheet.repeat_interleave(scale, -1).repeat_interleave(scale, -2))
    kind = "z" if latent == 2 else "the two liveliest numbers of z"
    title = f"The manifold over {kind}"
    return labelled_tensors(torch.stack(sheets)[None], (), names[: len(sheets)], title)


def _scatter(codes: Codes, label: Tensor, classes: tuple[str, ...], path: Path) -> Path:
    """Posterior means coloured by class; mixed colours mean a code without the class."""
    figure = new_figure(5.2, 4.6)
    import matplotlib

    mean, label = codes.mean[:3000], label[:3000]
    points, axis_name = mean, "z"
    if mean.shape[1] != 2:
        centred = mean - mean.mean(0)
        points = centred @ torch.linalg.svd(centred, full_matrices=False)[2][:2].T
        axis_name = "principal direction"
    axes = figure.subplots()
    colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "nipy_spectral"]
    for k, name in enumerate(classes[:20]):
        of_class = points[label == k].numpy()
        colour = colours(k if len(classes) <= 10 else k / max(1, min(20, len(classes)) - 1))
        y = of_class[:, 1] if of_class.shape[1] > 1 else np.zeros(len(of_class))
        axes.scatter(of_class[:, 0], y, s=5, alpha=0.6, color=colour, label=name, linewidths=0)
    axes.set(
        title="Posterior means of test pictures", xlabel=f"{axis_name} 1", ylabel=f"{axis_name} 2"
    )
    axes.legend(frameon=False, markerscale=3, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
    return path

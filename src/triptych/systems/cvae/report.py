"""What a conditional VAE knows and shows: its likelihood in nats, the leak of its code, the
lecture's figures.

Dimensions: N pictures, Z latent, C channels, H height, W width, K classes.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from triptych.config import to_json, write_json
from triptych.data.order.batches import Batch, take, take_first
from triptych.data.source import Source
from triptych.runtime import generator, noise
from triptych.scores.accuracy import Accuracy
from triptych.scores.environment import environment
from triptych.systems.cvae import model as cvae
from triptych.systems.cvae.leak import leak_probe
from triptych.systems.cvae.model import Cvae
from triptych.systems.cvae.request import EvaluateVae, TrainCvae
from triptych.train.conditioning import conditioning
from triptych.train.evaluation import TrainedRun, indent
from triptych.vision.grids import labelled_grid
from triptych.vision.images import save_picture, to_pictures

Told = Callable[[Batch], Tensor | None]  # the condition of each picture of a batch
CHUNK = 500  # pictures that go through the network at once
SHOWN = 10  # classes in a figure
SHEET = 300  # pixels, about, of a manifold


@dataclass(frozen=True)
class VaeReport:
    """Nats are per picture, on test pictures; lower is better, except for the bound."""

    pictures: int
    elbo: float
    """The evidence lower bound: -(reconstruction + kl)."""
    reconstruction: float
    kl: float
    nll: float
    """-log p(picture | condition), importance-weighted: an upper bound that tightens with the
    samples.
    """
    nll_samples: int
    nll_pictures: int
    active: int
    """Numbers of z that carry more than 0.01 nats."""
    latent: int
    leak_means: Accuracy | None
    """How well a two-layer network reads the class from posterior means; None without classes."""
    leak_samples: Accuracy | None
    """The same from samples of z."""


@dataclass(frozen=True, eq=False)
class Codes:
    """Posteriors of many pictures."""

    mean: Float[Tensor, "N Z"]
    log_variance: Float[Tensor, "N Z"]
    label: Int[Tensor, " N"] | None
    terms: dict[str, float]

    def drawn(self, seed: int) -> Float[Tensor, "N Z"]:
        draw = torch.randn(self.mean.shape, generator=generator(seed))
        return self.mean + (0.5 * self.log_variance).exp() * draw


def evaluate_vae(
    model: Cvae,
    train: Source,
    test: Source,
    told: Told,
    *,
    samples: int = 100,
    nll_limit: int = 1000,
    limit: int = 60_000,
    seed: int = 0,
) -> Generator[str, None, tuple[VaeReport, Codes]]:
    """Yield a line on what is being done, and return the report and the codes of the test pictures.

    The likelihood is estimated with `samples` importance samples on the first `nll_limit` test
    pictures; the leak probe learns from at most `limit` training pictures.
    """
    yield "codes of the test pictures"
    tested = codes(model, test, told, limit, seed)
    yield f"likelihood with {samples} importance samples"
    count = min(nll_limit, test.info.length or nll_limit)
    nll, draws = 0.0, torch.Generator(_device(model)).manual_seed(seed)
    for start in range(0, count, 100):
        batch = take(test, range(start, min(start + 100, count)))
        image, condition = _placed(model, batch, told)
        nll += (
            cvae.importance_weighted_nll(model, image, condition, samples, generator=draws)
            .sum()
            .item()
        )
    means = drawn = None
    if tested.label is not None and model.config.latent:
        yield "codes of the training pictures"
        trained = codes(model, train, told, limit, seed + 1)
        assert trained.label is not None
        yield "a network reads the class from the codes"
        means = leak_probe(trained.mean, trained.label, tested.mean, tested.label, seed=seed)
        z, z_test = trained.drawn(seed), tested.drawn(seed + 1)
        drawn = leak_probe(z, trained.label, z_test, tested.label, seed=seed)
    report = VaeReport(
        pictures=len(tested.mean),
        elbo=tested.terms["elbo"],
        reconstruction=tested.terms["reconstruction"],
        kl=tested.terms["kl"],
        nll=nll / count,
        nll_samples=samples,
        nll_pictures=count,
        active=int(tested.terms["active"]),
        latent=model.config.latent,
        leak_means=means,
        leak_samples=drawn,
    )
    return report, tested


@torch.no_grad()
def codes(model: Cvae, source: Source, told: Told, limit: int, seed: int) -> Codes:
    """Posteriors of the first pictures of a source, and the mean terms of the bound on them."""
    count = min(limit, source.info.length or limit)
    means, variances, labels = [], [], []
    sums: dict[str, float] = {}
    divergence = torch.zeros(model.config.latent)
    for start in range(0, count, CHUNK):
        batch = take(source, range(start, min(start + CHUNK, count)))
        image, condition = _placed(model, batch, told)
        features = model.features(condition, len(image))
        q, p = model.posterior(image, features), model.prior(features)
        z = noise((model.config.latent,), range(seed + start, seed + start + len(image)))
        loss = cvae.objective(model, image, condition, noise=z.to(image.device))
        for name, term in loss.terms.items():
            sums[name] = sums.get(name, 0.0) + term.item() * len(image)
        divergence += cvae.kl_divergence(q, p).sum(0).cpu()
        means.append(q.mean.cpu())
        variances.append(q.log_variance.cpu())
        if "label" in batch:
            labels.append(batch["label"])
    terms = {name: total / count for name, total in sums.items()}
    terms["active"] = float((divergence / count > 0.01).sum())
    label = torch.cat(labels) if labels else None  # type: ignore[arg-type]
    return Codes(torch.cat(means), torch.cat(variances), label, terms)


@torch.no_grad()
def draw_figures(
    model: Cvae, test: Source, told: Told, found: Codes, folder: Path, *, seed: int = 0
) -> tuple[Path, ...]:
    """The lecture's figures as PNGs: latent scatter, one z under all conditions, manifold, swap,
    and more.
    """
    batch = take_first(test, 1000)
    drawn: dict[str, UInt8[np.ndarray, "_H _W 3"]] = {}
    if model.config.latent:
        drawn["reconstructions"] = _reconstructions(model, batch, told)
        drawn["interpolation"] = _interpolation(model, batch, told, test)
    if model.config.condition == "label":
        names = test.info.classes[:SHOWN]
        labels = torch.arange(len(names), device=_device(model))
        z = noise((model.config.latent,), range(seed, seed + 8)).to(labels.device)
        cells = cvae.shared_z(model, labels, z)
        rows = [f"z {i + 1}" for i in range(8)]
        drawn["shared-z"] = _grid(
            cells, rows, names, "One z, every class: what is left is the style"
        )
        drawn["swap"] = _swap(model, batch, names)
        drawn["manifold"] = _manifold(model, found, labels, names)
    paths = []
    for name, picture in drawn.items():
        save_picture(folder / f"{name}.png", picture, {"figure": name, "seed": seed})
        paths.append(folder / f"{name}.png")
    if found.label is not None and model.config.latent:
        paths.append(_scatter(found, test.info.classes, folder / "latent.png"))
    return tuple(paths)


def _reconstructions(model: Cvae, batch: Batch, told: Told) -> UInt8[np.ndarray, "_H _W 3"]:
    image, condition = _placed(model, _first(batch, SHOWN), told)
    shown = [image, cvae.reconstruct(model, image, condition)]
    names = ["picture", "through z"]
    if model.config.condition == "image":
        assert condition is not None
        draws = noise((model.config.latent,), range(3 * len(image))).to(image.device)
        shown = [condition[:, :-1] + (condition[:, -1:] - 1) * 0.2, image]
        shown += [cvae.sample(model, condition, z) for z in draws.split(len(image))]
        names = ["what is seen", "the truth", "completed", "again", "and again"]
    return _grid(torch.stack(shown), names, (), "")


def _interpolation(
    model: Cvae, batch: Batch, told: Told, test: Source
) -> UInt8[np.ndarray, "_H _W 3"]:
    """Between the codes of two pictures of one class, at that class."""
    rows, names = [], []
    labels = batch.get("label")
    image, condition = _placed(model, batch, told)
    for k in range(6):
        if labels is not None:
            same = torch.as_tensor(labels == k % len(test.info.classes)).nonzero()[:2, 0].tolist()
            names.append(test.info.classes[k % len(test.info.classes)])
        else:
            same = [2 * k, 2 * k + 1]
            names.append("")
        if len(same) < 2:
            continue
        a, b = same
        given = None if condition is None else condition[a : a + 1]
        rows.append(cvae.interpolate(model, image[a : a + 1], image[b : b + 1], given, SHOWN)[:, 0])
    title = "Between the codes of two pictures"
    return _grid(torch.stack(rows), names[: len(rows)], (), title)


def _swap(model: Cvae, batch: Batch, names: tuple[str, ...]) -> UInt8[np.ndarray, "_H _W 3"]:
    """Encoded under its own class, decoded under every class."""
    image = batch["image"][:8].to(_device(model))  # type: ignore[union-attr]
    label = batch["label"][:8].to(image.device)  # type: ignore[union-attr]
    columns = [image]
    for target in range(len(names)):
        columns.append(cvae.swap(model, image, label, torch.full_like(label, target)))
    cells = torch.stack(columns, 1)
    return _grid(cells, (), ("picture", *names), "The same style in every class")


def _manifold(
    model: Cvae, found: Codes, labels: Tensor, names: tuple[str, ...]
) -> UInt8[np.ndarray, "_H _W 3"]:
    """The plane of the two numbers of z that vary most, the others at 0, for a few classes."""
    side, latent = 12, model.config.latent
    axes = found.mean.var(0).argsort(descending=True)[:2]
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
    return _grid(torch.stack(sheets)[None], (), names[: len(sheets)], f"The manifold over {kind}")


def _scatter(found: Codes, classes: tuple[str, ...], path: Path) -> Path:
    """Posterior means, in colours of their classes: a class-free code mixes them."""
    if find_spec("matplotlib") is None:
        raise ValueError("plots need matplotlib: pip install 'triptych[evaluation]'")
    import matplotlib
    from matplotlib.figure import Figure

    assert found.label is not None
    mean, label = found.mean[:3000], found.label[:3000]
    flat, axis_name = mean, "z"
    if mean.shape[1] != 2:
        centred = mean - mean.mean(0)
        flat = centred @ torch.linalg.svd(centred, full_matrices=False)[2][:2].T
        axis_name = "principal direction"
    figure: Any = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "nipy_spectral"]
    for k, name in enumerate(classes[:20]):
        points = flat[label == k].numpy()
        colour = colours(k if len(classes) <= 10 else k / max(1, min(20, len(classes)) - 1))
        y = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
        axes.scatter(points[:, 0], y, s=5, alpha=0.6, color=colour, label=name, linewidths=0)
    axes.set(
        title="Posterior means of test pictures", xlabel=f"{axis_name} 1", ylabel=f"{axis_name} 2"
    )
    axes.legend(frameon=False, markerscale=3, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
    return path


def _grid(
    cells: Float[Tensor, "R N C H W"], rows: Any, columns: Any, title: str
) -> UInt8[np.ndarray, "_H _W 3"]:
    pictures = to_pictures(cells.flatten(0, 1))
    return labelled_grid(
        pictures.reshape(*cells.shape[:2], *pictures.shape[1:]), rows, columns, title
    )


def _placed(model: Cvae, batch: Batch, told: Told) -> tuple[Tensor, Tensor | None]:
    device = _device(model)
    moved: Batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    image = moved["image"]
    assert isinstance(image, Tensor)
    return image, told(moved)


def _first(batch: Batch, count: int) -> Batch:
    return {name: column[:count] for name, column in batch.items()}


def _device(model: Cvae) -> torch.device:
    return next(model.parameters()).device


def evaluate(options: EvaluateVae, run: TrainedRun) -> Generator[str, None, dict[str, Any]]:
    """Likelihood, leak and figures of a run; yields messages and returns the figures."""
    model, request = run.loaded.model, run.request
    assert isinstance(model, Cvae) and isinstance(request, TrainCvae)
    condition = conditioning(request.condition, run.train, quadrants=request.quadrants).of
    report, codes = yield from indent(
        evaluate_vae(
            model,
            run.train,
            run.test,
            condition,
            samples=options.likelihood_samples,
            nll_limit=options.likelihood_pictures,
            seed=run.seed,
        )
    )
    draw_figures(model, run.test, condition, codes, run.folder, seed=run.seed)
    figures: dict[str, Any] = to_json(report)
    write_json(run.folder / "vae.json", {"environment": environment(run.command)} | figures)
    terms = f"-({report.reconstruction:.2f} + {report.kl:.2f})"
    yield f"evidence lower bound {report.elbo:.2f} = {terms} nats"
    yield f"-log likelihood {report.nll:.2f} nats ({report.nll_samples} samples)"
    for name, leak in (("means", report.leak_means), ("samples", report.leak_samples)):
        if leak:
            yield f"class read from posterior {name}: {leak.value:.1%}, chance {leak.chance:.1%}"
    return {"vae": figures}

"""Likelihood of a conditional VAE in nats, and what its code reveals of the class.

Dimensions: N pictures, Z latent.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from triptych.data.order.batches import Batch, take_in_order, to_device
from triptych.data.source import Source
from triptych.runtime import generator, noise
from triptych.scores.accuracy import Accuracy
from triptych.systems.cvae import model as cvae
from triptych.systems.cvae.leak import leak_probe
from triptych.systems.cvae.model import Cvae

GetCondition = Callable[[Batch], Tensor | None]
"""The condition of each picture of a batch, as the model takes it."""

BATCH, LIKELIHOOD_BATCH = 500, 100  # pictures of one forward pass


@dataclass(frozen=True)
class VaeReport:
    """Scores on test pictures, in nats per picture; lower is better, except for the bound."""

    pictures: int
    elbo: float
    """The evidence lower bound: -(reconstruction + kl)."""
    reconstruction: float
    kl: float
    nll: float
    """-log p(picture | condition), importance-weighted: an upper bound, tighter with more samples.
    """
    nll_samples: int
    nll_pictures: int
    active: int
    """Numbers of z that carry more than 0.01 nats."""
    latent: int
    leak_means: Accuracy | None
    """Accuracy of a two-layer network that reads the class from posterior means; None without
    classes.
    """
    leak_samples: Accuracy | None
    """The same from samples of z."""


@dataclass(frozen=True, eq=False)
class Codes:
    """Posteriors of many pictures, and the mean terms of the bound on them."""

    mean: Float[Tensor, "N Z"]
    log_variance: Float[Tensor, "N Z"]
    label: Int[Tensor, " N"] | None
    terms: dict[str, float]

    def sample(self, seed: int) -> Float[Tensor, "N Z"]:
        draw = torch.randn(self.mean.shape, generator=generator(seed))
        return self.mean + (0.5 * self.log_variance).exp() * draw


def evaluate_vae(
    model: Cvae,
    train: Source,
    test: Source,
    get_condition: GetCondition,
    *,
    samples: int = 100,
    nll_limit: int = 1000,
    limit: int = 60_000,
    seed: int = 0,
) -> Generator[str, None, tuple[VaeReport, Codes]]:
    """Yields messages about progress and returns the report and the codes of the test pictures.

    The likelihood is estimated with `samples` importance samples on the first `nll_limit` test
    pictures; the leak probe is trained on at most `limit` training pictures.
    """
    yield "codes of the test pictures"
    test_codes = encode_source(model, test, get_condition, limit, seed)
    yield f"likelihood with {samples} importance samples"
    count = min(nll_limit, test.info.length or nll_limit)
    nll = _mean_nll(model, test, get_condition, count, samples, seed)
    leak_means = leak_samples = None
    if test_codes.label is not None and model.config.latent:
        yield "codes of the training pictures"
        train_codes = encode_source(model, train, get_condition, limit, seed + 1)
        assert train_codes.label is not None
        yield "a network reads the class from the codes"
        labels = train_codes.label, test_codes.label
        leak_means = leak_probe(train_codes.mean, labels[0], test_codes.mean, labels[1], seed=seed)
        z, z_test = train_codes.sample(seed), test_codes.sample(seed + 1)
        leak_samples = leak_probe(z, labels[0], z_test, labels[1], seed=seed)
    report = VaeReport(
        pictures=len(test_codes.mean),
        elbo=test_codes.terms["elbo"],
        reconstruction=test_codes.terms["reconstruction"],
        kl=test_codes.terms["kl"],
        nll=nll,
        nll_samples=samples,
        nll_pictures=count,
        active=int(test_codes.terms["active"]),
        latent=model.config.latent,
        leak_means=leak_means,
        leak_samples=leak_samples,
    )
    return report, test_codes


def _mean_nll(
    model: Cvae, test: Source, get_condition: GetCondition, count: int, samples: int, seed: int
) -> float:
    """Mean negative log likelihood of the first `count` pictures."""
    total, draws = 0.0, torch.Generator(device_of(model)).manual_seed(seed)
    for batch in take_in_order(test, count, LIKELIHOOD_BATCH):
        image, condition = prepare_batch(model, batch, get_condition)
        nll = cvae.importance_weighted_nll(model, image, condition, samples, generator=draws)
        total += nll.sum().item()
    return total / count


@torch.no_grad()
def encode_source(
    model: Cvae, source: Source, get_condition: GetCondition, limit: int, seed: int
) -> Codes:
    """Posteriors of the first `limit` pictures of a source, and the mean terms of the bound."""
    count = min(limit, source.info.length or limit)
    means, variances, labels = [], [], []
    sums: dict[str, float] = {}
    divergence = torch.zeros(model.config.latent)
    for number, batch in enumerate(take_in_order(source, limit, BATCH)):
        image, condition = prepare_batch(model, batch, get_condition)
        features = model.features(condition, len(image))
        q, p = model.posterior(image, features), model.prior(features)
        start = seed + number * BATCH
        z = noise((model.config.latent,), range(start, start + len(image)))
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


def prepare_batch(
    model: Cvae, batch: Batch, get_condition: GetCondition
) -> tuple[Tensor, Tensor | None]:
    """Pictures and conditions on the model's device."""
    batch = to_device(batch, device_of(model))
    return batch["image"], get_condition(batch)


def device_of(model: Cvae) -> torch.device:
    return next(model.parameters()).device

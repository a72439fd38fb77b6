"""Classifiers on frozen features: linear probes and few-shot learning.

Logistic regression is convex, so L-BFGS finds its one minimum, which scikit-learn finds too
(C = 1 / (penalty * N) there). The protocol is CLIP's (arXiv:2103.00020, section A.3): the penalty
is chosen on a validation part, then features of both parts are fitted.

Dimensions: N pictures, D width of a feature, K classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from triptych.runtime import generator, key
from triptych.scores.accuracy import Accuracy, accuracy

PENALTIES = tuple(10.0**exponent for exponent in range(1, -8, -1))  # strongest to weakest
SHOTS = (1, 2, 4, 8, 16)
VALIDATION_SHOTS = 4  # at most, beside the shots that are learned from (arXiv:2109.01134)


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier: `features @ weight.T + bias` are its logits."""

    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    penalty: float

    def logits(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        return features.to(self.weight) @ self.weight.T + self.bias


@dataclass(frozen=True)
class ProbeReport:
    """A linear probe on test pictures."""

    accuracy: Accuracy
    likelihood: float
    """Negative log likelihood, nats a picture."""
    penalty: float
    validation: dict[float, float]
    """Validation accuracy of each penalty."""


@dataclass(frozen=True)
class FewShot:
    """Few-shot accuracy over several draws of `shots` pictures per class."""

    head: str
    shots: int
    mean: float
    """Accuracy on all other pictures, the mean over draws."""
    deviation: float
    """The standard deviation over draws; 0 for a single one."""
    draws: tuple[float, ...]
    chance: float
    """The accuracy of always answering the most frequent class."""


def fit_probe(
    features: Float[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    classes: int,
    penalty: float,
    *,
    start: Float[Tensor, "K D"] | None = None,
    near: Probe | None = None,
) -> Probe:
    """Multinomial logistic regression: mean cross-entropy + penalty / 2 * |weight - start|^2.

    The bias has no penalty. `start` is zero, or the text vectors of the classes times a scale: then
    a strong penalty keeps the zero-shot classifier, a weak one gives an ordinary probe. `near`, an
    earlier fit, only makes this one faster.

    Raises:
        ValueError: shapes do not match, or the penalty is not above 0.
    """
    _check(features, labels, classes)
    if not 0 < penalty < math.inf:
        raise ValueError(f"penalty must be above 0 and finite, not {penalty}")
    x = features.double()
    centre = x.new_zeros(classes, x.shape[1]) if start is None else start.double()
    if centre.shape != (classes, x.shape[1]):
        raise ValueError(
            f"start must have a vector for each class, ({classes}, {x.shape[1]}), not "
            f"{tuple(centre.shape)}"
        )
    change = (torch.zeros_like(centre) if near is None else near.weight - centre).requires_grad_()
    bias = (x.new_zeros(classes) if near is None else near.bias.clone()).requires_grad_()
    solver = torch.optim.LBFGS(
        [change, bias],
        max_iter=1000,
        history_size=20,
        tolerance_grad=1e-8,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ (centre + change).T + bias, labels)
        total = loss + penalty / 2 * change.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(objective)  # type: ignore[arg-type]
    return Probe((centre + change).detach(), bias.detach(), penalty)


def choose_penalty(
    train: tuple[Float[Tensor, "N D"], Int64[Tensor, " N"]],
    validation: tuple[Float[Tensor, "n D"], Int64[Tensor, " n"]],
    classes: int,
    penalties: Sequence[float] = PENALTIES,
    start: Float[Tensor, "K D"] | None = None,
) -> tuple[float, dict[float, float]]:
    """The penalty with the best validation accuracy (of equals the strongest), and all accuracies.

    Each fit, from strong to weak, starts at the one before.
    """
    probe = None
    accuracies = {}
    for penalty in sorted(penalties, reverse=True):
        probe = fit_probe(*train, classes, penalty, start=start, near=probe)
        right = probe.logits(validation[0]).argmax(1) == validation[1]
        accuracies[penalty] = float(right.double().mean())
    return max(accuracies, key=lambda penalty: accuracies[penalty]), accuracies


def linear_probe(
    train: tuple[Float[Tensor, "N D"], Int64[Tensor, " N"]],
    test: tuple[Float[Tensor, "n D"], Int64[Tensor, " n"]],
    classes: int,
    *,
    penalties: Sequence[float] = PENALTIES,
    validation: float = 0.2,
    seed: int = 0,
) -> ProbeReport:
    """Fit on `train`, with the penalty chosen on a part of it, and score on `test`.

    Raises:
        ValueError: shapes do not match, or there are too few pictures for a validation part.
    """
    _check(*test, classes)
    probe, tried = fit_probe_and_penalty(
        *train, classes, penalties=penalties, validation=validation, seed=seed
    )
    logits = probe.logits(test[0])
    likelihood = float(F.cross_entropy(logits, test[1]))
    return ProbeReport(accuracy(logits.argmax(1), test[1]), likelihood, probe.penalty, tried)


def fit_probe_and_penalty(
    features: Float[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    classes: int,
    *,
    penalties: Sequence[float] = PENALTIES,
    validation: float = 0.2,
    seed: int = 0,
) -> tuple[Probe, dict[float, float]]:
    """A probe fitted to all pictures, with the penalty chosen on a held-out part of each class; and
    the validation accuracy of each penalty.

    Raises:
        ValueError: shapes do not match, or there are too few pictures for a validation part.
    """
    _check(features, labels, classes)
    counts = labels.bincount(minlength=classes)
    most = (counts - 1).clamp(min=0)  # at least one of each class is left to train on
    aside = (validation * counts).round().long().minimum(most)
    if not 0 < validation < 1 or int(aside.sum()) == 0:
        raise ValueError(
            f"{validation:.0%} of at most {int(counts.max())} pictures of a class leaves none to "
            "choose the penalty on: use more pictures"
        )
    choosing = _ranks_in_class(labels, classes, key(seed, "validation")) < aside[labels]
    penalty, tried = choose_penalty(
        (features[~choosing], labels[~choosing]),
        (features[choosing], labels[choosing]),
        classes,
        penalties,
    )
    return fit_probe(features, labels, classes, penalty), tried


def nearest_mean(
    features: Float[Tensor, "N D"], labels: Int64[Tensor, " N"], classes: int
) -> Float[Tensor, "K D"]:
    """The mean of each class's unit features, at unit length; cosines with it are the logits
    (prototypes, arXiv:1703.05175).

    Raises:
        ValueError: a class has no example.
    """
    _check(features, labels, classes)
    if int(labels.bincount(minlength=classes).min()) == 0:
        raise ValueError("a class has no example")
    sums = features.new_zeros(classes, features.shape[1])
    return F.normalize(sums.index_add(0, labels, F.normalize(features, dim=1)), dim=1)


def few_shot(
    features: Float[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    classes: int,
    shots: int,
    *,
    head: Literal["nearest mean", "probe", "probe from text"] = "nearest mean",
    text: Float[Tensor, "K D"] | None = None,
    scale: float = 1.0,
    penalties: Sequence[float] = PENALTIES,
    seeds: Sequence[int] = range(5),
    test: tuple[Float[Tensor, "n D"], Int64[Tensor, " n"]] | None = None,
) -> FewShot:
    """Learn from `shots` random pictures of each class and score on all others, or on `test`.

    `nearest mean` uses prototypes. `probe` is logistic regression; `probe from text` is the same
    with the penalty centred at the zero-shot classifier, `scale * text`. Their penalty is chosen on
    up to four further pictures of each class, which are not scored either.

    Raises:
        ValueError: a class has no picture left to score on, or `text` is missing.
    """
    _check(features, labels, classes)
    if head == "probe from text" and text is None:
        raise ValueError("a probe from text needs the text vectors of the classes")
    counts = labels.bincount(minlength=classes)
    aside = 0 if head == "nearest mean" else min(shots, VALIDATION_SHOTS)
    if test is not None:
        _check(*test, classes)
    if shots < 1 or int(counts.min()) < shots + aside + (test is None):
        raise ValueError(
            f"{shots} shots and {aside} validation pictures "
            + ("leave none to score on" if test is None else "are too many")
            + f": the smallest class has {int(counts.min())}"
        )
    start = scale * text if head == "probe from text" and text is not None else None
    accuracies, chance = [], 0.0
    for seed in seeds:
        ranks = _ranks_in_class(labels, classes, seed)
        learn, choose, others = ranks < shots, ranks < shots + aside, ranks >= shots + aside
        choose &= ~learn
        judge, truth = (features[others], labels[others]) if test is None else test
        if head == "nearest mean":
            means = nearest_mean(features[learn], labels[learn], classes)
            logits = F.normalize(judge, dim=1) @ means.T
        else:
            shown = features[learn], labels[learn]
            chosen, _ = choose_penalty(
                shown, (features[choose], labels[choose]), classes, penalties, start
            )
            logits = fit_probe(*shown, classes, chosen, start=start).logits(judge)
        judged = accuracy(logits.argmax(1), truth)
        accuracies.append(judged.value)
        chance = judged.chance
    values = torch.tensor(accuracies, dtype=torch.double)
    spread = float(values.std()) if len(values) > 1 else 0.0
    return FewShot(head, shots, float(values.mean()), spread, tuple(accuracies), chance)


def _ranks_in_class(labels: Tensor, classes: int, seed: int) -> Tensor:
    """A random order of the pictures of each class: 0 is the first of its class."""
    order = torch.randperm(len(labels), generator=generator(key(seed, "shots")))
    ranks = torch.empty_like(labels)
    for number in range(classes):
        own = order[labels[order] == number]
        ranks[own] = torch.arange(len(own))
    return ranks


def _check(features: Tensor, labels: Tensor, classes: int) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise ValueError(
            f"features must be (N, D) with labels (N,), not {tuple(features.shape)} with "
            f"{tuple(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"a label must be the number of a class, 0 to {classes - 1}")
    if not bool(features.isfinite().all()):
        raise ValueError("a feature is not finite")

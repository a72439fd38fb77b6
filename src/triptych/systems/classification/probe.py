"""What frozen features know: a linear classifier on top of them, and one from a few examples.

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

PENALTIES = tuple(10.0**exponent for exponent in range(1, -8, -1))  # of strongest to weakest
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
    """A linear probe on pictures that it was not fitted to."""

    accuracy: Accuracy
    likelihood: float
    """Negative log likelihood, nats a picture."""
    penalty: float
    validation: dict[float, float]
    """Accuracy on the validation part for each penalty that was tried."""


@dataclass(frozen=True)
class FewShot:
    """Learning from `shots` pictures of each class, over several draws of them."""

    head: str
    shots: int
    mean: float
    """Accuracy on all other pictures, the mean over draws."""
    deviation: float
    """The standard deviation over draws; 0 for a single one."""
    draws: tuple[float, ...]
    chance: float
    """What the best constant answer gets."""


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

    The bias is free. `start` is zero, or the text vectors of the classes times a scale, towards
    which few examples should pull only as far as they justify: a strong penalty leaves the
    zero-shot classifier, a weak one an ordinary probe. `near` only makes the fit quicker.

    Raises:
        ValueError: features and labels do not fit together, or the penalty is not above 0.
    """
    _check(features, labels, classes)
    if not 0 < penalty < math.inf:
        raise ValueError(f"penalty must be above 0, for one minimum to exist, not {penalty}")
    x = features.double()
    centre = x.new_zeros(classes, x.shape[1]) if start is None else start.double()
    if centre.shape != (classes, x.shape[1]):
        raise ValueError(
            f"start is a vector for each class, ({classes}, {x.shape[1]}), not "
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
    """The penalty with the best validation accuracy; among equals the strongest. And all of them.

    From strong to weak, each fit beginning where the last one ended.
    """
    probe = None
    found = {}
    for penalty in sorted(penalties, reverse=True):
        probe = fit_probe(*train, classes, penalty, start=start, near=probe)
        right = probe.logits(validation[0]).argmax(1) == validation[1]
        found[penalty] = float(right.double().mean())
    return max(found, key=lambda penalty: found[penalty]), found


def linear_probe(
    train: tuple[Float[Tensor, "N D"], Int64[Tensor, " N"]],
    test: tuple[Float[Tensor, "n D"], Int64[Tensor, " n"]],
    classes: int,
    *,
    penalties: Sequence[float] = PENALTIES,
    validation: float = 0.2,
    seed: int = 0,
) -> ProbeReport:
    """Fit to `train`, a part of which chooses the penalty, and judge on `test`.

    Raises:
        ValueError: features and labels do not fit together, or too few to set a part aside.
    """
    _check(*test, classes)
    probe, tried = chosen_probe(
        *train, classes, penalties=penalties, validation=validation, seed=seed
    )
    logits = probe.logits(test[0])
    likelihood = float(F.cross_entropy(logits, test[1]))
    return ProbeReport(accuracy(logits.argmax(1), test[1]), likelihood, probe.penalty, tried)


def chosen_probe(
    features: Float[Tensor, "N D"],
    labels: Int64[Tensor, " N"],
    classes: int,
    *,
    penalties: Sequence[float] = PENALTIES,
    validation: float = 0.2,
    seed: int = 0,
) -> tuple[Probe, dict[float, float]]:
    """A probe fitted to all of these pictures, its penalty chosen on a part of each class that the
    fits it was chosen among had not seen; and the accuracy of each penalty there.

    Raises:
        ValueError: features and labels do not fit together, or too few to set a part aside.
    """
    _check(features, labels, classes)
    counts = labels.bincount(minlength=classes)
    most = (counts - 1).clamp(min=0)  # one of each class stays to learn from
    aside = (validation * counts).round().long().minimum(most)
    if not 0 < validation < 1 or int(aside.sum()) == 0:
        raise ValueError(
            f"{validation:.0%} of {int(counts.max())} pictures of a class or fewer leave no part "
            "to choose the penalty on"
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
    """The direction of each class: the mean of its unit features, of unit length again.

    Cosines with it are the logits (prototypes, arXiv:1703.05175).

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
    """Draw `shots` pictures of each class, learn from them, judge on all the others, or on `test`.

    `nearest mean` is prototypes. `probe` is logistic regression from zero, `probe from text` one
    that is pulled towards the zero-shot classifier, `scale * text`. Their penalty is chosen on up
    to four further pictures of each class, which are not judged on either.

    Raises:
        ValueError: a class has no picture left to judge on, or `text` is missing.
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
            f"{shots} shots and {aside} pictures to choose by "
            + ("leave none to judge on" if test is None else "are too many")
            + f": the smallest class has {int(counts.min())}"
        )
    start = scale * text if head == "probe from text" and text is not None else None
    found, chance = [], 0.0
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
        found.append(judged.value)
        chance = judged.chance
    values = torch.tensor(found, dtype=torch.double)
    spread = float(values.std()) if len(values) > 1 else 0.0
    return FewShot(head, shots, float(values.mean()), spread, tuple(found), chance)


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
            f"expected features (N, D) with a label each, not {tuple(features.shape)} with "
            f"{tuple(labels.shape)}"
        )
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels are numbers of {classes} classes, 0 to {classes - 1}")
    if not bool(features.isfinite().all()):
        raise ValueError("a feature is not finite")

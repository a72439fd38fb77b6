"""Maps among words and detectors of novelty: against formulas written out again, and in a world
where the right map is known."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from triptych.systems.classifier.model import ClassifierConfig
from triptych.systems.word_space.model import (
    QUANTILES,
    WordSpace,
    WordSpaceConfig,
    fit_gaussians,
    fit_outliers,
    gaussian_novelty,
    log_likelihoods,
    mix_classes,
    objective,
    outlier_probability,
    rank_loss,
    squared_error,
)


def model(method="socher", seen=(0, 2, 3), **more) -> WordSpace:
    torch.manual_seed(0)
    network = ClassifierConfig(8, 8, 1, (len(seen),), widths=(8, 12))
    config = WordSpaceConfig(network, seen, 5, 4, method, hidden=6, **more)
    made = WordSpace(config)
    made.set_words(torch.randn(5, 4))
    return made


def test_socher_sums_squared_distances_from_the_right_words():
    mapped, words = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    assert squared_error(mapped, torch.tensor([0, 1]), words).item() == 4 + 25


def test_devise_sums_hinges_over_wrong_words():
    torch.manual_seed(0)
    mapped, label = torch.randn(7, 4), torch.randint(3, (7,))
    words = torch.nn.functional.normalize(torch.randn(3, 4))
    wanted = 0.0
    for v, right in zip(mapped.double().numpy(), label.tolist(), strict=True):
        for wrong in set(range(3)) - {right}:
            t = words.double().numpy()
            wanted += max(0.0, 0.1 - t[right] @ v + t[wrong] @ v)
    assert wanted > 1
    assert rank_loss(mapped, label, words, 0.1).item() == pytest.approx(wanted, rel=1e-5)


def test_devise_words_are_unit_length_and_socher_words_as_they_are():
    words = torch.randn(5, 4)
    for method, length in (("devise", torch.ones(5)), ("socher", words.norm(dim=1))):
        made = model(method)
        made.set_words(words)
        torch.testing.assert_close(made.words.norm(dim=1), length)


def test_likelihoods_are_those_of_isometric_gaussians():
    torch.manual_seed(0)
    mapped, words, variance = torch.randn(6, 4), torch.randn(3, 4), torch.tensor([0.5, 1.0, 2.0])
    found = log_likelihoods(mapped, words, variance)
    for k in range(3):
        normal = MultivariateNormal(words[k], variance[k] * torch.eye(4))
        torch.testing.assert_close(found[:, k], normal.log_prob(mapped))


def test_the_fitted_variance_is_the_likeliest():
    torch.manual_seed(0)
    words, label = torch.randn(2, 4), torch.arange(600) % 2
    mapped = words[label] + torch.randn(600, 4) * torch.tensor([[0.5], [2.0]])[label]
    fitted = fit_gaussians(mapped, label, words).variance
    assert fitted.sqrt().tolist() == pytest.approx([0.5, 2.0], rel=0.05)

    def likelihood(variance):
        return log_likelihoods(mapped, words, variance).gather(1, label[:, None]).sum()

    assert likelihood(fitted) > max(likelihood(fitted * 1.05), likelihood(fitted * 0.95))


@pytest.mark.parametrize("step", [20, 100, 180])
def test_gaussian_novelty_is_a_threshold_on_every_class_density(step):
    """Socher's indicator, with each T_y at the same share of its class's training pictures."""
    torch.manual_seed(0)
    words, label = torch.randn(3, 4), torch.arange(900) % 3
    spread = torch.tensor([0.3, 0.6, 1.0])
    mapped = words[label] + torch.randn(900, 4) * spread[label][:, None]
    gaussians = fit_gaussians(mapped, label, words)
    share = step / (QUANTILES - 1)
    new = torch.randn(500, 4) * 1.5
    unseen = torch.ones(500, dtype=torch.bool)
    for k in range(3):
        normal = MultivariateNormal(words[k], gaussians.variance[k] * torch.eye(4))
        lowest = normal.log_prob(mapped[label == k]).quantile(1 - share)
        unseen &= normal.log_prob(new) < lowest
    # densities and distances interpolate differently between two training pictures
    agree = (gaussian_novelty(gaussians, new) > share) == unseen
    assert agree.float().mean() > 0.99
    assert 0.1 < unseen.float().mean() < 0.99


def naive_outlier_probability(points, new, k, significance):
    """Kriegel et al. 2009 word for word, one picture at a time, in double precision."""
    points = np.asarray(points, dtype=np.float64)

    def standard_distance(x, others):
        distances = sorted((math.dist(x, other), i) for i, other in others)[:k]
        return math.sqrt(sum(d * d for d, _ in distances) / k), [i for _, i in distances]

    everyone = list(enumerate(points))
    spread, context = [], []
    for i, x in everyone:
        s, near = standard_distance(x, [(j, o) for j, o in everyone if j != i])
        spread.append(significance * s)
        context.append(near)

    def factor(own, near):
        return own / (sum(spread[j] for j in near) / k) - 1

    factors = [factor(s, near) for s, near in zip(spread, context, strict=True)]
    scale = significance * math.sqrt(sum(f * f for f in factors) / len(factors))
    found = []
    for x in np.asarray(new, dtype=np.float64):
        s, near = standard_distance(x, everyone)
        found.append(max(0.0, math.erf(factor(significance * s, near) / (scale * math.sqrt(2)))))
    return found


@pytest.mark.parametrize("significance", [1.0, 3.0])
def test_outlier_probability_is_loop(significance):
    torch.manual_seed(0)
    points = torch.cat([torch.randn(40, 3), 5 + 0.2 * torch.randn(20, 3)])
    new = torch.cat([torch.randn(10, 3), 5 + 0.2 * torch.randn(10, 3), 4 * torch.randn(10, 3)])
    outliers = fit_outliers(points, 5, significance=significance)
    found = outlier_probability(outliers, new, 5)
    wanted = naive_outlier_probability(points, new, 5, significance)
    assert found.tolist() == pytest.approx(wanted, abs=1e-4)
    assert max(wanted[20:]) > 0.9 > 0.5 > sum(wanted[:20]) / 20


def test_the_mixture_is_a_distribution_and_novelty_decides():
    among_seen = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    among_unseen = torch.tensor([[0.2, 0.8], [1.0, 0.0]])
    found = mix_classes(among_seen, among_unseen, torch.tensor([0.25, 1.0]), (0, 3), (1, 2))
    torch.testing.assert_close(found[0], torch.tensor([0.675, 0.05, 0.2, 0.075]))
    assert found[1].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_probabilities_follow_the_detector():
    made = model(points=20, neighbours=4).eval()
    image = torch.rand(60, 1, 8, 8)
    label = torch.tensor([0, 2, 3])[torch.arange(60) % 3]
    with pytest.raises(ValueError, match="fit_novelty"):
        made.probabilities(image)
    with torch.no_grad():
        mapped = made.embed(image)
        made.fit_novelty(mapped, label)
        features = made.network.features(image)
        (logits,) = made.network.logits(features)
        all_seen = made.probabilities(image, threshold=1.0)
        torch.testing.assert_close(all_seen[:, [0, 2, 3]], logits.softmax(1))
        assert all_seen[:, [1, 4]].max() == 0
        all_unseen = made.probabilities(image, threshold=-1.0)
        nearest = torch.cdist(mapped, made.words[[1, 4]]).argmin(1)
        assert torch.equal(all_unseen.argmax(1), torch.tensor([1, 4])[nearest])
        mixed = made.probabilities(image, "outlier", threshold=None)
        torch.testing.assert_close(mixed.sum(1), torch.ones(60))
        novelty = made.novelty(mapped, "outlier")
        torch.testing.assert_close(mixed[:, [1, 4]].sum(1), novelty)


def moved_by(made: WordSpace, fine_tune: bool) -> set[str]:
    image, label = torch.rand(6, 1, 8, 8), torch.tensor([0, 2, 3, 0, 2, 3])
    torch.nn.init.normal_(made.map.weight)
    made.network.heads.requires_grad_(False)  # leaves what reaches the features
    made.network.heads[0].weight.data.zero_()  # and takes the cross-entropy's gradient from them
    objective(made, image, label, fine_tune=fine_tune).total.backward()
    moving = {
        n.split(".")[0] for n, p in made.named_parameters() if p.grad is not None and p.grad.any()
    }
    return moving


def test_the_rank_loss_reaches_the_network_only_when_fine_tuning():
    assert moved_by(model("devise"), fine_tune=False) == {"map"}
    assert moved_by(model("devise"), fine_tune=True) == {"map", "network"}


def test_the_loss_is_the_sum_of_the_map_and_of_the_network():
    made = model().eval()
    image, label = torch.rand(4, 1, 8, 8), torch.tensor([0, 2, 3, 2])
    place = torch.tensor([0, 1, 2, 1])
    loss = objective(made, image, label, smoothing=0.0)
    (logits,) = made.network(image)
    wanted = torch.nn.functional.cross_entropy(logits, place, reduction="sum")
    of_map = (made.embed(image) - made.words[label]).square().sum()
    assert loss.count == 4
    torch.testing.assert_close(loss.total, wanted + of_map)
    assert loss.terms["map"].item() == pytest.approx(of_map.item() / 4)


@pytest.mark.parametrize("method", ["socher", "devise"])
def test_unseen_classes_are_named_in_a_world_where_features_are_a_map_of_words(method):
    """24 classes in 4 numbers, features a fixed random matrix of them: 20 classes show the map, and
    the other four follow. Chance is 0.25."""
    torch.manual_seed(0)
    words = torch.nn.functional.normalize(torch.randn(24, 4))
    to_features = torch.randn(4, 12)

    def pictures(classes, count):
        label = classes[torch.randint(len(classes), (count,))]
        return words[label] @ to_features + 0.2 * torch.randn(count, 12), label

    seen, unseen = torch.arange(20), torch.arange(20, 24)
    network = ClassifierConfig(8, 8, 1, (20,), widths=(12,))
    made = WordSpace(WordSpaceConfig(network, tuple(range(20)), 24, 4, method, hidden=64))
    made.set_words(words)
    optimizer = torch.optim.Adam(made.map.parameters(), lr=1e-2)
    loss = squared_error if method == "socher" else rank_loss
    for _ in range(300):
        features, label = pictures(seen, 128)
        optimizer.zero_grad()
        (loss(made.map(features), label, made.words[:20]) / 128).backward()
        optimizer.step()
    features, label = pictures(unseen, 400)
    answers = unseen[made.scores(made.map(features))[:, 20:].argmax(1)]
    assert (answers == label).float().mean() > 0.9


def test_what_does_not_fit_is_named():
    network = ClassifierConfig(8, 8, 1, (2,), widths=(8,))
    with pytest.raises(ValueError, match="different numbers below 3"):
        WordSpaceConfig(network, (0, 3), 3, 4)
    with pytest.raises(ValueError, match="group of 3 labels"):
        WordSpaceConfig(network, (0, 1, 2), 4, 4)
    with pytest.raises(ValueError, match="more than the 20 neighbours"):
        WordSpaceConfig(network, (0, 1), 3, 4, points=20)
    made = model()
    with pytest.raises(ValueError, match=r"labels \[1, 4\] are not among the seen"):
        objective(made, torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 4]))
    with pytest.raises(ValueError, match=r"shape \(5, 4\), not \(4, 4\)"):
        made.set_words(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="no pictures of the seen classes"):
        fit_gaussians(torch.zeros(3, 4), torch.tensor([0, 0, 2]), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="got only 10"):
        made.fit_novelty(torch.randn(10, 4), torch.tensor([0, 2, 3, 0, 2, 3, 0, 2, 3, 0]))
    with pytest.raises(ValueError, match="more points than 5"):
        fit_outliers(torch.randn(5, 2), 5)

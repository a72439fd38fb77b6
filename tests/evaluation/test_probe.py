"""The linear probe is scikit-learn's logistic regression; few shots are what they say."""

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from triptych.evaluation.probe import few_shot, fit_probe, linear_probe, nearest_mean


@pytest.fixture(scope="module")
def digits():
    pictures, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pictures / 16), torch.from_numpy(labels).long()


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_parity_with_scikit_learn(digits, penalty):
    features, labels = digits
    train, test = slice(0, 1000), slice(1000, None)
    peer = LogisticRegression(C=1 / (penalty * 1000), tol=1e-8, max_iter=5000)
    peer.fit(features[train], labels[train])
    ours = fit_probe(features[train], labels[train], 10, penalty)
    theirs = torch.from_numpy(peer.predict_log_proba(features[test]))
    logits = ours.logits(features[test])
    loss, other = (F.cross_entropy(x, labels[test]).item() for x in (logits, theirs))
    assert loss == pytest.approx(other, abs=1e-5)
    right, same = ((x.argmax(1) == labels[test]).double().mean() for x in (logits, theirs))
    assert abs(right - same) <= 1e-3 and right > 0.85
    assert (ours.weight - torch.from_numpy(peer.coef_)).abs().max() < 1e-3


def test_the_penalty_is_chosen_and_chance_is_beside_it(digits):
    features, labels = digits
    penalties = (1e2, 1e-2)
    found = linear_probe(
        (features[:1000], labels[:1000]), (features[1000:], labels[1000:]), 10, penalties=penalties
    )
    assert set(found.validation) == set(penalties) and found.penalty < 1
    assert found.validation[found.penalty] == max(found.validation.values())
    assert found.accuracy.value > 0.88 and found.accuracy.chance < 0.12


def test_the_nearest_mean_by_hand():
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, -1.0]])
    means = nearest_mean(features, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(means, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0]]))
    with pytest.raises(ValueError, match="no example"):
        nearest_mean(features, torch.tensor([0, 0, 0]), 2)


def test_a_probe_from_text_goes_from_zero_shot_to_a_plain_one(digits):
    """Strongly held it is its start, whatever the examples say; loosely it forgets it."""
    features, labels = digits
    few, answers = features[:40], labels[:40]
    start = torch.randn(10, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    held = fit_probe(few, answers, 10, 1e6, start=start)
    assert (held.weight - start).abs().max() < 1e-5
    near = [fit_probe(few, answers, 10, penalty, start=start) for penalty in (1.0, 1e-2)]
    moved = [(probe.weight - start).norm() for probe in near]
    assert 1e-3 < moved[0] < moved[1]
    loss = [F.cross_entropy(probe.logits(few), answers) for probe in (held, *near)]
    assert loss[0] > loss[1] > loss[2]


def test_more_shots_know_more_and_text_helps_the_first(digits):
    """Text vectors here are class means of pictures that no draw can take: a fair stand-in."""
    features, labels = digits
    text = nearest_mean(features[:600], labels[:600], 10)
    rest = features[600:], labels[600:]
    means = [few_shot(*rest, 10, shots, seeds=range(2)).mean for shots in (1, 16)]
    assert means[0] + 0.1 < means[1]
    settings = {"seeds": range(2), "penalties": (1e-1,)}
    plain = few_shot(*rest, 10, 1, head="probe", **settings)
    told = few_shot(*rest, 10, 1, head="probe from text", text=text, scale=20.0, **settings)
    assert told.mean > plain.mean + 0.1 > 0.4
    assert len(told.draws) == 2 and told.chance < 0.15


def test_what_cannot_be_learned_is_refused(digits):
    features, labels = digits
    with pytest.raises(ValueError, match="leave none to judge on"):
        few_shot(features, labels, 10, 174)
    with pytest.raises(ValueError, match="needs the text"):
        few_shot(features, labels, 10, 1, head="probe from text")
    with pytest.raises(ValueError, match="above 0"):
        fit_probe(features, labels, 10, 0.0)
    with pytest.raises(ValueError, match="0 to 4"):
        fit_probe(features, labels, 5, 1.0)

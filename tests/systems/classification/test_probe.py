"""The linear probe is scikit-learn's logistic regression; few shots are what they say."""

import json
import re

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from torch.nn import functional as F

from triptych.systems.classification.probe import (
    few_shot,
    fit_probe,
    fit_probe_and_penalty,
    linear_probe,
    nearest_mean,
)


@pytest.fixture(scope="module")
def digits():
    pictures, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pictures / 16), torch.from_numpy(labels).long()


@pytest.mark.parametrize("penalty", [1e-1, pytest.param(1e-3, marks=pytest.mark.slow)])
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


def test_real_clip_features_and_the_choice_of_another_library(real_data):
    """Which of 1,000 photos show a dog, by what OpenAI's ViT-B/32 saw of them: the whole path,
    penalties and all, against a stratified search by another library.
    """
    folder = real_data / "clip_embeddings"
    image = torch.from_numpy(np.load(folder / "flickr8k_train1000_vitb32_image.npy")).float()
    told = json.loads((folder / "flickr8k_train1000_rows.json").read_text())
    dogs = [bool(re.search(r"\bdogs?\b", row["caption"], re.IGNORECASE)) for row in told]
    labels = torch.tensor(dogs).long()
    train, test = slice(0, 700), slice(700, None)
    penalties = (1e-1, 1e-3, 1e-5)
    probe, tried = fit_probe_and_penalty(image[train], labels[train], 2, penalties=penalties)
    # two classes have one vector there, ours two of half its length
    peers = [LogisticRegression(C=2 / (p * 700), max_iter=5000, tol=1e-8) for p in penalties]
    shares = [cross_val_score(peer, image[train], labels[train], cv=5).mean() for peer in peers]
    assert [tried[p] for p in penalties] == pytest.approx(shares, abs=0.06)
    assert shares[penalties.index(probe.penalty)] > max(shares) - 0.02 > shares[0] + 0.1
    peer = peers[penalties.index(probe.penalty)].fit(image[train], labels[train])
    right = probe.logits(image[test]).argmax(1) == labels[test]
    assert float(right.double().mean()) == pytest.approx(
        peer.score(image[test], labels[test]), abs=1 / 300
    )
    assert right.double().mean() > 0.9 > 0.8 > 1 - labels[test].double().mean()


def test_the_penalty_is_chosen_on_a_part_of_each_class():
    """Features that say their class in one number; one of a rare class always stays to learn."""
    labels = torch.tensor([0] * 10 + [1] * 5 + [2])
    features = F.one_hot(labels, 3).double()
    probe, tried = fit_probe_and_penalty(features, labels, 3, penalties=(1e-4,), validation=0.4)
    assert tried == {1e-4: 1.0}
    assert torch.equal(probe.logits(features).argmax(1), labels)
    with pytest.raises(ValueError, match="leaves none to choose"):
        fit_probe_and_penalty(features[[0, 10, 15]], labels[[0, 10, 15]], 3)


def test_what_chooses_the_penalty_was_not_fitted():
    """Labels that mean nothing, in more dimensions than pictures: a fit knows its own by heart."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(100, 200, generator=draw, dtype=torch.float64)
    labels = torch.arange(100) % 2
    probe, tried = fit_probe_and_penalty(features, labels, 2, penalties=(1e-3,))
    assert torch.equal(probe.logits(features).argmax(1), labels)
    assert tried[1e-3] < 0.85  # of 20 coins


def test_few_shots_are_judged_on_other_pictures_where_they_are_given(digits):
    features, labels = digits
    test = features[1500:], labels[1500:]
    few = features[:300], labels[:300]
    found = few_shot(*few, 10, 4, seeds=(0,), test=test)
    order = few_shot(features, labels, 10, 4, seeds=(0,))
    assert found.draws != order.draws and 0.5 < found.mean < 1
    assert found.mean * 297 == pytest.approx(round(found.mean * 297))
    smallest = int(few[1].bincount().min())
    assert few_shot(*few, 10, smallest, seeds=(0,), test=test).shots == smallest
    with pytest.raises(ValueError, match="too many"):
        few_shot(*few, 10, smallest + 1, seeds=(0,), test=test)


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
    with pytest.raises(ValueError, match="leave none to score on"):
        few_shot(features, labels, 10, 174)
    with pytest.raises(ValueError, match="needs the text"):
        few_shot(features, labels, 10, 1, head="probe from text")
    with pytest.raises(ValueError, match="above 0"):
        fit_probe(features, labels, 10, 0.0)
    with pytest.raises(ValueError, match="0 to 4"):
        fit_probe(features, labels, 5, 1.0)

"""Accuracies and confusion against scikit-learn and by hand."""

import math

import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score

from triptych.scores.accuracy import wilson_interval
from triptych.systems.classification.plots import draw_zero_shot
from triptych.systems.classification.report import zero_shot
from triptych.vision.images import open_picture

NAMES = [f"class {number}" for number in range(8)]


def scored(pictures=300, seed=0):
    draws = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 7, (pictures,), generator=draws)  # none of the last class
    logits = torch.randn(pictures, 8, generator=draws)
    logits[torch.arange(pictures), truth] += 1.5
    return logits, truth


def test_accuracies_and_confusion_are_scikit_learns():
    logits, truth = scored()
    found = zero_shot(logits, truth, NAMES, "softmax")
    assert (confusion_matrix(truth, logits.argmax(1), labels=range(8)) == found.confusion).all()
    for share, k in ((found.top1, 1), (found.top5, 5)):
        peer = top_k_accuracy_score(truth, logits, k=k, labels=range(8))
        assert share.value == pytest.approx(peer)
        assert (share.low, share.high) == wilson_interval(round(300 * peer), 300)
    counts = truth.bincount().sort(descending=True).values
    assert found.top1.chance == pytest.approx(int(counts[0]) / 300)
    assert found.top5.chance == pytest.approx(int(counts[:5].sum()) / 300)


def test_a_class_without_pictures_has_no_accuracy():
    found = zero_shot(*scored(), NAMES, "softmax")
    assert found.classes[7].accuracy is None
    shares = [c.accuracy.value for c in found.classes[:7]]
    assert found.mean_class == pytest.approx(sum(shares) / 7)


def test_mistakes_are_named():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    found = zero_shot(logits, torch.tensor([0, 0, 0, 1]), ("ant", "bee", "cow"), "softmax")
    assert [c.taken_for for c in found.classes] == ["cow", "", ""]
    assert found.top5 is None and found.confusion[0] == (1, 0, 2)


def test_the_fitted_temperature_mends_a_model_that_is_too_sure():
    logits, truth = scored(4000)
    found = zero_shot(20 * logits, truth, NAMES, "softmax").held_out
    assert found.temperature > 10
    assert found.after.error < 0.05 < 0.2 < found.before.error
    assert found.likelihood_after < found.likelihood_chance < found.likelihood_before
    assert found.likelihood_chance == pytest.approx(math.log(8))


def test_confidence_is_read_as_the_model_is():
    logits, truth = scored()
    found = zero_shot(logits, truth, NAMES, "sigmoid")
    assert found.calibration.confidence == pytest.approx(float(logits.amax(1).sigmoid().mean()))


def test_plots_are_pictures(tmp_path):
    drawn = draw_zero_shot(zero_shot(*scored(), NAMES, "softmax"), tmp_path)
    assert [path.name for path in drawn] == ["confusion.png", "reliability.png"]
    for path in drawn:
        assert open_picture(path).std() > 10


def test_what_does_not_fit_is_refused():
    logits, truth = scored()
    with pytest.raises(ValueError, match="L labels"):
        zero_shot(logits, truth, NAMES[:5], "softmax")
    with pytest.raises(ValueError, match="0 to 7"):
        zero_shot(logits, truth + 5, NAMES, "softmax")
    with pytest.raises(ValueError, match="not finite"):
        zero_shot(logits / 0, truth, NAMES, "softmax")

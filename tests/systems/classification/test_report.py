"""Accuracies and confusion against scikit-learn and by hand."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torch.nn import functional as F

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


def test_a_temperature_is_judged_on_pictures_that_it_was_not_fitted_to():
    """Another answer to one picture moves the temperature or the likelihood, never both; so found,
    the halves give the temperature of a general minimiser and the losses of torch.
    """
    logits, truth = scored(25)
    logits = 6 * logits
    first = zero_shot(logits, truth, NAMES, "softmax").held_out
    fitted, judged = [], []
    for picture in range(25):
        other = truth.clone()
        other[picture] = (truth[picture] + 1) % 7
        found = zero_shot(logits, other, NAMES, "softmax").held_out
        if found.temperature != first.temperature:
            fitted.append(picture)
        if found.likelihood_before != first.likelihood_before:
            judged.append(picture)
    assert len(fitted) == 12 and sorted(fitted + judged) == list(range(25))

    def loss(temperature, pictures):
        return F.cross_entropy(logits[pictures].double() / temperature, truth[pictures]).item()

    peer = minimize_scalar(loss, args=(fitted,), bounds=(0.1, 100), method="bounded")
    assert first.temperature == pytest.approx(peer.x, rel=1e-4)
    assert first.likelihood_before == pytest.approx(loss(1, judged))
    assert first.likelihood_after == pytest.approx(loss(peer.x, judged), rel=1e-4)
    for calibration, heat in ((first.before, 1), (first.after, peer.x)):
        sure, said = (logits[judged].double() / heat).softmax(1).max(1)
        assert calibration.confidence == pytest.approx(sure.mean().item(), rel=1e-4)
        assert calibration.accuracy == pytest.approx((said == truth[judged]).double().mean().item())


def test_other_seeds_divide_the_pictures_otherwise():
    logits, truth = scored(60)
    first, again, other = (
        zero_shot(logits, truth, NAMES, "softmax", seed=seed).held_out for seed in (0, 0, 1)
    )
    assert first == again and first.temperature != other.temperature


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

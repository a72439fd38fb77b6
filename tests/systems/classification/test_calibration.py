"""Calibration against closed forms, and against answers that are as sure as they should be."""

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from triptych.systems.classification.calibration import (
    calibration,
    fit_temperature,
    negative_log_likelihood,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_error_by_hand():
    """Two of 15 bins: (0.6, 0.667] and (0.933, 1]; gaps of 0.15 and 0.49 with weights 2 and 4."""
    confidence = torch.tensor([0.65, 0.65, 0.99, 0.99, 0.99, 0.99])
    right = torch.tensor([True, False, True, True, False, False])
    found = calibration(confidence, right)
    assert found.error == pytest.approx((2 * 0.15 + 4 * 0.49) / 6, abs=1e-6)
    filled = {round(b.low * 15): b for b in found.bins if b.count}
    assert {place: b.count for place, b in filled.items()} == {9: 2, 14: 4}
    assert filled[14].accuracy == 0.5 and filled[9].confidence == pytest.approx(0.65)
    assert len(found.bins) == 15 and found.bins[0].accuracy is None


@pytest.mark.parametrize("edge", [0.0, 1 / 15, 0.2, 1.0])
def test_every_confidence_has_one_bin(edge):
    found = calibration(torch.tensor([edge], dtype=torch.float64), torch.tensor([True]))
    (place,) = [b for b in found.bins if b.count]
    assert place.low <= edge <= place.high


def test_an_honest_model_has_no_error_and_a_sure_one_has():
    """Answers right with just the stated probability; then twice the logits."""
    logits = 2 * torch.randn(40_000, 5, generator=generator(), dtype=torch.float64)
    truth = logits.softmax(1).multinomial(1, generator=generator(1))[:, 0]
    right = logits.argmax(1) == truth
    assert calibration(logits.softmax(1).amax(1), right).error < 0.01
    assert calibration((3 * logits).softmax(1).amax(1), right).error > 0.1
    assert fit_temperature(logits, truth) == pytest.approx(1, abs=0.02)
    assert fit_temperature(3 * logits, truth) == pytest.approx(3, abs=0.06)


def test_the_temperature_is_where_a_general_minimiser_finds_it():
    logits = 5 * torch.randn(200, 7, generator=generator(2), dtype=torch.float64)
    truth = (logits / 9).softmax(1).multinomial(1, generator=generator(3))[:, 0]
    peer = minimize_scalar(
        lambda t: F.cross_entropy(logits / t, truth).item(), bounds=(0.1, 100), method="bounded"
    )
    found = fit_temperature(logits, truth)
    assert found == pytest.approx(peer.x, rel=1e-3)
    assert negative_log_likelihood(logits / found, truth) <= peer.fun + 1e-9


def test_answers_that_are_all_right_have_no_minimum():
    assert fit_temperature(torch.eye(4), torch.arange(4)) == pytest.approx(1e-3)


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="not a probability"):
        calibration(torch.tensor([1.2]), torch.tensor([True]))
    with pytest.raises(ValueError, match="one confidence per answer"):
        calibration(torch.tensor([0.5]), torch.tensor([True, False]))
    with pytest.raises(ValueError, match=r"with truth \(N,\)"):
        fit_temperature(torch.ones(2, 3), torch.tensor([0]))

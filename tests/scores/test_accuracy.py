"""Accuracies: Wilson intervals against scipy, counts by hand, chance."""

import pytest
import torch
from scipy.stats import binomtest

from triptych.scores.accuracy import accuracy, conditional_accuracy, wilson_interval


@pytest.mark.parametrize(
    ("hits", "count"), [(0, 10), (10, 10), (1, 3), (980, 1000), (1, 1), (0, 1)]
)
def test_wilson_interval_equals_scipy(hits, count):
    wanted = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson_interval(hits, count) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_wilson_interval_refuses_what_is_no_share():
    for hits, count in ((2, 1), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="hits"):
            wilson_interval(hits, count)


def test_chance_is_the_best_constant_answer():
    truth = torch.tensor([0, 0, 0, 1, 2, 2])
    found = accuracy(torch.tensor([0, 0, 1, 1, 1, 1]), truth)
    assert (found.value, found.count, found.chance) == (0.5, 6, 0.5)
    assert found.low < 0.5 < found.high


def test_confusion_has_a_row_for_each_class_asked_for():
    asked = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    seen = torch.tensor([0, 0, 0, 2, 1, 0, 2, 2])
    found = conditional_accuracy(seen, asked, 3)
    assert found.confusion == ((3, 0, 1), (1, 1, 0), (0, 0, 2))
    assert [row.value for row in found.per_class] == [0.75, 0.5, 1.0]
    assert [row.count for row in found.per_class] == [4, 2, 2]
    assert found.overall.value == 0.75
    assert found.per_class[2].high == 1.0 and found.per_class[2].low < 0.5  # only two were seen


def test_classes_that_were_never_seen_have_their_columns():
    found = conditional_accuracy(torch.tensor([0, 1, 0]), torch.tensor([0, 1, 2]), 3)
    assert found.confusion == ((1, 0, 0), (0, 1, 0), (1, 0, 0))


def test_a_class_that_was_never_asked_for_and_one_that_does_not_exist_are_named():
    with pytest.raises(ValueError, match="class 1 was never requested"):
        conditional_accuracy(torch.tensor([0, 2]), torch.tensor([0, 2]), 3)
    with pytest.raises(ValueError, match="0 to 1"):
        conditional_accuracy(torch.tensor([0, 2]), torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match="one prediction per label"):
        accuracy(torch.tensor([0]), torch.tensor([0, 1]))

"""Every kind of condition as rows of numbers."""

import pytest
import torch

from triptych.nn.conditions import condition_vector

LIKE = torch.zeros(1, dtype=torch.float64)


def test_labels_are_one_hot_and_numbers_stay_as_they_are():
    rows = condition_vector("label", 4, torch.tensor([2, 0]), 2, LIKE)
    assert rows.dtype == torch.float64 and rows.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    numbers = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.0, 3.0]])
    for kind in ("attributes", "vector"):
        assert torch.equal(condition_vector(kind, 3, numbers, 2, LIKE), numbers.double())
    nothing = condition_vector("none", 0, None, 2, LIKE)
    assert nothing.shape == (2, 0) and nothing.dtype == torch.float64


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        ("none", torch.tensor([1, 2]), "unconditional"),
        ("label", None, "conditioned on label: give"),
        ("label", torch.zeros(2, 3).long(), r"shape \(2,\), not \(2, 3\)"),
        ("label", torch.zeros(3).long(), r"shape \(2,\), not \(3,\)"),
        ("vector", torch.zeros(2, 4), r"shape \(2, 3\), not \(2, 4\)"),
    ],
)
def test_what_is_no_such_condition_is_refused(kind, given, says):
    with pytest.raises(ValueError, match=says):
        condition_vector(kind, 3, given, 2, LIKE)

"""A reader that remembers, against one that has read nothing."""

import pytest
import torch

from triptych.systems.gemma import pipeline
from triptych.systems.gemma.model import Gemma, GemmaConfig
from triptych.systems.gemma.pipeline import Reader


@pytest.mark.parametrize("then", [[2, 5, 6, 7, 9], [2, 5, 8, 7, 9], [2, 5], [2, 5, 6, 7]])
def test_what_was_read_before_changes_nothing(then, monkeypatch):
    """A text that goes on, another one, a shorter one and the same; in parts of two tokens."""
    monkeypatch.setattr(pipeline, "AT_ONCE", 2)
    torch.manual_seed(0)
    model = Gemma(GemmaConfig(12, 8, 2, 2, 1, 4, 8, 64, window=3, pattern=2)).eval()
    reader = Reader(model)
    reader.logits([2, 5, 6])
    reader.step(torch.tensor([7]))
    torch.testing.assert_close(reader.logits(then), model(torch.tensor([then]))[:, -1])

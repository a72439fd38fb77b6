"""What many tests share: one thread, a folder with the real data, tiny systems."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; tests that need it say that they were skipped where it is not
    set.
    """
    folder = os.environ.get("TRIPTYCH_DATA", "")
    if not folder:
        pytest.skip("TRIPTYCH_DATA is not set: real data is not at hand")
    return Path(folder)

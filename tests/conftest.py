"""What many tests share: one thread, a folder with the real data, tiny systems."""

import gc
import os
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# Hypothesis times examples and how they are drawn; other programs make both slower.
settings.register_profile("any-load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-load")

torch.set_num_threads(1)

# The reference libraries import torchvision where it is installed, and its compiled operators are
# missing on CPU builds of torch: declared, it imports, and nothing here calls them.
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Without the garbage collector: what is imported here stays, and it would only be read again
    and again, seconds in all; nor is it read while the tests run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets; tests that need it say that they were skipped where it is not
    set.
    """
    folder = os.environ.get("TRIPTYCH_DATA", "")
    if not folder:
        pytest.skip("TRIPTYCH_DATA is not set: real data is not at hand")
    return Path(folder)

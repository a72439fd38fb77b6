"""One service for all tests that do not change it, with tiny models of every kind."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tests.server.running import Running, run_service
from tests.systems.clip import tiny_clip
from tests.systems.stable_diffusion import tiny_stable_diffusion
from triptych.systems.cvae.model import Cvae, CvaeConfig
from triptych.train.checkpoint import export
from triptych.weights.loaded import Card


def save_digits(folder: Path) -> None:
    """A conditional VAE with random weights."""
    config = CvaeConfig(8, 8, 1, "label", 10, 3, "mlp", (8,))
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    export(folder, Cvae(config), asdict(Card("cvae", asdict(config), classes=tuple("0123456789"))))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `runs` with a model of every kind."""
    root = tmp_path_factory.mktemp("models")
    tiny_stable_diffusion.saved(root / "runs" / "painter")
    tiny_clip.saved(tiny_clip.tiny_clip(), root / "runs" / "seer")
    save_digits(root / "runs" / "digits-vae")
    return root


@pytest.fixture(scope="session")
def offered(models: Path) -> tuple[str, ...]:
    """What `--models` names."""
    return tuple(str(models / "runs" / name) for name in ("painter", "seer", "digits-vae"))


@pytest.fixture(scope="session")
def served(offered: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service with all of them."""
    photos = tiny_clip.pictures(tmp_path_factory.mktemp("data") / "photos", 6)
    with run_service(
        tmp_path_factory.mktemp("home"), models=offered, data_root=(str(photos),)
    ) as running:
        yield running

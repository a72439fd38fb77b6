"""A cache of the Hugging Face hub with models of ours in it, and no network."""

from pathlib import Path

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read this cache alone, and never the network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def place_in_cache(cache: Path, repo: str) -> Path:
    """The folder that a download of a repository leaves, to be filled."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder

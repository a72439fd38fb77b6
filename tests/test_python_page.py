"""The Python in README and docs runs as it stands there, with small models under the names used."""

import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.systems.clip import tiny_clip
from tests.systems.stable_diffusion import tiny_stable_diffusion
from triptych.fields import to_json
from triptych.systems.cvae.model import Cvae, CvaeConfig
from triptych.train.checkpoint import export
from triptych.weights.loaded import Card

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/python.md", "docs/classify.md", "docs/detection.md"]
PAGES += ["docs/text-to-image.md"]
SMALLER = {"steps=500": "steps=2"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files and models that the pages name."""
    tiny_clip.saved(tiny_clip.tiny_clip(), tmp_path / "runs" / "clip")
    tiny_stable_diffusion.saved(tmp_path / "runs" / "text-to-image")
    tiny_clip.pictures(tmp_path / "photos", 4)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def digits(folder: Path) -> None:
    config = CvaeConfig(8, 8, 1, "label", 10, 3, "mlp", (8,))
    folder.mkdir()
    card = Card("cvae", asdict(config), classes=tuple("0123456789"))
    torch.manual_seed(0)
    export(folder, Cvae(config), to_json(card))


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_runs(page: str, folder: Path) -> None:
    if page != "README.md":  # which trains it
        digits(folder / "runs" / "mine")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    code = "\n".join(blocks)
    for long, short in SMALLER.items():
        code = code.replace(long, short)
    names: dict[str, object] = {}
    exec(compile(code, page, "exec"), names)  # one script, block after block
    check = CHECKS.get(page)
    if check:
        assert eval(check, names), check


CHECKS = {
    "README.md": "len(drawn.images) == 2 and result.names == ('7',) * 4",
    "docs/python.md": "(replayed.pictures == item.pictures).all() and request.n == 2",
}

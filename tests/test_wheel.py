"""What the wheel carries: the bundled models, whole, and within its size. Nothing is built."""

import json
import shutil
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from triptych import bundle
from triptych.bundle import MOST_BYTES, MOST_BYTES_TOGETHER, size_of
from triptych.weights.bundled_models import CARD, bundled_folder, bundled_names, read_card

ROOT = Path(__file__).parents[1]
MOST_WHEEL = 95_000_000


def carried(project: Path) -> dict[str, Path]:
    """The files that hatchling puts into the wheel, by their names there."""
    files = WheelBuilder(str(project)).recurse_included_files()
    return {file.distribution_path: Path(file.path) for file in files}


def test_every_file_of_a_bundled_model_is_carried(tmp_path: Path) -> None:
    """In a project with our settings: .gitignore leaves nothing of a model out."""
    for name in ("pyproject.toml", ".gitignore", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    folder = tmp_path / "src/triptych/weights/bundled/emoji"
    folder.mkdir(parents=True)
    names = ["card.json", "model.safetensors", "run.json", *bundle.COPIED]
    for name in names:
        (folder / name).write_text("{}")
    (tmp_path / "src/triptych/__init__.py").touch()
    inside = "triptych/weights/bundled/emoji"
    assert carried(tmp_path).keys() >= {f"{inside}/{name}" for name in names}


def test_the_package_as_it_is_fits() -> None:
    files = carried(ROOT)
    assert sum(path.stat().st_size for path in files.values()) <= MOST_WHEEL
    for name in bundled_names():
        for path in bundled_folder(name).iterdir():
            assert f"triptych/weights/bundled/{name}/{path.name}" in files


def test_the_limits_of_bundled_models_hold() -> None:
    sizes = {name: size_of(bundled_folder(name)) for name in bundled_names()}
    assert sum(sizes.values()) <= MOST_BYTES_TOGETHER
    for name, size in sizes.items():
        card = json.loads((bundled_folder(name) / "config.json").read_text())
        assert size <= MOST_BYTES.get(card["model"], MOST_BYTES_TOGETHER)


@pytest.mark.parametrize("name", bundled_names())
def test_a_card_names_no_folder_of_the_machine_that_trained(name: str) -> None:
    card = read_card(bundled_folder(name))
    text = (bundled_folder(name) / CARD).read_text()
    assert card.commands and card.figures and card.licence
    for private in ("/home/", "/work/", "/tmp/", "/root/"):
        assert private not in text
        assert private not in (bundled_folder(name) / "run.json").read_text()

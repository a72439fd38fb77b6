"""The commands of README and docs run as they stand there, on a newcomer's folder, in small sizes.

Each page is one sitting: what its first commands train, the later ones use. Only options that make
models, steps and pictures small are added at the end of a command.
"""

import contextlib
import re
import shlex
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.hub_cache import place_in_cache, use_cache
from tests.parity import tiny_pipelines
from tests.systems.clip import tiny_clip
from tests.systems.gemma.tiny_gguf import write_gguf
from tests.systems.stable_diffusion import tiny_stable_diffusion
from tests.systems.unclip.test_training import shrink_presets
from triptych.cli import train as train_command
from triptych.cli.main import run
from triptych.systems.cvae import likelihood
from triptych.vision.images import save_picture
from triptych.weights.files.safetensors import write_tensors
from triptych.weights.hub import find_repository

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md", "docs/classify.md", "docs/clip.md", "docs/detection.md", "docs/emoji.md",
    "docs/text-to-image.md", "docs/tutorials/classes.md", "docs/tutorials/words.md",
    "docs/tutorials/embeddings-and-answers.md",
)  # fmt: skip
STEPS = "--steps 2 --batch-size 4 --accumulate 1 --warmup 0 --sample-every 0 --device cpu"
EYE = "--stem 4 4 4 --image-width 16 --image-layers 1 --image-heads 2 --vocabulary 320"
SIZES = {
    "cvae": "--widths 4 --latent 2 --network mlp",
    "wgan": "--generator-widths 8 8 --critic-widths 8 8 --critic-steps 1",
    "pixel-diffusion": "--widths 8 8 --groups 4 --head-width 8 --time-width 16 --patch 2",
    "clip": "--width 24 --text-width 24 --text-layers 1 --layers 1 --dim 8 --hard-negative-pool 1",
    "siglip": "--width 24 --text-width 24 --text-layers 1 --layers 1 --hard-negative-pool 1",
    "text-to-image": "--widths 16 16 --transformers 0 0 --groups 8 --head-width 8 --text-width 16",
    "autoencoder": "--widths 8 8 --groups 4",
    "unclip": "--sizes 64 --prior-steps 2 --upsampler-steps 2 --pictures 8",
    "mask-codes": "--down 4 4 4 4 --width 8 --code-width 4 --plain-steps 1",
    "vlm": f"{EYE} --width 16 --layers 1 --heads 2 --head-width 8 --hidden 16",
    "pali": f"{EYE} --width 16 --layers 1 --decoder-layers 1 --heads 2 --head-width 8 --hidden 16",
    "language": "--width 16 --layers 1 --heads 2 --head-width 8 --vocabulary 320 --length 16",
}
CLASSES = "--samples-per-class 16 --judge-steps 2 --no-score"
SMALL = {
    "generate PROMPT": "--steps 2 --size 16x16",
    "generate UNCLIP": "--steps 2 --prior-steps 2 --upsampler-steps 2",
    "grid": "--size 16x16",
    "probe": "--seeds 0",
    "evaluate TEXT": "--prompts 4 --steps 1",
    "evaluate UNCLIP": "--prompts 4 --pictures 2 --more 0 --steps 1",
    "evaluate VLM": "--pictures 2",
    "evaluate CLASSES": CLASSES,
    "evaluate": f"{CLASSES} --likelihood-pictures 4 --likelihood-samples 2",
}
EVALUATED = {
    "latents|emoji|painter": "TEXT", "unclip": "UNCLIP", "vlm|pali": "VLM",
    "wgan|diffusion": "CLASSES", "clip|siglip": "TOWERS",
}  # fmt: skip
"""What the name of a run says of its kind."""


def commands(page: str) -> list[list[str]]:
    """The words of every command of triptych in the code blocks of a page."""
    blocks = re.findall(r"```\w*\n(.*?)```", (ROOT / page).read_text(), re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("triptych ")]
    return [words[1 : words.index(">")] if ">" in words else words[1:] for words in found]


def card_of(page: str) -> str:
    """The JSON file that a page has as an example."""
    return re.findall(r"```json\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.S)[0]


def remove_options(words: list[str], flags: set[str]) -> list[str]:
    """Without these flags and their values: a list that is given twice would keep both."""
    kept, dropping = [], False
    for word in words:
        dropping = word in flags or (dropping and word[:2] != "--")
        kept += [] if dropping else [word]
    return kept


def shrink(words: list[str]) -> list[str]:
    """The same command, with small sizes at its end."""
    if words[0] == "train":
        recipe = words[1] if len(words) > 1 and words[1][0] != "-" else "cvae"
        own = "" if "--init" in words and recipe == "text-to-image" else SIZES[recipe]
        scenes = "--data" not in words or "scenes-one" in words  # which have 32 pixels
        drawn = scenes or recipe in ("clip", "siglip") or "--vision" in words
        size = "--size 32" if drawn and recipe != "cvae" else "--size 16"
        size = "" if recipe in ("mask-codes", "language") else size  # they have none
        small = shlex.split(f"{STEPS} {own} {size}")
        return [*remove_options(words, {flag for flag in small if flag[:2] == "--"}), *small]
    name = "" if "--image" in words else words[0]
    classes = re.search(r"--label|quad|runs/digits", " ".join(words))
    if name == "generate" and not classes:
        name = "generate PROMPT"
    if name == "evaluate":
        kinds = [kind for names, kind in EVALUATED.items() if re.search(names, words[1])]
        name = " ".join([name, *kinds[:1]])
    if words[0] == "generate" and "runs/unclip" in words:
        name = "generate UNCLIP"
    return [*words, *shlex.split(SMALL.get(name, ""))]


def touch(figure: Figure, path: Path, **_: object) -> None:
    """In the place of drawing a figure."""
    path.touch()


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sixty captioned pictures in two classes, and what the pages name beside it."""
    root = tmp_path_factory.mktemp("newcomer")
    for number in range(60):
        label = ("cat", "dog")[number % 2]
        file = root / "photos" / label / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        save_picture(file, tiny_clip.picture(number))
        file.with_suffix(".txt").write_text(f"a {label} by day\nthe {label} number {number}\n")
    for copy in ("mnist-folder", "train-set", "test-set", "more", "emoji"):
        shutil.copytree(root / "photos", root / copy)
    for name in ("photo.jpg", "other.jpg", "like.jpg", "street.jpg", "fox.png", "seven.png"):
        save_picture(root / name, tiny_clip.picture(99))
    mask = np.zeros((36, 40, 1), np.uint8)
    mask[10:20, 10:20] = 255
    save_picture(root / "hat.png", mask)
    (root / "names.txt").write_text("cat\ndog\n")
    (root / "texts").mkdir()
    shutil.copy(ROOT / "README.md", root / "texts" / "readme.md")
    (root / "card.json").write_text(card_of("emoji"))
    write_gguf(root / "gemma-3-270m.gguf")
    write_tensors(root / "model.safetensors", dict(tiny_clip.tiny_clip().model.state_dict()))
    tiny_clip.saved(tiny_clip.tiny_clip(), root / "runs" / "clip")
    tiny_stable_diffusion.saved(root / "runs" / "text-to-image")
    published = {"sd15": tiny_pipelines.sd, "sdxl": tiny_pipelines.xl}
    for name, make in published.items():
        folder = place_in_cache(root / "cache", find_repository(name))
        make(root / "parts").save_pretrained(folder)
    for name in ("clip-b32", "clip-b16"):
        folder = place_in_cache(root / "cache", find_repository(name))
        tiny_clip.saved(tiny_clip.tiny_clip(), folder)
    with contextlib.chdir(root):
        quadrants = ["--data", "photos", "--condition", "quadrants", "--run", "runs/quad1"]
        assert run(shrink(["train", "cvae", *quadrants])) == 0
        words = ["generate", "a red cat", "--seed", "1", "--steps", "1", "--out", "."]
        assert run([*words, "--model", "runs/text-to-image"]) == 0
        Path("0000-1.png").rename("old.png")
    return root


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        *[
            pytest.param(f"docs/{page}.md", marks=pytest.mark.slow)
            for page in (
                "classify",
                "clip",
                "detection",
                "emoji",
                "text-to-image",
                "train-text-to-image",
                "tutorials/classes",
                "tutorials/words",
                "tutorials/embeddings-and-answers",
            )
        ],
    ],
)
def test_commands_run(page: str, newcomer: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.copytree(newcomer, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "indexes"))
    use_cache(tmp_path / "cache", monkeypatch)
    shrink_presets(monkeypatch)  # of the parts of a DALL-E 2
    monkeypatch.setattr(likelihood, "leak_probe", partial(likelihood.leak_probe, steps=20))
    monkeypatch.setattr(Figure, "savefig", touch)  # plots are looked at elsewhere
    for words in commands(page):
        if words[0] == "serve":  # does not end: tests/server/test_process.py
            continue
        if words[:2] == ["train", "clip"] and "runs/clip" in words:
            shutil.rmtree("runs/clip")  # the page trains its own
        code = run(shrink(words))
        assert code == 0, (shlex.join(words), capsys.readouterr().err)


@pytest.mark.parametrize("panel", ["classes", "words"])
def test_tutorials_begin_with_models_in_the_box(panel: str, tmp_path, monkeypatch, capsys) -> None:
    """In an empty folder, without a training and a network."""
    monkeypatch.chdir(tmp_path)
    use_cache(tmp_path / "cache", monkeypatch)
    first = commands(f"docs/tutorials/{panel}.md")[:3]
    assert {words[0] for words in first} <= {"models", "generate"}
    for words in first:
        assert run(shrink(words)) == 0, (shlex.join(words), capsys.readouterr().err)


@pytest.mark.parametrize("page", [*PAGES, "docs/train-text-to-image.md", "docs/results.md"])
def test_settings_fit_together(page: str, monkeypatch) -> None:
    """Every training command as it stands, up to the training itself."""
    seen = []
    monkeypatch.setattr(train_command, "train", lambda request, options: seen.append(request) or 0)
    training = [words for words in commands(page) if words[0] == "train"]
    for words in training:
        assert run(words) == 0, shlex.join(words)
    assert len(seen) == len(training)


def test_the_pages_have_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 40

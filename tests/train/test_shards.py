"""Sharded training: what one process trains, from a share of the weights in each of several."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.train.launch import start, wait
from tests.train.ranks import draws_of_one_process, language, sharded
from triptych import training as runs
from triptych.cli.main import run as command
from triptych.requests import TrainRequest
from triptych.train import checkpoint
from triptych.train.journal import rows
from triptych.train.shard_files import load

WORDS = ["the", "red", "green", "blue", "circle", "square", "above", "left", "small", "grey"]
SYSTEMS = ("text-to-image", "muon", "clip", "siglip", "vlm", "language")


def write_texts(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    folder.mkdir()
    for i in range(10):
        (folder / f"{i}.txt").write_text(" ".join(draw.choice(WORDS, 600)) + "\n")
    return folder


@pytest.mark.parametrize("option", ["shard", "recompute"])
def test_other_recipes_refuse_it_in_a_sentence(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert command(["train", "cvae", f"--{option}", "--run", str(run)]) == 3
    said = f"--{option} is for text-to-image, clip, siglip, vlm and language: leave it out"
    assert f"triptych: {said}" in capsys.readouterr().err
    assert not run.exists()


def kept_bytes(request: TrainRequest, run: Path) -> int:
    """The bytes that the steps of a training keep for their backward passes."""
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        for _ in runs.train(request, run):
            pass
    return kept


def test_computing_blocks_again_keeps_less_and_changes_no_bit(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts")
    kept, weights = [], []
    for again in (False, True):
        run = tmp_path / str(again)
        kept.append(kept_bytes(language(texts, steps=2, recompute=again), run))
        weights.append((run / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert kept[1] < 0.7 * kept[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty captioned pictures, and ten texts."""
    folder = tmp_path_factory.mktemp("shards")
    draw = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(40):
        path = folder / "pictures" / f"{i:02d}.png"
        Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"{WORDS[1 + i % 3]} thing {i % 20}")
    write_texts(folder / "texts")
    return folder


@pytest.fixture(scope="module", params=[2, 4])
def spread(folder: Path, request: pytest.FixtureRequest) -> Path:
    """What several processes left of every system."""
    size = request.param
    results = wait(start(["-m", "tests.train.ranks", "shard", str(folder)], folder, size))
    assert [code for code, *_ in results] == [0] * size, "\n".join(told for _, _, told in results)
    return folder / str(size)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_several_processes_train_what_one_does(folder: Path, spread: Path, name: str) -> None:
    """The first loss, of the same weights, to 1e-6; then rounding grows by Adam's division."""
    alone = folder / "1" / name
    with draws_of_one_process(0, 1):
        for _ in runs.train(sharded(folder / "pictures", folder / "texts")[name], alone):
            pass
    expected, measured = (rows(run / name / "metrics.jsonl") for run in (folder / "1", spread))
    assert len(measured) == len(expected) > 2
    assert measured[0]["loss"] == pytest.approx(expected[0]["loss"], rel=1e-6)
    for one, several in zip(expected, measured, strict=True):
        for term in one.keys() - {"seconds"}:
            if not isinstance(one[term], list):
                assert several[term] == pytest.approx(one[term], rel=2e-4, abs=1e-5), term
    last = checkpoint.steps(alone)[-1].name
    whole, shared = (load(run / last, {}).tensors for run in (alone, spread / name))
    assert {file: sorted(group) for file, group in shared.items()} == {
        file: sorted(group) for file, group in whole.items()
    }
    exported, theirs = (load_file(run / "model.safetensors") for run in (spread / name, alone))
    assert exported.keys() == theirs.keys()
    for key, tensor in exported.items():
        assert tensor.shape == theirs[key].shape
        if key in shared["ema"]:
            assert tensor.equal(shared["ema"][key]), key

"""Training a Gemma on text files: what is held out, exact resuming, LoRA from another Gemma."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.systems.gemma.tiny_gguf import write_gguf
from triptych.cli.main import run as command
from triptych.loading import load
from triptych.requests import Training, TrainLanguage
from triptych.systems.gemma import texts
from triptych.systems.gemma.recipe import build, floor
from triptych.systems.gemma.texts import Rows, encode_texts, read_texts
from triptych.train.distributed import World
from triptych.train.loop import fit

SMALL = {
    "width": 32, "layers": 2, "heads": 2, "head_width": 16, "hidden": 64, "vocabulary": 330,
    "length": 16, "window": 8,
}  # fmt: skip
LINES = "".join(f"the {word} is {n}\n" for n in range(60) for word in ("cat", "dog", "fox"))


def start(data: Path, steps: int, **more):
    training = Training(
        data=f"{data}", steps=steps, batch_size=4, sample_every=0, device="cpu", save_every=3,
    )  # fmt: skip
    request = TrainLanguage(training, **SMALL | more)
    return build(request, World(), load), training


def test_a_text_is_learned_and_continued(tmp_path: Path, capsys):
    """Better than knowing how frequent tokens are; the run folder chats; evaluate says where the
    figures are; three steps and more are the same as all at once.
    """
    (tmp_path / "t.txt").write_text(LINES)
    recipe, training = start(tmp_path / "t.txt", 40, learning_rate=1e-2)
    for report in fit(recipe, training, tmp_path / "run"):
        last = report
    assert last.row["perplexity"] < 0.6 * last.row["by_frequency"]
    assert 0 < last.row["bits_per_byte"] < 8
    recipe, _ = start(tmp_path / "t.txt", 40, learning_rate=1e-2)
    steps = fit(recipe, training, tmp_path / "broken")
    next(report for report in steps if report.step == 3)
    steps.close()
    recipe, _ = start(tmp_path / "t.txt", 40, learning_rate=1e-2)
    for _ in fit(recipe, training, tmp_path / "broken"):
        pass
    whole, broken = (
        load(f"{tmp_path / name}", dtype="float32").model.state_dict() for name in ("run", "broken")
    )
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    words = ["--model", f"{tmp_path / 'run'}", "--max-tokens", "4", "--temperature", "0"]
    assert command(["chat", "--raw", "the cat", *words]) == 0
    assert capsys.readouterr().out.strip()


def test_a_tenth_is_held_out(tmp_path: Path):
    """Of several texts whole ones, always the same; of one its end; nothing is in both."""
    folder = tmp_path / "texts"
    for n in range(30):
        path = folder / f"{n % 3}" / f"{n}.{'md' if n % 2 else 'txt'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {n}")
    (folder / "empty.txt").write_text(" ")
    (folder / "other.bin").write_bytes(b"\xff")
    found = read_texts(f"{folder}")
    assert len(found.train) + len(found.held_out) == 30 and 1 <= len(found.held_out) < 10
    assert not set(found.train) & set(found.held_out) and found == read_texts(f"{folder}")
    (tmp_path / "one.txt").write_text("0123456789" * 10)
    assert read_texts(f"{tmp_path / 'one.txt'}").held_out == ("0123456789",)


def test_rows_are_the_text_in_another_order(tmp_path: Path):
    """Each token is predicted once in an epoch; long texts are encoded in parts, to the letter."""
    rows = Rows(torch.arange(101, dtype=torch.int32), 10)
    batches = rows.batches(5, 3, 0, 1, 0)
    seen = torch.cat([next(batches)["tokens"] for _ in range(2)])
    assert sorted(seen[:, 1:].flatten().tolist()) == list(range(1, 101))
    later = rows.batches(5, 3, 0, 1, 1)
    assert torch.equal(next(later)["tokens"], seen[5:])


def test_long_texts_are_encoded_in_parts(monkeypatch: pytest.MonkeyPatch):
    from triptych.text.language import train_language_tokenizer

    tokenizer = train_language_tokenizer([LINES], 330)
    monkeypatch.setattr(texts, "PIECE", 23)
    tokens = encode_texts((LINES, "x" * 50), tokenizer).tolist()
    assert tokenizer.decode(tokens) == LINES + "x" * 50
    assert tokens.count(tokenizer.start) == tokens.count(tokenizer.end) == 2


def test_the_floor_is_that_of_frequencies():
    train = torch.tensor([0] * 6 + [1] * 2)
    found = floor(train, torch.tensor([0, 1, 1]))["by_frequency"]
    assert found == pytest.approx(np.exp(-np.mean(np.log([0.7, 0.3, 0.3]))))


def test_low_rank_updates_of_a_gguf_file(tmp_path: Path):
    """Only they are trained, and merged in the run folder."""
    write_gguf(tmp_path / "small.gguf")
    (tmp_path / "t.txt").write_text(LINES)
    recipe, training = start(tmp_path / "t.txt", 2, init=f"{tmp_path / 'small.gguf'}", lora=2)
    trained = {name for name, p in recipe.model.named_parameters() if p.requires_grad}
    assert trained and all("lora" in name for name in trained)
    for _ in fit(recipe, training, tmp_path / "run"):
        pass
    before = load(f"{tmp_path / 'small.gguf'}", dtype="float32").model.state_dict()
    after = load(f"{tmp_path / 'run'}", dtype="float32").model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and {name.split(".")[-2] for name in changed} <= {
        "q_proj",
        "v_proj",
        "up",
        "down",
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"", "every file is empty"),
        (b"abc \xff def", "no UTF-8: byte 4"),
        (b"too short", "too few for rows of 16"),
    ],
)
def test_what_cannot_be_learned_is_said(tmp_path: Path, content, said):
    path = tmp_path / "t.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        start(path, 1)


def test_settings_that_cannot_be_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="give init"):
        TrainLanguage(lora=2)
    (tmp_path / "t.txt").write_text(LINES)
    training = Training(data=f"{tmp_path / 't.txt'}", size=32)
    with pytest.raises(ValueError, match="leave out size"):
        build(dataclasses.replace(TrainLanguage(), training=training), World(), load)
    with pytest.raises(ValueError, match=r"has no .txt or .md files"):
        (tmp_path / "none").mkdir()
        start(tmp_path / "none", 1)

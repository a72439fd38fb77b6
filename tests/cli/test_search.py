"""`triptych embed`, `triptych search` and ranked pictures, as people and scripts use them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.systems.clip.tiny_clip import pictures, saved, tiny_clip
from triptych.cli.main import run
from triptych.vision.images import open_picture, read_request

CLIP = tiny_clip()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved(CLIP, tmp_path_factory.mktemp("models") / "clip"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return pictures(tmp_path / "photos", 6)


def near(row: list[float], expected: np.ndarray) -> bool:
    """bfloat16 where this machine is fast at it."""
    return float(np.asarray(row, np.float32) @ expected) > 0.99


def test_embed_prints_a_line_an_input_in_the_order_given(model, folder, capsys, tmp_path) -> None:
    image, other = str(folder / "001.png"), str(folder / "002.png")
    words = ["embed", "--model", model, "--image", image, "--text", "two cats", "a dog"]
    out = tmp_path / "rows.npy"
    assert (
        run([*words, f"--image={other}", "--text", "a red car", "--json", "--out", str(out)]) == 0
    )
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["kind"], row["input"]) for row in rows] == [
        ("image", image), ("text", "two cats"), ("text", "a dog"), ("image", other),
        ("text", "a red car"),
    ]  # fmt: skip
    texts = CLIP.embed_text(["two cats", "a dog", "a red car"]).numpy()
    seen = CLIP.embed_image([open_picture(folder / "001.png"), open_picture(folder / "002.png")])
    expected = [seen[0].numpy(), texts[0], texts[1], seen[1].numpy(), texts[2]]
    assert all(near(row["embedding"], e) for row, e in zip(rows, expected, strict=True))
    matrix = np.load(out)
    assert matrix.dtype == np.float32 and matrix.shape == (5, 16)
    assert np.array_equal(matrix, np.array([row["embedding"] for row in rows], np.float32))
    assert np.allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-6)


def test_embed_names_what_it_could_not_read_and_writes_no_shifted_rows(
    model, folder, capsys, tmp_path
) -> None:
    words = ["embed", "--model", model, "--json", "--out", str(tmp_path / "rows.npy")]
    assert run([*words, "--image", "nowhere.png", str(folder / "001.png")]) == 3
    said = capsys.readouterr()
    bad, good = (json.loads(line) for line in said.out.splitlines())
    assert "No such file" in bad["error"] and "embedding" not in bad and good["embedding"]
    assert "nowhere.png: No such file" in said.err and "was not written" in said.err
    assert not (tmp_path / "rows.npy").exists()


def test_embed_says_which_part_of_a_text_is_not_seen(model, capsys) -> None:
    assert run(["embed", "--model", model, "--json", "--text", "two cats " * 20]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["cut"].endswith("cats") and "too long" in said.err


def test_search_finds_and_says_where_its_index_is(model, folder, tmp_path, capsys) -> None:
    sheet, image = tmp_path / "sheet.png", str(folder / "001.png")
    words = ["search", "--model", model, str(folder), "--image", image, "--sheet", str(sheet)]
    assert run([*words, "--k", "3"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) == 3 and lines[0].endswith("  001.png") and lines[0].startswith("1.0000")
    assert f"6 new: {tmp_path / 'cache'}" in said.err.replace("of them ", "")
    assert open_picture(sheet).shape[1] > 3 * 160
    assert run([*words, "at night", "-5 degrees", "--minus", "(by day:0.5)", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["query"] == "at night + -5 degrees + 001.png - 0.5 by day" and found["new"] == 0
    assert len(found["matches"]) == found["pictures"] == 6
    words = ["search", str(folder), "two cats", "--minus", "-dark", "--model", model]
    assert run(words) == 0 and len(capsys.readouterr().out.splitlines()) == 6


def test_search_for_duplicates_with_and_without_a_threshold(model, folder, tmp_path, capsys):
    (folder / "copy.png").write_bytes((folder / "001.png").read_bytes())
    words = ["search", str(folder), "--model", model, "--json", "--duplicates"]
    for given, threshold in (([], 0.95), (["0.9999"], 0.9999)):
        assert run([*words, *given]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["threshold"] == threshold
        named = [{match["name"] for match in group} for group in found["groups"]]
        assert any({"001.png", "copy.png"} <= names for names in named)
    assert named == [{"001.png", "copy.png"}]
    assert run([*words[:-1], "--duplicates", "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert (tmp_path / "sheet.png").exists()


def test_search_names_broken_files_without_letting_them_write_to_the_terminal(
    model, folder, capsys
):
    (folder / "bad\x1b[31m.png").write_text("<html>")
    assert run(["search", str(folder), "two cats", "--model", model]) == 0
    said = capsys.readouterr()
    assert "HTML page" in said.err and "\x1b" not in said.err + said.out
    assert len(said.out.splitlines()) == 6


def test_search_without_a_query_says_what_to_give(folder, capsys) -> None:
    assert run(["search", str(folder), "--model", "nothing"]) == 2
    said = capsys.readouterr().err
    assert "nothing to search for" in said and "--image" in said and "--duplicates" in said


def test_search_finds_a_picture_whose_name_is_not_utf8(model, folder, tmp_path, capsys) -> None:
    odd = os.fsdecode(os.fsencode(folder) + b"/b\xff.png")
    (folder / "001.png").rename(odd)
    words = ["search", str(folder), "--image", odd, "--model", model, "--k", "2"]
    assert run([*words, "--json", "--sheet", str(tmp_path / "sheet.png")]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["pictures"] == 6 and found["skipped"] == {}
    best = found["matches"][0]
    assert best["name"] == "b\\xff.png" and best["score"] == pytest.approx(1, abs=1e-5)
    assert "sheet.png: 2 pictures" in said.err
    assert run(words) == 0
    capsys.readouterr().out.encode()


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["embed"], 2, "nothing to embed"),
        (["embed", "--text", "a", "--out", "x.txt"], 2, "should end in .npy"),
        (["embed", "--text", "a", "--model", "nowhere"], 3, "no model 'nowhere'"),
        (["search", "nowhere", "cat"], 3, "no folder 'nowhere'"),
        (["search", "nowhere", "cat", "--model", "nothing"], 3, "no folder 'nowhere'"),
        (["search", "FOLDER", "cat", "--image", "FOLDER"], 3, "not a regular file"),
        (["search", "FOLDER", "cat", "--index", "FOLDER"], 3, "has other files in it"),
        (["generate", "--rerank", "cat"], 2, "--rerank and --judge go together"),
    ],
)
def test_nonsense_gets_a_sentence_and_a_code(model, folder, capsys, words, code, hint) -> None:
    given = [str(folder) if word == "FOLDER" else word for word in words]
    if "--model" not in given and given[0] != "generate":
        given += ["--model", model]
    assert run(given) == code
    said = capsys.readouterr()
    assert hint in said.err and "Traceback" not in said.err and said.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["search"],
        ["search", "x", "--k", "many"],
        ["search", "x", "--minus", "cat"],
        ["search", "x", "cat", "--duplicates"],
        ["embed", "--texts", "a"],
    ],
)
def test_usage_errors_leave_with_two(words: list[str]) -> None:
    assert run(words if words[0] == "search" else [*words, "--text", "b"]) == 2


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "cvae"
    small = ["--steps", "2", "--widths", "8", "--latent", "2", "--device", "cpu"]
    assert run(["train", "cvae", "--run", str(folder), *small]) == 0
    return str(folder)


def test_generated_pictures_are_numbered_by_how_well_they_fit(digits, model, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["generate", "--model", digits, "--n", "5", "--seed", "7", "--out", str(out), "--json"]
    assert run([*words, "--rerank", "two cats", "--judge", model]) == 0
    ranked = json.loads(capsys.readouterr().out)["pictures"]
    cosines = [picture["cosine"] for picture in ranked]
    assert cosines == sorted(cosines, reverse=True)
    assert sorted(picture["seed"] for picture in ranked) == [7, 8, 9, 10, 11]
    text = CLIP.embed_text(["two cats"])[0]
    for number, picture in enumerate(ranked):
        path = Path(picture["file"])
        assert path.name == f"{number:04d}-{picture['seed']}.png"
        seen = CLIP.embed_image([open_picture(path)])[0]
        assert picture["cosine"] == pytest.approx(float(seen @ text), abs=0.02)
        recorded = read_request(path)
        assert recorded is not None and recorded["cosine"] == picture["cosine"]
        assert recorded["request"]["seed"] == picture["seed"] and recorded["judge"] == "clip"
    assert run(words) == 0  # the same seeds, in their own order
    plain = json.loads(capsys.readouterr().out)["pictures"]
    for picture in plain:
        (same,) = (p for p in ranked if p["seed"] == picture["seed"])
        assert same["shows"] == picture["shows"] and "cosine" not in picture

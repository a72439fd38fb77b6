"""`triptych data check` counts what is there, names what is not, exits 3 for nothing."""

import json

import pytest
from PIL import Image

from triptych.cli.data import main
from triptych.cli.main import UsageError, run
from triptych.data.disk.check import check_pictures, survey
from triptych.data.sources import open_index, open_train_and_test


@pytest.fixture
def folder(tmp_path):
    """Forty pictures in two classes with captions: two copies of one, one cut, one HTML page."""
    root = tmp_path / "set"
    for i in range(40):
        path = root / ("cat" if i < 25 else "dog") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 4), 99 if i in (3, 30, 31) else i).save(path)
        path.with_suffix(".txt").write_text(f"a\nb {i}")
    (root / "cat" / "05.png").write_text("<!doctype html>")
    cut = root / "dog" / "35.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    return root


def checked(capsys, *arguments):
    code = main(["check", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_everything_is_counted(folder, capsys, tmp_path):
    code, seen = checked(capsys, folder, "--report", tmp_path / "report.jsonl")
    assert code == 0 and seen["problem"] is None
    assert seen["pictures"] == 38 and seen["skipped"] == 2
    assert seen["classes"] == {"cat": 24, "dog": 14}
    assert seen["captioned"] == 39 and seen["captions"] == 78
    assert seen["sizes"] == {"6 x 4": 39} and seen["grey"] == 39
    assert seen["duplicates"] == [["cat/03.png", "dog/30.png", "dog/31.png"]]
    assert sum(seen["splits"].values()) == 38 and seen["held_out"] is True
    rows = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [row.get("skipped") for row in rows] == ["cat/05.png", "dog/35.png", None]
    assert rows[0]["reason"] == "an HTML page" and rows[1]["reason"] == "cut short"


def test_people_read_the_same_on_stderr(folder, capsys):
    assert main(["check", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    for words in ("38", "cat: 24, dog: 14", "an HTML page (cat/05.png)", "cat/03.png = dog/30.png"):
        assert words in err


def test_pictures_of_one_colour_but_other_sizes_are_no_duplicates(tmp_path):
    Image.new("L", (2, 8)).save(tmp_path / "a.png")
    Image.new("L", (8, 2)).save(tmp_path / "b.png")
    Image.new("L", (8, 2)).save(tmp_path / "c.bmp")  # the same pixels in another file format
    index = open_index(str(tmp_path))
    looked = {seen.row: seen for seen in check_pictures(index)}
    assert survey(index, looked).duplicates == (("b.png", "c.bmp"),)


@pytest.mark.parametrize("bad", [3, 6])
def test_too_many_bad_pictures_exit_3(tmp_path, capsys, bad):
    """Also where they turn out bad only when they are decoded."""
    for i in range(20):
        Image.effect_noise((16, 16), 50).save(tmp_path / f"{i:02d}.png")
    for i in range(bad):
        path = tmp_path / f"{i:02d}.png"
        path.write_bytes(path.read_bytes()[:60] if i % 2 else b"")
    code, seen = checked(capsys, tmp_path)
    assert code == 3 and f"{bad} of 20" in seen["problem"]
    assert seen["skipped"] == bad


def test_nothing_to_train_on_exits_3(tmp_path, capsys):
    code, seen = checked(capsys, tmp_path)
    assert code == 3 and "contains no pictures" in seen["problem"]


def test_attributes_boxes_and_numbers_are_counted(tmp_path, capsys):
    lines = []
    for i in range(10):
        Image.new("RGB", (300 if i else 20, 10), (i, 0, 0)).save(tmp_path / f"{i}.png")
        row = {"file_name": f"{i}.png", "old": i < 3, "weight": i / 4}
        lines.append(json.dumps(row | {"objects": {"bbox": [[0, 0, 5, 5]] * (i % 2)}}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    _, seen = checked(capsys, tmp_path)
    assert seen["attributes"] == {"old": 3} and seen["vector"] == {"weight": [0.0, 2.25]}
    assert seen["boxes"] == 5
    assert seen["sizes"] == {"16 to 31": 1, "256 to 511": 9}


def test_control_characters_of_a_name_do_not_reach_the_terminal(tmp_path, capsys):
    Image.new("L", (2, 2)).save(tmp_path / "good.png")
    (tmp_path / "\x1b[31mred\x07.png").write_bytes(b"")
    main(["check", str(tmp_path)])
    err = capsys.readouterr().err
    assert "\x1b[31mred" not in err and "\x07" not in err


@pytest.mark.parametrize(("words", "code"), [([], 2), (["--help"], 0)])
def test_usage(words, code, capsys):
    with pytest.raises(SystemExit) as left:
        main(words)
    written = capsys.readouterr()
    assert left.value.code == code and "data check" in written.err + written.out


def test_a_misspelt_command_is_named():
    with pytest.raises(UsageError, match="Did you mean 'check'"):
        main(["chekc"])


def test_an_endless_source_has_nothing_to_count(capsys):
    code, seen = checked(capsys, "scenes")
    assert code == 0 and seen["pictures"] is None and seen["attributes"]
    main(["check", "scenes"])
    assert "endless" in capsys.readouterr().err


def test_digits(capsys):
    code, seen = checked(capsys, "digits")
    assert code == 0 and seen["splits"] == {"test": 297, "train": 1500} and not seen["held_out"]


@pytest.mark.parametrize(
    "splits",
    [["train"], ["test"], ["val"], ["train", "extra"], ["train", "val"], ["train", "test"], [""]],
)
def test_it_says_what_training_will_say(tmp_path, capsys, splits):
    lines = []
    for i, split in enumerate(splits * 3):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "split": split}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    problem = None
    try:
        open_train_and_test(str(tmp_path))
    except ValueError as error:
        problem = str(error)
    code, seen = checked(capsys, tmp_path)
    assert seen["problem"] == problem and code == (3 if problem else 0)
    assert bool(problem) == (splits in (["test"], ["val"], ["train", "extra"]))


def test_a_split_whose_pictures_are_all_bad_exits_3(tmp_path, capsys):
    for i in range(40):
        path = tmp_path / ("train" if i else "test") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise((16, 16), 50).save(path)
    path = tmp_path / "test" / "0.png"
    path.write_bytes(path.read_bytes()[:60])
    code, seen = checked(capsys, tmp_path)
    assert code == 3 and seen["problem"] == "no picture of the split 'test' can be read"


def test_pictures_of_several_sizes_need_one_size(tmp_path, capsys):
    for i in range(12):
        Image.new("L", (4 + i, 4), i).save(tmp_path / f"{i}.png")
    code, seen = checked(capsys, tmp_path)
    assert code == 0 and "choose one size with --size" in seen["notes"][0]


def test_a_small_class_folder_trains_as_it_was_checked(tmp_path, capsys):
    for i in range(8):
        path = tmp_path / "set" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i).save(path)
    code, seen = checked(capsys, tmp_path / "set")
    assert code == 0 and seen["splits"] == {"train": 7, "test": 1}
    words = ["--data", str(tmp_path / "set"), "--run", str(tmp_path / "run"), "--steps", "1"]
    assert run(["train", "cvae", *words, "--widths", "8", "--latent", "2", "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert "note: a batch of" in said and "larger than the 7 training pictures of 'set'" in said

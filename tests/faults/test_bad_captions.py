"""Twenty and more kinds of odd and broken caption: each is read right, or skipped with a reason.

Every kind is tried beside one of twenty pictures, as a `.txt` or as a line of metadata.
"""

import json
import os

import pytest
from PIL import Image

from triptych.data.sources import open_index, open_source


def pictures(root, count=20):
    root.mkdir()
    for i in range(count):
        Image.new("L", (4, 4), i).save(root / f"{i:02d}.png")
    return root


TEXT_READ = {
    "plain": (b"a fox", ("a fox",)),
    "byte order mark": (b"\xef\xbb\xbfa fox", ("a fox",)),
    "windows line ends": (b"a fox\r\nthe fox\r\n", ("a fox", "the fox")),
    "old mac line ends": (b"a fox\rthe fox", ("a fox", "the fox")),
    "spaces and tabs": (b"  a \t  fox \n\n\n", ("a fox",)),
    "right to left": ("ثعلب أحمر".encode(), ("ثعلب أحمر",)),
    "emoji": ("a 🦊 in 🌨️".encode(), ("a 🦊 in 🌨️",)),
    "quotes and markup": (b'<b>"fox"</b> & {x}', ('<b>"fox"</b> & {x}',)),
    "numbers that are no box": (b"1 2 3", ("1 2 3",)),
    "32,000 characters": (b"f" * 32_000, ("f" * 32_000,)),
}
TEXT_SKIPPED = {
    "empty": (b"", "empty caption"),
    "only spaces": (b" \n\t\n", "empty caption"),
    "latin-1": ("ein Löwe".encode("latin-1"), "not UTF-8"),
    "utf-16": ("a fox".encode("utf-16"), "not UTF-8"),
    "NUL": (b"a \0 fox", "NUL"),
    "1 MB": (b"fox " * 262_144, "more than 32,000 characters"),
    "2 MB of lines": (b"fox\n" * 524_288, "more than 1,048,576 bytes"),
    "binary": (bytes(range(256)), "not UTF-8"),
    "overlong UTF-8": (b"a \xc0\xaf fox", "not UTF-8"),
}


@pytest.mark.parametrize("kind", TEXT_READ)
def test_odd_texts_are_read_right(tmp_path, kind):
    root = pictures(tmp_path / "set")
    data, expected = TEXT_READ[kind]
    for i in range(20):
        (root / f"{i:02d}.txt").write_bytes(data if i == 7 else b"a hen")
    index = open_index(str(root))
    assert index.skipped == {}
    assert index.annotations.captions[index.names.index("07.png")] == expected
    assert open_source(str(root)).info.has_captions


@pytest.mark.parametrize("kind", TEXT_SKIPPED)
def test_broken_texts_are_skipped(tmp_path, kind):
    root = pictures(tmp_path / "set")
    data, reason = TEXT_SKIPPED[kind]
    for i in range(20):
        (root / f"{i:02d}.txt").write_bytes(data if i == 7 else b"a hen")
    index = open_index(str(root))
    assert list(index.skipped) == ["07.png"] and reason in index.skipped["07.png"]
    assert len(index) == 19


def test_a_missing_text_is_skipped_where_nearly_all_have_one(tmp_path):
    root = pictures(tmp_path / "set")
    for i in range(1, 20):
        (root / f"{i:02d}.txt").write_text("a hen")
    assert open_index(str(root)).skipped == {"00.png": "no caption"}


def test_few_captions_are_not_used_and_that_is_said(tmp_path):
    root = pictures(tmp_path / "set")
    for i in range(5):
        (root / f"{i:02d}.txt").write_text("a hen")
    index = open_index(str(root))
    assert len(index) == 20 and index.annotations.captions is None
    assert "only 5 of 20 pictures have a caption" in index.notes[0]


def test_a_pipe_as_caption_is_never_opened(tmp_path):
    root = pictures(tmp_path / "set")
    for i in range(1, 20):
        (root / f"{i:02d}.txt").write_text("a hen")
    os.mkfifo(root / "00.txt")
    assert open_index(str(root)).skipped == {
        "00.png": "the text file beside it cannot be read: not a file but a pipe, socket or device"
    }


LINES_READ = {
    "plain": ('{"file_name": "07.png", "text": "a fox"}', ("a fox",)),
    "several": ('{"file_name": "07.png", "captions": ["a fox", "the fox"]}', ("a fox", "the fox")),
    "escaped emoji": ('{"file_name": "07.png", "text": "\\ud83e\\udd8a"}', ("🦊",)),
    "./ before the name": ('{"file_name": "./07.png", "caption": "a fox"}', ("a fox",)),
    "detour": ('{"file_name": "x/../07.png", "prompt": "a fox"}', ("a fox",)),
}
LINES_SKIPPED = {
    "broken": ('{"file_name": "07.png", "text": ', "not valid JSON"),
    "a list": ('["07.png", "a fox"]', "not an object"),
    "nested too deeply": ('{"file_name": "07.png", "text": ' + "[" * 100_000, "JSON"),
    "no name": ('{"text": "a fox"}', "no file_name"),
    "name is a number": ('{"file_name": 7, "text": "a fox"}', "no file_name"),
    "second row": ('{"file_name": "06.png", "text": "a fox"}', "second row"),
    "leaves": ('{"file_name": "../outside.png", "text": "a fox"}', "leads outside"),
    "leaves by a detour": ('{"file_name": "x/../../o.png", "text": "a"}', "leads outside"),
    "absolute": ('{"file_name": "/etc/passwd", "text": "a fox"}', "leads outside"),
    "does not exist": ('{"file_name": "nowhere.png", "text": "a fox"}', "does not exist"),
    "backslashes": ('{"file_name": "..\\\\outside.png", "text": "a fox"}', "leads outside"),
    "NUL in the name": ('{"file_name": "07.png\\u0000", "text": "a fox"}', "leads outside"),
    "lone surrogate": ('{"file_name": "07.png", "text": "a \\ud800 fox"}', "lone surrogate"),
    "empty": ('{"file_name": "07.png", "text": ""}', "empty caption"),
    "null": ('{"file_name": "07.png", "text": null}', "text, not NoneType"),
    "a number": ('{"file_name": "07.png", "text": 5}', "text, not int"),
    "no captions": ('{"file_name": "07.png", "captions": []}', "empty list"),
    "a line of 2 MB": ('{"file_name": "07.png", "text": "' + "x" * 2_000_000 + '"}', "a line of"),
    "invalid UTF-8": (b'{"file_name": "07.png", "text": "\xff"}', "not UTF-8"),
}  # fmt: skip


def metadata(root, line):
    rows = [json.dumps({"file_name": f"{i:02d}.png", "text": "a hen"}).encode() for i in range(20)]
    rows[7] = line if isinstance(line, bytes) else line.encode()
    (root / "metadata.jsonl").write_bytes(b"\n".join(rows) + b"\n")


@pytest.mark.parametrize("kind", LINES_READ)
def test_odd_lines_are_read_right(tmp_path, kind):
    root = pictures(tmp_path / "set")
    line, expected = LINES_READ[kind]
    metadata(root, line)
    index = open_index(str(root))
    assert index.skipped == {}
    assert index.annotations.captions[index.names.index("07.png")] == expected


@pytest.mark.parametrize("kind", LINES_SKIPPED)
def test_broken_lines_are_skipped(tmp_path, kind):
    root = pictures(tmp_path / "set")
    Image.new("L", (4, 4)).save(tmp_path / "outside.png")
    line, reason = LINES_SKIPPED[kind]
    metadata(root, line)
    index = open_index(str(root))
    assert len(index) == 19 and len(index.skipped) == 1
    assert reason in next(iter(index.skipped.values()))
    assert "07.png" not in index.names


def test_a_broken_line_does_not_break_its_neighbours(tmp_path):
    """Also in a CSV, and where a cell is larger than Python's csv module takes."""
    root = pictures(tmp_path / "set", 40)
    rows = ["file_name,text", *(f"{i:02d}.png,a hen {i}" for i in range(40))]
    rows[1] = "00.png," + "x" * 200_000
    rows[2] = "01.png,a,b,c"
    rows[3] = '"02.png","a, ""quoted"" fox"'
    (root / "metadata.csv").write_text("\n".join(rows), "utf-8-sig")
    index = open_index(str(root))
    captions = dict(zip(index.names, index.annotations.captions, strict=True))
    assert captions["02.png"] == ('a, "quoted" fox',)
    assert captions["03.png"] == ("a hen 3",) and captions["39.png"] == ("a hen 39",)
    assert len(index) == 38 and len(index.skipped) == 2


def test_above_a_tenth_nothing_is_trained(tmp_path):
    root = pictures(tmp_path / "set")
    for i in range(20):
        (root / f"{i:02d}.txt").write_bytes(b"\xff" if i < 3 else b"a hen")
    with pytest.raises(ValueError, match=r"3 of 20 .*more than 10%[\s\S]*3: not UTF-8 \(00.png\)"):
        open_source(str(root))

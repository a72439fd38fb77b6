"""Every form of input gives its rows once, in order, however it is cut into parts."""

import io
import json
import tarfile
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from tests.systems.clip.tiny_clip import pictures
from triptych.passes.inputs import plan_slices
from triptych.passes.rows import Row, read_rows


def tar_of(folder: Path, path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(folder / name, name)
        tar.addfile(tarfile.TarInfo("readme.txt"), io.BytesIO())
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return path


def rows_of(url: str, size: int, spare: Path, wants: str = "any") -> list[Row]:
    rows = []
    for number, part in enumerate(plan_slices(url, size)):
        folder = spare / f"{number}"
        folder.mkdir(parents=True)
        rows += read_rows(part, folder, wants)  # type: ignore[arg-type]
    return rows


def contents(rows: list[Row]) -> dict[str, bytes]:
    return {row.key: Path(row.picture).read_bytes() for row in rows if row.picture}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return pictures(tmp_path / "photos", 7)


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_a_folder_here_and_at_a_url(photos: Path, tmp_path: Path, size: int) -> None:
    (photos / "notes.txt").write_text("no picture")
    (photos / "outside.png").symlink_to("/etc/passwd")
    there = {name: (photos / name).read_bytes() for name in names(photos) if name != "outside.png"}
    assert contents(rows_of(str(photos), size, tmp_path / "a")) == there
    memory = fsspec.filesystem("memory")
    for name, data in there.items():
        memory.pipe(f"/photos-{size}/{name}", data)
    assert contents(rows_of(f"memory://photos-{size}", size, tmp_path / "b")) == there


def test_tars_in_a_range_or_by_a_star(photos: Path, tmp_path: Path) -> None:
    every = names(photos)
    (tmp_path / "tars").mkdir()
    tar_of(photos, tmp_path / "tars/shard-00.tar", every[:3])
    tar_of(photos, tmp_path / "tars/shard-01.tar", every[3:])
    found = [
        rows_of(str(tmp_path / "tars" / name), 2, tmp_path / str(number))
        for number, name in enumerate(("shard-{00..01}.tar", "*.tar", ""))
    ]
    for rows in found:
        expected = {f"shard-0{int(i > 2)}.tar/{n}" for i, n in enumerate(every)}
        assert set(contents(rows)) == expected
        assert [r.error for r in rows if "link" in r.key] == [
            "a link, device or sparse file in a tar"
        ] * 2


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_tables_of_texts_and_pictures(photos: Path, tmp_path: Path, size: int) -> None:
    every = names(photos)
    lines = [{"file_name": name, "caption": f"number {i}"} for i, name in enumerate(every)]
    (photos / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (photos / "rows.txt").write_text("\r\n".join(line["caption"] for line in lines))
    table = {
        "image": [{"bytes": (photos / name).read_bytes(), "path": name} for name in every],
        "caption": [line["caption"] for line in lines],
        "id": range(7),
    }
    path = photos / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table(table), path, row_group_size=3)
    for kind in ("jsonl", "txt", "parquet"):
        rows = rows_of(str(photos / f"rows.{kind}"), size, tmp_path / kind)
        assert [row.text for row in rows] == [line["caption"] for line in lines]
        assert [row.number for row in rows] == list(range(7))
        keys = {
            "jsonl": every,
            "txt": [f"rows.txt:{i}" for i in range(7)],
            "parquet": [str(i) for i in range(7)],
        }
        assert [row.key for row in rows] == keys[kind]
        if kind != "txt":
            read = [Path(row.picture).read_bytes() for row in rows]
            assert read == [(photos / name).read_bytes() for name in every]


def test_what_is_wrong_with_a_row_is_said_in_its_place(tmp_path: Path) -> None:
    rows = [{"image": "../secret.png"}, {"image": 3}, {"text": 7}, {}, {"text": "fine"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row.error for row in rows_of(str(path), 9, tmp_path / "s")] == [
        "a path that leads outside the folder",
        "no picture but int",
        "text is no text but int",
        "the row is empty",
        "",
    ]


@pytest.mark.parametrize(
    ("content", "wants", "says"),
    [
        ("{broken", "any", "line 2: not JSON"),
        ("[1]", "any", "line 2: {...} is needed"),
        ("[" * 100_000, "any", "line 2: not JSON"),
        ('{"size": 3}', "picture", "has no column of pictures: it has text, size"),
    ],
)
def test_a_damaged_table_names_the_line(tmp_path: Path, content, wants, says) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + content + "\n")
    with pytest.raises(ValueError, match=says):
        rows_of(str(path), 9, tmp_path / "s", wants)


def test_a_place_that_cannot_be_read_is_named(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing")
    (photos / "x.tar").touch()
    for url, says in {
        str(tmp_path / "nowhere"): "there is no",
        str(tmp_path / "a-{0..2}.tar"): "there is no",
        str(tmp_path / "*.parquets"): "there is no file",
        str(tmp_path / "empty"): "holds no pictures",
        str(tmp_path / "bad.parquet"): "cannot be read as Parquet",
        str(photos): "both pictures",
        str(photos / "001.png"): "needs no --batch",
        "nosuch://x/y": "nosuch",
    }.items():
        with pytest.raises(ValueError, match=says):
            list(plan_slices(url, 10))

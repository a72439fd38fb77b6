"""A pass gives what its request gives of each row, nothing twice, and nothing lost by kills."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import triptych
from tests.faults.interruption import Disk, deaths, dies
from tests.systems.clip.tiny_clip import pictures, saved, tiny_clip
from triptych.cli.main import run as command
from triptych.data.disk.parts import MANIFEST
from triptych.passes.carry_out import Progress, carry_out
from triptych.passes.plan import write_or_read_plan
from triptych.passes.settings import HERE, Pass
from triptych.passes.workers import Actor, Order, find_folder, read_outcome
from triptych.requests import Classify, Detect, Embed
from triptych.vision.images import read_request

CLIP = tiny_clip()
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(CLIP, tmp_path / "clip")
    pictures(tmp_path / "photos", 9)
    (tmp_path / "photos/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing")
    return tmp_path


def options(folder: Path, out: str = "out", **others: Any) -> Pass:
    return Pass(str(folder / "photos"), str(folder / out), part_size=4, **others)


def embed(folder: Path) -> Embed:
    return Embed(str(folder / "clip"), image=(HERE,))


def finish(request: Any, chosen: Pass) -> Progress:
    *_, last = carry_out(request, chosen)
    return last


def table(out: Path) -> list[dict[str, Any]]:
    parts = [json.loads(line)["file"] for line in (out / MANIFEST).read_text().splitlines()]
    assert len(set(parts)) == len(parts)
    return [
        row for part in sorted(parts) for row in pyarrow.parquet.read_table(out / part).to_pylist()
    ]


def test_vectors_are_those_of_embed(folder: Path) -> None:
    last = finish(embed(folder), options(folder))
    assert (last.parts, last.rows, last.errors) == (3, 10, 1)
    rows = table(folder / "out")
    names = sorted(str(p.relative_to(folder / "photos")) for p in folder.rglob("photos/**/*.png"))
    assert [row["key"] for row in rows] == names
    good = [row for row in rows if row["embedding"]]
    paths = tuple(str(folder / "photos" / row["key"]) for row in good)
    *_, direct = triptych.run(Embed(image=paths), triptych.load(str(folder / "clip")))
    vectors = [vector.embedding.numpy() for vector in direct.rows]
    assert np.allclose([row["embedding"] for row in good], vectors, atol=1e-6)
    (bad,) = [row for row in rows if not row["embedding"]]
    assert bad["key"] == "broken.png" and "damaged" in bad["error"]
    group = pyarrow.parquet.ParquetFile(folder / "out/part-000000.parquet").metadata.row_group(0)
    encodings = {c.path_in_schema: c.encodings for c in map(group.column, range(group.num_columns))}
    assert not any("DICTIONARY" in e for e in encodings["embedding.list.element"])
    assert any("DICTIONARY" in e for e in encodings["error"])


def test_labels_and_boxes_are_those_of_their_requests(folder: Path) -> None:
    model = str(folder / "clip")
    request = Classify(HERE, ("a dog", "a car"), model)
    finish(request, options(folder, "labels"))
    (folder / "photos/broken.png").unlink()
    paths = str(folder / "photos")
    *_, direct = triptych.run(dataclasses.replace(request, pictures=paths))
    best = direct.probabilities().max(1)
    expected = {
        Path(name).relative_to(paths).as_posix(): (direct.labels[int(i)], float(p))
        for name, i, p in zip(direct.names, best.indices, best.values, strict=True)
    }
    rows = [row for row in table(folder / "labels") if not row["error"]]
    assert {row["key"]: row["label"] for row in rows} == {k: v[0] for k, v in expected.items()}
    for row in rows:
        assert row["probability"] == pytest.approx(expected[row["key"]][1], abs=1e-5)

    seek = Detect(HERE, ("a dog", "a car"), model, method="dense", threshold=0.1)
    finish(seek, options(folder, "boxes"))
    for row in table(folder / "boxes")[:2]:
        one = dataclasses.replace(seek, picture=str(folder / "photos" / row["key"]))
        *_, found = triptych.run(one)
        assert [box["label"] for box in row["boxes"]] == list(found.names)
        boxes = np.array([box["box"] for box in row["boxes"]]).reshape(-1, 4)
        assert np.allclose(boxes, found.boxes.corners.numpy(), atol=1e-3)


def test_pictures_of_prompts_carry_requests_that_draw_them_again(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("red apple\n\ndog\n")
    given = ["--batch", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out")]
    drawing = ["--n", "2", "--steps", "2", "--seed", "5", "--part-size", "2"]
    assert command(["generate", *given, *drawing]) == 3  # the empty line has no picture
    seeds, errors = {}, []
    for part in sorted((tmp_path / "out").glob("*.tar")):
        with tarfile.open(part) as tar:
            tar.extractall(tmp_path / "pictures", filter="data")
    for file in sorted((tmp_path / "pictures").glob("*.json")):
        facts = json.loads(file.read_text())
        seeds[file.stem] = facts.get("seed")
        errors += [facts["error"]] if facts["error"] else []
    assert seeds == {
        "00000000-00": 5, "00000000-01": 6, "00000001": None, "00000002-00": 9, "00000002-01": 10,
    }  # fmt: skip
    assert errors == ["the row is empty"]
    file = tmp_path / "pictures/00000002-01.png"
    record = read_request(file)
    assert record is not None
    *_, again = triptych.run(triptych.recall(file, model="emoji"))
    drawn = triptych.vision.images.open_picture(file, channels=3)  # type: ignore[attr-defined]
    assert np.abs(again.pictures[0].astype(int) - drawn).max() <= 1


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_a_pass_killed_at_any_operation_of_the_disk_continues_to_the_same_rows(
    folder: Path, every: int
) -> None:
    whole = options(folder, "whole")
    finish(embed(folder), whole)
    expected = table(folder / "whole")
    chosen = options(folder, "killed")
    place = folder / "killed"

    def work() -> None:
        finish(embed(folder), chosen)

    for at, how in deaths(work, _empty(place))[::every]:
        assert dies(work, Disk(_empty(place), at, how)) or how == "before"
        finish(embed(folder), chosen)
        assert table(place) == expected
        left = sorted(path.name for path in place.iterdir())
        assert left == sorted(path.name for path in (folder / "whole").iterdir())


def _empty(place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place


def test_a_part_whose_file_is_gone_or_cut_is_made_again(folder: Path) -> None:
    finish(embed(folder), options(folder))
    expected = table(folder / "out")
    (folder / "out/part-000000.parquet").unlink()
    cut = folder / "out/part-000002.parquet"
    cut.write_bytes(cut.read_bytes()[:-3])
    first, *_, last = carry_out(embed(folder), options(folder))
    assert (first.found, first.lost, last.parts) == (1, 2, 3)
    files = {json.loads(x)["file"] for x in (folder / "out" / MANIFEST).read_text().splitlines()}
    assert len(files) == 3
    assert sorted(str(row) for row in expected) == sorted(
        str(row)
        for part in files
        for row in pyarrow.parquet.read_table(folder / "out" / part).to_pylist()
    )


def test_another_pass_or_model_is_refused_and_nothing_is_lost(folder: Path) -> None:
    finish(embed(folder), options(folder))
    before = {path: path.read_bytes() for path in (folder / "out").glob("part*")}
    for request, chosen, says in [
        (Classify(HERE, ("a", "b")), options(folder), "belongs to a pass with kind 'Embed'"),
        (embed(folder), dataclasses.replace(options(folder), part_size=5), "part_size 4, not 5"),
        (embed(folder), Pass(str(folder / "clip"), str(folder / "out")), "with batch"),
        (embed(folder), Pass(str(folder / "photos"), str(folder / "clip")), "already has other"),
    ]:
        with pytest.raises(ValueError, match=says):
            finish(request, chosen)
    saved(tiny_clip(seed=1), folder / "clip")
    (folder / "out/part-000001.parquet").unlink()
    with pytest.raises(ValueError, match="the model is another"):
        finish(embed(folder), options(folder))
    after = {path: path.read_bytes() for path in (folder / "out").glob("part*")}
    assert {path: after[path] for path in before if path.name != "part-000001.parquet"} == {
        path: data for path, data in before.items() if path.name != "part-000001.parquet"
    }


def test_a_damaged_shard_does_not_stop_the_others(folder: Path) -> None:
    for number in range(3):
        with tarfile.open(folder / f"shard-{number}.tar", "w") as tar:
            tar.add(folder / f"photos/00{number + 1 + (number > 1)}.png", "a.png")
    good = (folder / "shard-1.tar").read_bytes()
    (folder / "shard-1.tar").write_bytes(good[:700])
    chosen = Pass(str(folder / "shard-{0..2}.tar"), str(folder / "out"))
    last = finish(embed(folder), chosen)
    assert (last.parts, last.rows) == (2, 2)
    assert last.failed[0].startswith(f"{folder}/shard-1.tar: ") and len(last.failed) == 1
    (folder / "shard-1.tar").write_bytes(good)
    assert finish(embed(folder), chosen).parts == 3
    assert len(table(folder / "out")) == 3


def test_a_search_reads_the_vectors_of_a_pass(folder: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    finish(embed(folder), options(folder))
    words = ["two cats", "--model", str(folder / "clip"), "--json", "--k", "3"]
    assert command(["search", str(folder / "out"), *words]) == 0
    by_pass = json.loads(capsys.readouterr().out)["matches"]
    assert command(["search", str(folder / "photos"), *words]) == 0
    by_index = json.loads(capsys.readouterr().out)["matches"]
    assert [m["name"] for m in by_pass] == [m["name"] for m in by_index]
    assert [m["score"] for m in by_pass] == pytest.approx([m["score"] for m in by_index], abs=1e-6)
    saved(tiny_clip(seed=1), folder / "other")
    words[2] = str(folder / "other")
    assert command(["search", str(folder / "out"), *words]) == 3
    assert "were made by another model" in capsys.readouterr().err


def test_columns_of_the_input_beside_the_result(folder: Path) -> None:
    rows = [{"image": f"00{n}.png", "caption": "two cats", "weight": n / 2} for n in (1, 2)]
    source = folder / "photos/rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = Pass(str(source), str(folder / "out"), columns=("weight",))
    finish(embed(folder), chosen)
    found = table(folder / "out")
    assert [row["weight"] for row in found] == [0.5, 1.0]
    assert found[0]["text_embedding"] == found[1]["text_embedding"] != found[0]["embedding"]
    for name, says in {
        "wieght": "Did you mean 'weight'",
        "cut": "has a column of this name",
    }.items():
        again = dataclasses.replace(chosen, columns=(name,), out=str(folder / name))
        with pytest.raises(ValueError, match=says):
            finish(embed(folder), again)


def test_the_size_of_a_batch_may_still_be_called_batch(folder: Path, capsys) -> None:
    words = ["--labels", "dog", "car", "--model", str(folder / "clip"), "--json"]
    assert command(["classify", str(folder / "photos/001.png"), *words, "--batch", "2"]) == 0
    assert len(json.loads(capsys.readouterr().out)["pictures"]) == 1
    assert command(["classify", "--batch", str(folder / "photos"), *words]) == 2
    assert "--out DIR" in capsys.readouterr().err
    given = ["--batch", str(folder / "photos"), "--out", str(folder / "out"), "--text", "a dog"]
    assert command(["embed", *given]) == 2
    assert "the texts are those of the input" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_an_actor_elsewhere_finds_what_relative_paths_name(folder: Path, monkeypatch) -> None:
    """Its working directory is another than that of the command; or the folders are not there."""
    monkeypatch.chdir(folder)
    request = Embed("clip", image=(HERE,))
    asked = Pass("photos", "out", part_size=4)
    part = write_or_read_plan(request, asked, Path("out"))[1]
    order = Order(request, dataclasses.replace(asked, out=str(folder / "out")))
    full = Order(embed(folder), options(folder))
    assert (find_folder(order), find_folder(full)) == (str(folder), "")
    (folder / "elsewhere").mkdir()

    def compute(order: Order, place: str) -> dict[str, Any]:
        monkeypatch.chdir(folder / "elsewhere")
        (line,) = Actor(order, place)({"part": [json.dumps([1, dataclasses.asdict(part)])]})[
            "outcome"
        ]
        return json.loads(line)  # type: ignore[no-any-return]

    assert compute(order, str(folder))["rows"] == 4
    names = pyarrow.parquet.read_table(folder / "out/part-000001.parquet")["key"].to_pylist()
    assert names == list(part.names)
    unseen = dataclasses.replace(order.options, out=str(folder / "empty"))
    for wrong, place, says in [
        (order, str(folder / "gone"), "where the command was given: give full paths"),
        (Order(request, unseen), str(folder), "does not see --out"),
        (order, "", "no model 'clip'"),
    ]:
        with pytest.raises(ValueError, match=says):
            read_outcome(compute(wrong, place))


@pytest.mark.slow
@pytest.mark.parametrize("on", ["here", "processes", "ray"])
def test_twenty_random_kills_give_the_rows_of_an_undisturbed_run(folder: Path, on: str) -> None:
    """The complete command, with its workers, killed by SIGKILL at random moments."""
    many = str(pictures(folder / "many", 40))
    finish(embed(folder), Pass(many, str(folder / "whole"), part_size=1))
    expected = {row["key"]: row["embedding"] for row in table(folder / "whole")}
    words = ["embed", "--batch", "many", "--model", "clip", "--out", "out", "--part-size", "1"]
    words += ["--on", on]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    draw = random.Random(on)

    def begin() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "triptych", *words],
            env=environment, cwd=folder, start_new_session=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    manifest = folder / "out" / MANIFEST
    killed = begun = 0  # all kills, and those of a pass that has parts already
    while killed < 20:
        process = begin()
        for _ in range(draw.randrange(4)):  # wait for so many further parts
            before = entered(manifest)
            while process.poll() is None and entered(manifest) == before:
                time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.05))
        alive = process.poll() is None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += alive
        begun += alive and 0 < entered(manifest) < len(expected)
        if entered(manifest) == len(expected):
            shutil.rmtree(folder / "out")
    assert begun >= 5
    assert begin().wait() == 0
    found = {row["key"]: row["embedding"] for row in table(folder / "out")}
    assert found == expected


def entered(manifest: Path) -> int:
    """Complete parts of a pass."""
    return manifest.read_bytes().count(b"\n") if manifest.exists() else 0

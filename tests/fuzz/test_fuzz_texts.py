"""Mutated prompts, parameters, boxes, data URLs, GGUF files, lists of a pass: read or refused."""

import base64
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from tests.fuzz.mutate import fuzz
from tests.weights.files.test_gguf import array, file, key, tensor, text
from triptych.data.disk.parts import MANIFEST, PLAN, read_manifest, read_plan
from triptych.passes.inputs import plan_slices
from triptych.passes.rows import read_rows
from triptych.server.pictures import decode_base64, open_upload
from triptych.server.settings import Limits
from triptych.systems.stable_diffusion.inputs.parameters_text import parse_infotext
from triptych.text import weighting
from triptych.text.locations import parse_objects
from triptych.text.prompt_schedule import parse_schedule, split_composition
from triptych.weights.files.gguf import read_gguf

pytestmark = pytest.mark.slow

PROMPTS = [
    "a (red:1.3) [apple|pear] on a ((table)), BREAK [night:day:0.4] \\(by\\) AND a cat :0.5",
    "(((((a)))))[[[[b]]]]", "[a:b:10] [c::3] [:d:0.2]", "caf\u00e9 \U0001f34e <lora:x:0.5>",
]  # fmt: skip
PARAMETERS = [
    "a cat\nNegative prompt: dog\nSteps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 1, "
    'Size: 64x64, Lora hashes: "a: b", Template: "x"',
    'Steps: 1, Sampler: Euler a, Hashes: {"a": 1}, Version: v1.9',
]
OBJECTS = [
    "<loc0100><loc0200><loc0500><loc0700> red circle ; <loc0000><loc0001><loc0002><loc1023> cat",
    "<loc0000><loc0000><loc0900><loc1023>" + "<seg001>" * 16 + " dog",
]


def readers() -> dict[str, Callable[[str], object]]:
    def schedule(prompt: str) -> object:
        return parse_schedule(prompt).notes

    return {
        "weights of a prompt": weighting.parse,
        "schedules": schedule,
        "compositions": split_composition,
        "parameters": parse_infotext,
        "objects": lambda given: [parse_objects(given, steps) for steps in (1023, 1024)],
    }


SAMPLES = {"parameters": PARAMETERS, "objects": OBJECTS}


def tell(capsys: Any, what: str, counts: Any, least: int = 20) -> None:
    with capsys.disabled():
        print(f"\n{what}: {dict(counts)}")
    assert sum(counts.values()) > least


@pytest.mark.parametrize("name", readers())
def test_texts(capsys, name: str) -> None:
    read = readers()[name]
    samples = [text.encode() for text in SAMPLES.get(name, PROMPTS)]
    counts = fuzz(samples, lambda data: read(data.decode("utf-8", "replace")), ValueError)
    tell(capsys, name, counts)


def test_objects_are_inside_the_picture(capsys) -> None:
    def read(data: bytes) -> None:
        for each in parse_objects(data.decode("utf-8", "replace")).objects:
            left, top, right, bottom = each.box
            assert 0 <= left < right <= 1.001 and 0 <= top < bottom <= 1.001

    tell(capsys, "boxes inside", fuzz([text.encode() for text in OBJECTS], read))


def test_data_urls(capsys) -> None:
    samples = []
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        picture = io.BytesIO()
        Image.new("RGB", (8, 6), (200, 30, 60)).save(picture, kind)
        encoded = base64.b64encode(picture.getvalue()).decode()
        samples.append(f"data:image/{kind.lower()};base64,{encoded}".encode())

    def read(data: bytes) -> None:
        decoded = decode_base64(data.decode("latin-1"), Limits())
        assert open_upload(decoded, Limits()).shape[2] in (1, 3, 4)

    tell(capsys, "data URLs", fuzz(samples, read, ValueError, OSError))


def test_gguf(tmp_path: Path, capsys) -> None:
    words = key(b"tokens", 9, array(8, 3, text(b"a") + text(b"bc") + text(b"")))
    numbers = key(b"scores", 9, array(6, 3, struct.pack("<3f", 1, 2, 3)))
    samples = [
        file(),
        file([key(), words, numbers, key(b"general.architecture", 8, text(b"gemma3"))]),
        file(tensors=[tensor(), tensor(b"u", offset=32), tensor(b"w", offset=64)], data=128),
        file(tensors=[tensor(b"q", kind=8, sides=(64, 2))], data=160),
    ]
    path = tmp_path / "a.gguf"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_gguf(path).read()

    tell(capsys, "gguf", fuzz([s for s in samples if _reads(path, s)], read, ValueError))


def _reads(path: Path, data: bytes) -> bool:
    path.write_bytes(data)
    try:
        read_gguf(path)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet"])
def test_tables_of_a_pass(tmp_path: Path, capsys, kind: str) -> None:
    rows = [{"file_name": f"{i}.png", "caption": "a cat", "id": i} for i in range(5)]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
        sample = path.read_bytes()
    else:
        sample = "\n".join(json.dumps(row) for row in rows).encode()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for part in plan_slices(str(path), 2):
            read_rows(part, tmp_path, "any")

    tell(capsys, f"a pass over {kind}", fuzz([sample], read, ValueError, OSError))


def test_the_lists_of_a_pass(tmp_path: Path, capsys) -> None:
    line = {
        "part": 0, "file": "part-000000.parquet", "rows": 3, "errors": 0, "bytes": 10,
        "sha256": "0" * 64, "model": "x",
    }  # fmt: skip
    plan = {"form": 1, "request": {"kind": "Embed"}, "settings": {"batch": "photos"}}

    def read(data: bytes) -> None:
        (tmp_path / MANIFEST).write_bytes(data)
        read_manifest(tmp_path)

    def read_planned(data: bytes) -> None:
        (tmp_path / PLAN).write_bytes(data)
        read_plan(tmp_path)

    lines = "".join(json.dumps(line | {"part": n}) + "\n" for n in range(3)).encode()
    tell(capsys, "manifest", fuzz([lines], read, ValueError))
    tell(capsys, "plan", fuzz([json.dumps(plan).encode()], read_planned, ValueError))

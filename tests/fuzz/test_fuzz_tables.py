"""Mutated metadata, annotations, arrays and tars are read, or refused in one sentence."""

import gzip
import io
import json
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fuzz.mutate import fuzz
from triptych.data.disk.table import select_split
from triptych.data.sources import open_index

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:::numpy")]

OBJECTS = {"bbox": [[1, 1, 2, 2]], "categories": ["a"]}
ROWS = [
    {"text": "a red circle", "label": 3, "split": "train", "size": 1.5, "colour": "red",
     "tags": ["big", "old"], "objects": OBJECTS},
    {"text": ["two", "captions"], "label": "cat", "size": -2e3, "colour": "blue", "tags": []},
    {"text": "drei \u4e09 \U0001f98a", "label": 0, "split": "test", "size": 0},
]  # fmt: skip
COCO = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 8} for i in range(3)],
    "annotations": [
        {"image_id": 0, "caption": "a circle"}, {"image_id": 1, "caption": "a square"},
        {"image_id": 2, "category_id": 5, "bbox": [1, 1.5, 2, 3], "iscrowd": 0},
    ],
    "categories": [{"id": 5, "name": "dog"}],
}  # fmt: skip


def csv_text() -> str:
    lines = ["file_name,text,label,split,size,colour,objects"]
    lines += ['0.png,"a ""red"" circle",3,train,1.5,red,"{""bbox"": [[1, 1, 2, 2]]}"']
    lines += ["1.png,two,4,train,-2e3,blue,", "2.png,drei,5,test,7,red,"]
    return "\n".join(lines)


def arrays(**named: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **named)
    return file.getvalue()


def tar_of(files: dict[str, bytes], form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8), value).save(file, "PNG")
    return file.getvalue()


LINES = "\n".join(json.dumps({"file_name": f"{i}.png"} | row) for i, row in enumerate(ROWS))
PIXELS = np.arange(3 * 16, dtype=np.uint8).reshape(3, 4, 4)
SIDECARS = {
    "txt": [b"a circle\nround", b"3 0.5 0.5 0.5 0.25\n0 0.1 0.1 0.1 0.1\n", "\u4e09".encode()],
    "json": [json.dumps(row).encode() for row in ROWS],
    "cls": [b"3", b"12\n"],
}  # fmt: skip
TARS = [
    tar_of({f"{i}.{end}": data for i in range(3) for end, data in
            (("png", png(i)), ("txt", b"a circle"), ("json", SIDECARS["json"][i]))}, form)
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
]  # fmt: skip
IDX = b"\0\0\x08\x03" + struct.pack(">III", 3, 4, 4) + PIXELS.tobytes()
FORMS = {
    "metadata.jsonl": [LINES.encode()],
    "metadata.csv": [csv_text().encode(), b"\xef\xbb\xbf" + csv_text().encode()],
    "captions_train.json": [json.dumps(COCO).encode()],
    "0.txt": SIDECARS["txt"],
    "0.json": SIDECARS["json"],
    "0.cls": SIDECARS["cls"],
    "set.npz": [
        arrays(images=PIXELS, labels=np.arange(3)),
        arrays(x_train=PIXELS[..., None] / 255, x_test=np.asfortranarray(PIXELS[..., None]) / 255),
    ],
    "set.tar": TARS,
    "train-images-idx3-ubyte": [IDX],
    "train-images-idx3-ubyte.gz": [gzip.compress(IDX)],
}


@pytest.mark.parametrize("name", FORMS)
def test_tables(tmp_path: Path, capsys, name: str) -> None:
    path = tmp_path / name
    whole = path if path.suffix in (".npz", ".tar") else tmp_path
    if whole is tmp_path and "idx" not in name:
        for number in range(3):
            (tmp_path / f"{number}.png").write_bytes(png(number))

    def read(data: bytes) -> None:
        path.write_bytes(data)
        try:
            index = replace(open_index(str(whole)), skipped={})  # else a few end it
            for split in ("train", "test"):
                table = select_split(index, split, 8, None)
                table.read(range(table.info.length or 0))
        except ValueError as error:
            assert 0 < len(str(error)) < 3000, error
            str(error).encode()
            raise

    counts = fuzz(FORMS[name], read, ValueError)
    with capsys.disabled():
        print(f"\n{name}: {dict(counts)}")
    assert sum(counts.values()) > 20

"""The folder of emoji, out of two small packages of the form of the published ones."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from triptych.data.sources import open_source

EXAMPLE = Path(__file__).parents[2] / "examples" / "emoji_folder.py"
NAMES = [
    {"label": "red apple", "hexcode": "1F34E", "tags": ["apple", "fruit", "red"]},
    {"label": "copyright", "hexcode": "00A9", "tags": ["c"]},
    {"label": "keycap: 0", "hexcode": "0030-FE0F-20E3", "tags": ["0", "keycap", "zero"]},
]


def pack(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


def test_names_tags_paper_and_splits(tmp_path: Path) -> None:
    codes = [row["hexcode"].replace("00A9", "00A9-FE0F") for row in NAMES]
    files = {
        "emoji.json": json.dumps(
            [{"unified": code, "image": f"{code.lower()}.png"} for code in codes]
        ).encode()
    }
    for code in codes:
        buffer = io.BytesIO()
        pixels = np.zeros((64, 64, 4), np.uint8)
        pixels[16:48, 16:48] = (200, 0, 0, 255)
        Image.fromarray(pixels).save(buffer, "PNG")
        files[f"img/google/64/{code.lower()}.png"] = buffer.getvalue()
    pictures = pack(tmp_path / "pictures.tgz", files)
    names = pack(tmp_path / "names.tgz", {"en/data.json": json.dumps(NAMES).encode()})
    words = [sys.executable, str(EXAMPLE), pictures, names]
    done = subprocess.run([*words, str(tmp_path / "emoji")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 pictures to train on and 1 held out" in done.stdout
    train, test = (open_source(str(tmp_path / "emoji"), split=split) for split in ("train", "test"))
    rows, held_out = train.read([0, 1]), test.read([0])
    assert [list(texts) for texts in rows["caption"]] == [
        ["copyright"], ["red apple", "red apple: fruit"],
    ]  # fmt: skip
    assert [list(texts) for texts in held_out["caption"]] == [["keycap: 0", "keycap: 0: zero"]]
    assert (rows["image"][0, 0, 0] == 255).all() and (rows["image"][0, 32, 32] == (200, 0, 0)).all()

    done = subprocess.run([*words[:2], names, names, "out"], capture_output=True, text=True)
    assert done.returncode == 1 and "not those named above" in done.stderr

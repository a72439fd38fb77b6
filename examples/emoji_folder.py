"""A folder of 1,911 emoji with captions, from two public packages: the data of the model `emoji`.

    npm pack emoji-datasource-google@16.0.0 emojibase-data@17.0.0
    python examples/emoji_folder.py emoji-datasource-google-*.tgz emojibase-data-*.tgz emoji
    triptych data check emoji

The pictures are Google's Noto Emoji (Apache-2.0; flags are public domain or otherwise free), their
names and tags those of Unicode CLDR (both packages: MIT). Where they are shown: "Noto Emoji, (c)
Google, Apache-2.0". Variants by skin tone are left out. One in twenty is held out for testing,
chosen by a hash of its code points.
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

PICTURES = "package/img/google/64/"
MOST_TAGS = 4


def read_bytes(archive: tarfile.TarFile, member: tarfile.TarInfo | str) -> bytes:
    file = archive.extractfile(member)
    if file is None:
        raise KeyError(f"{member} is no file")
    return file.read()


def read_json(archive: tarfile.TarFile, name: str) -> Any:
    return json.loads(read_bytes(archive, name))


def read_names(package: Path) -> dict[str, list[str]]:
    """Captions by code points: the name, and the name with the first tags that are not in it."""
    with tarfile.open(package) as archive:
        rows: list[dict[str, Any]] = read_json(archive, "package/en/data.json")
    captions = {}
    for row in rows:
        name = row["label"]
        tags = [tag for tag in row.get("tags", []) if tag not in name][:MOST_TAGS]
        key = row["hexcode"].lower().replace("-fe0f", "")  # a mark that packages write or leave out
        captions[key] = [name, *([f"{name}: {', '.join(tags)}"] if tags else [])]
    return captions


def on_white(data: bytes) -> Image.Image:
    """A picture with transparent parts, on white paper."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture).convert("RGB")


def is_held_out(code: str) -> bool:
    return int(hashlib.sha256(code.encode()).hexdigest(), 16) % 20 == 0


def write_folder(pictures: Path, names: Path, folder: Path) -> tuple[int, int]:
    """Write CODE.png and CODE.txt into `train` and `test` of a folder; returns how many of each."""
    captions = read_names(names)
    counts = {"train": 0, "test": 0}
    with tarfile.open(pictures) as archive:
        members = {member.name: member for member in archive if member.name.startswith(PICTURES)}
        rows: list[dict[str, Any]] = read_json(archive, "package/emoji.json")
        for row in rows:
            code = row["unified"].lower()
            split = "test" if is_held_out(code) else "train"
            data = read_bytes(archive, members[PICTURES + row["image"]])
            into = folder / split
            into.mkdir(parents=True, exist_ok=True)
            on_white(data).save(into / f"{code}.png")
            lines = captions[code.replace("-fe0f", "")]
            (into / f"{code}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
            counts[split] += 1
    return counts["train"], counts["test"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="emoji-datasource-google-16.0.0.tgz")
    parser.add_argument("names", type=Path, help="emojibase-data-17.0.0.tgz")
    parser.add_argument("folder", type=Path, help="the new folder")
    options = parser.parse_args()
    try:
        train, test = write_folder(options.pictures, options.names, options.folder)
    except (OSError, KeyError, tarfile.TarError) as error:
        sys.exit(f"the packages are not those named above, or incomplete: {error}")
    print(f"{train} pictures to train on and {test} held out in {options.folder}")

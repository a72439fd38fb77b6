"""Writes what the runs in files/ were trained on: digits.npz, words.npz and captioned/."""

import json
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

FILES = Path(__file__).parent / "files"
CHANGED = 1_700_000_000  # seconds: the search index holds the times of its pictures
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 220)}


def main() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    first = [np.flatnonzero(digits.target == k)[:6] for k in range(3)]
    rows = np.stack(first, 1).reshape(-1)  # 0 1 2 0 1 2 ...
    x, y = (digits.images[rows] * (255 / 16)).astype(np.uint8), digits.target[rows]
    np.savez_compressed(
        FILES / "digits.npz", x_train=x[:12], y_train=y[:12], x_test=x[12:], y_test=y[12:]
    )
    Image.fromarray(x[-1]).save(FILES / "two.png")  # completed from its quadrants
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(FILES / "mask.png")
    vectors = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    np.savez(FILES / "words.npz", words=np.array(["0", "1", "2"]), vectors=vectors)

    for split, places in (("train", 2), ("test", 1)):
        folder = FILES / "captioned" / split
        folder.mkdir(parents=True, exist_ok=True)
        captions = []
        for colour, fill in COLOURS.items():
            for shape in ("circle", "square"):
                for place in range(places):
                    picture = Image.new("RGB", (16, 16), (235, 235, 235))
                    box = (2 + 3 * place, 3, 10 + 3 * place, 11)
                    draw = ImageDraw.Draw(picture)
                    (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=fill)
                    name = f"{colour}-{shape}-{place}.png"
                    picture.save(folder / name)
                    os.utime(folder / name, (CHANGED, CHANGED))
                    captions.append({"file_name": name, "text": f"a {colour} {shape}"})
        lines = "".join(json.dumps(row) + "\n" for row in captions)
        (folder / "metadata.jsonl").write_text(lines)


if __name__ == "__main__":
    main()

"""Photos with a CLIP of the size of B/32: from JPEG files to embeddings, and the first answer cold.

Random weights in a folder of transformers' layout with a published vocabulary beside it; both read
the same folder. `embed`: JPEG files of 640 x 480 to unit vectors, ours by the pipeline of `triptych
embed`, theirs by Pillow, its default processor and its model. `cold`: a whole process of `triptych
classify` from its start to its end, against a process that only imports torch.

    python benchmarks/photos.py embed --vocabulary FOLDER [--model B/32|L/14] [--pairs 20]
    python benchmarks/photos.py cold --vocabulary FOLDER [--pairs 20]
"""

import argparse
import gzip
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import measure
import torch
import transformers
from clip_encode import peer
from PIL import Image
from preprocess import photo

from triptych.loading import load
from triptych.requests import Embed
from triptych.running import run


def written(folder: Path, what: str, vocabulary: Path) -> Path:
    """A folder as transformers saves it, with the vocabulary of `vocabulary`."""
    made = peer(what)
    made.save_pretrained(folder)
    packed, plain = vocabulary / "hf_tokenizer.json.gz", vocabulary / "tokenizer.json"
    text = plain.read_bytes() if plain.is_file() else gzip.decompress(packed.read_bytes())
    (folder / "tokenizer.json").write_bytes(text)
    transformers.CLIPImageProcessor().save_pretrained(folder)
    return folder


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    with torch.inference_mode():
        call()
    return time.perf_counter() - began


def embed(folder: Path, files: list[Path], options: argparse.Namespace) -> None:
    loaded = load(str(folder))
    theirs = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPImageProcessor.from_pretrained(folder)
    request = Embed(image=tuple(map(str, files)), model=str(folder))

    def ours() -> torch.Tensor:
        *_, last = run(request, loaded)
        return torch.stack([row.embedding for row in last.rows if row.embedding is not None])

    def reference() -> torch.Tensor:
        opened = [Image.open(file).convert("RGB") for file in files]
        pixels = processor(opened, return_tensors="pt").pixel_values
        found = theirs.get_image_features(pixel_values=pixels).pooler_output
        return torch.nn.functional.normalize(found, dim=-1)

    with torch.inference_mode():
        cosine = (ours() * reference()).sum(1).min().item()
    a, b = measure.pairs(lambda: seconds(ours), lambda: seconds(reference), options.pairs)
    ratios = [their / our for our, their in zip(a, b, strict=True)]
    low, high = measure.interval(ratios)
    measure.emit(
        what=f"JPEG to embedding, {options.model}, peer over ours", files=len(files),
        dtype=str(next(loaded.model.parameters()).dtype), pairs=options.pairs,
        ours_per_s=len(files) / statistics.median(a), peer_per_s=len(files) / statistics.median(b),
        ratio=statistics.median(ratios), low=low, high=high, least_cosine=cosine,
    )  # fmt: skip


def cold(folder: Path, files: list[Path], options: argparse.Namespace) -> None:
    asked = ["classify", str(files[0]), "--labels", "a cat", "a dog", "--model", str(folder)]

    def process(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    a, b = measure.pairs(
        lambda: seconds(lambda: process("-m", "triptych", *asked)),
        lambda: seconds(lambda: process("-c", "import torch")),
        options.pairs,
    )
    beyond = [ours - torch_alone for ours, torch_alone in zip(a, b, strict=True)]
    low, high = measure.interval(beyond)
    measure.emit(
        what="triptych classify, cold, B/32", seconds=statistics.median(a),
        import_torch=statistics.median(b), beyond=statistics.median(beyond), low=low, high=high,
        pairs=options.pairs,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["embed", "cold"])
    parser.add_argument("--vocabulary", type=Path, required=True, help="a folder with CLIP's")
    parser.add_argument("--model", default="B/32", choices=["B/32", "L/14"])
    parser.add_argument("--files", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    measure.emit(machine=measure.machine())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "clip"
        written(folder, "B/32" if options.what == "cold" else options.model, options.vocabulary)
        files = [Path(place) / f"{number:02d}.jpg" for number in range(options.files)]
        for number, file in enumerate(files):
            file.write_bytes(photo(number))
        (embed if options.what == "embed" else cold)(folder, files, options)


if __name__ == "__main__":
    main()

"""Makes a bundled model of a run folder: half the size, with a card, and the same pictures.

The result has all that is needed to use, evaluate and reproduce the model: weights in bfloat16,
configuration, vocabulary, known words, the request that trained it, and its card. It is a run
folder, wherever it lies; those in `weights/bundled` of the package are found by their names.
"""

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

from triptych import running
from triptych.atomic import replace_folder
from triptych.config import read_object, write_json
from triptych.fields import to_json
from triptych.loading import load
from triptych.systems import find_command
from triptych.training import stored
from triptych.weights import bundled_models
from triptych.weights.bundled_models import CARD, ModelCard
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.loaded import ANSWERS, TWO_TOWERS, Loaded

MOST_BYTES = {"stable-diffusion": 26_000_000}
"""Of one model of a kind in the package."""
MOST_BYTES_TOGETHER = 65_000_000
LEAST_PSNR = 30.0
"""Of pictures drawn in bfloat16 with those in float32, in dB; below it they are other pictures."""
LEAST_COSINE = 0.999
"""Of embeddings, likewise."""
LEAST_SHARE = 0.95
"""Of the probability of an answer's first word, likewise."""
PROMPTS = 8
PROMPT = "a red circle"  # of models that keep no names
DIFFUSION = ("stable-diffusion", "pixel-diffusion", "unclip")  # by default in what is fastest
COPIED = ("config.json", "tokenizer.json", "words.json")


def write_bundle(run: Path, dest: Path, card: ModelCard) -> Iterator[str]:
    """Write the model of a run folder, complete, as a bundled one; yields what was found.

    Raises:
        ValueError: `run` is no finished run folder or of a kind that cannot be compared; the model
            in bfloat16 is not the same any more; or it is too large for the package.
        OSError: the folder cannot be written; what was there before stays.
    """
    request = stored(run)
    if request is None:
        raise ValueError(f"{run} is no run folder: it has no run.json")
    before = load(str(run), dtype="float32")
    with replace_folder(dest) as folder:
        for file in COPIED:
            if (run / file).exists():
                shutil.copyfile(run / file, folder / file)
        kept = dict(before.model.named_buffers())  # statistics, which are few, stay exact
        weights = {
            name: x.contiguous() if name in kept else round_weights(x)
            for name, x in before.model.state_dict().items()
        }
        write_safetensors(folder / "model.safetensors", weights)
        record = read_object(run / "run.json")
        write_json(folder / "run.json", record | {"request": without_folders(record["request"])})
        write_json(folder / CARD, to_json(card))
        after = replace(load(str(folder), dtype="float32"), name=before.name)
        stored(folder)  # readable, without its folders
        yield compare(before, after)
        yield _check_size(folder, dest, before)


def round_weights(tensor: torch.Tensor) -> torch.Tensor:
    """In bfloat16, except whole numbers, and scalars such as a temperature: 100 would be 98.9."""
    small = tensor.ndim == 0 or not tensor.is_floating_point()
    return tensor.contiguous() if small else tensor.to(torch.bfloat16).contiguous()


def without_folders(value: Any) -> Any:
    """JSON values with the last part of every path: they are of another machine."""
    if isinstance(value, dict):
        return {name: without_folders(each) for name, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    return PurePath(value.replace("\\", "/")).name if isinstance(value, str) else value


def compare(before: Loaded, after: Loaded) -> str:
    """How much a model in bfloat16 is like the one in float32, as a sentence.

    Raises:
        ValueError: not enough, or there is no way to tell.
    """
    if before.card.model in TWO_TOWERS:
        cosine = min(_cosine(a, b) for a, b in zip(_embed(before), _embed(after), strict=True))
        if cosine < LEAST_COSINE:
            raise ValueError(
                f"in bfloat16 an embedding has a cosine of {cosine:.4f} with that in float32, "
                f"below {LEAST_COSINE}: this model cannot be bundled"
            )
        return f"cosine of embeddings in bfloat16 with those in float32: at least {cosine:.5f}"
    if before.card.model in ANSWERS:
        share = float(torch.minimum(_answer(before), _answer(after)).sum(1).min())
        if share < LEAST_SHARE:
            raise ValueError(
                f"in bfloat16 the model answers otherwise: of the first word only {share:.3f} of "
                f"the probability is the same, below {LEAST_SHARE}: it cannot be bundled"
            )
        return f"of the first word of an answer at least {share:.4f} of the probability is the same"
    pictures = draw(before), draw(after)
    psnr = _psnr(*pictures)
    if psnr < LEAST_PSNR:
        raise ValueError(
            f"in bfloat16 the model draws other pictures, {psnr:.1f} dB from those in float32, "
            f"below {LEAST_PSNR:g} dB: it cannot be bundled"
        )
    return f"{len(pictures[0])} pictures in bfloat16 and in float32: {psnr:.1f} dB"


def draw(loaded: Loaded) -> np.ndarray:
    """Pictures of seed 0: of the model's first names, or of every class in turn.

    Raises:
        ValueError: the model draws neither pictures of prompts nor of classes.
    """
    system = find_command("generate", loaded.card.model)
    if system is None or loaded.card.quadrants:
        kind = f"{loaded.card.model} that completes pictures" if system else loaded.card.model
        raise ValueError(
            f"{loaded.name} is a {kind}: models that draw pictures of prompts or classes or answer "
            "about pictures, CLIP and SigLIP can be bundled"
        )
    names = loaded.words.names if loaded.words else ()
    given: dict[str, Any] = {"model": loaded.name, "seed": 0}
    if loaded.card.model in DIFFUSION:
        given["precision"] = "float32"
    if loaded.card.model == "stable-diffusion":
        given["prompt"] = names[:PROMPTS] or ("",)
    if loaded.card.model == "unclip":
        given |= {"prompt": PROMPT, "n": PROMPTS}
    *_, result = running.run(system.requests["generate"](**given), loaded)
    pictures: np.ndarray = result.pictures
    return pictures


def _embed(loaded: Loaded) -> tuple[torch.Tensor, torch.Tensor]:
    """Of random pictures and of short texts, one row each."""
    assert loaded.transform is not None
    noise = np.random.default_rng(0).integers(0, 256, (PROMPTS, 64, 64, 3), np.uint8)
    texts = [f"a picture of the number {number}" for number in range(PROMPTS)]
    return loaded.embed_image(list(noise)), loaded.embed_text(texts)


@torch.inference_mode()
def _answer(loaded: Loaded) -> torch.Tensor:
    """The probabilities of the first word of an answer, for two questions about random pictures."""
    model: Any = loaded.model
    assert loaded.language is not None and loaded.transform is not None
    noise = np.random.default_rng(0).integers(0, 256, (PROMPTS, 64, 64, 3), np.uint8)
    pixels, rows = loaded.transform(list(noise)), []
    for prefix in ("caption en", "answer en how many objects are there?"):
        tokens = torch.tensor([loaded.language.question(prefix)] * PROMPTS)
        logits, _ = model.read(pixels, tokens, torch.zeros(PROMPTS, dtype=torch.long))
        rows.append(logits.float().softmax(1))
    return torch.cat(rows)


def _cosine(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours * theirs).sum(1).min())


def _psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    error = float(np.square(ours.astype(np.float64) - theirs).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def _check_size(folder: Path, dest: Path, loaded: Loaded) -> str:
    """The size as a sentence. ValueError if it is too large for the package, where it goes there.

    Elsewhere it may have any size.
    """
    size, box = size_of(folder), bundled_models.FOLDER
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    if dest.resolve().parent == box.resolve():
        most = MOST_BYTES.get(loaded.card.model, MOST_BYTES_TOGETHER)
        others = sum(size_of(path) for path in _others(box, dest))
        if size > most or size + others > MOST_BYTES_TOGETHER:
            raise ValueError(
                f"{dest.name} has {size:,} bytes, beside {others:,} of other bundled models: at "
                f"most {most:,} for one such model and {MOST_BYTES_TOGETHER:,} for all are allowed"
            )
    return f"{count:,} parameters in {size:,} bytes"


def _others(box: Path, dest: Path) -> list[Path]:
    names = bundled_models.bundled_names()
    return [box / name for name in names if name != dest.name]


def size_of(folder: Path) -> int:
    """The bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

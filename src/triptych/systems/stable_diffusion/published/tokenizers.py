"""The tokenizers of a published Stable Diffusion: one for each text tower.

A diffusers folder has them. A single file does not: its vocabulary is CLIP's, and is looked for
beside the file and among what was downloaded before; it is never fetched.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from triptych.systems.clip.model import TextEncoderConfig
from triptych.text.tokenizer import Tokenizer, clip_tokenizer
from triptych.weights.hub import cached

NAMES = ("tokenizer.json", "vocab.json", "bpe_simple_vocab_16e6.txt.gz")
CACHED = (  # repositories with CLIP's vocabulary
    *((f"openai/clip-vit-{size}", "tokenizer.json") for size in (
        "large-patch14", "base-patch32", "base-patch16", "large-patch14-336",
    )),
    *((repo, "tokenizer/vocab.json") for repo in (
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "stabilityai/stable-diffusion-xl-base-1.0",
        "CompVis/stable-diffusion-v1-4",
    )),
)  # fmt: skip


def folder_tokenizers(path: Path, towers: Mapping[str, TextEncoderConfig]) -> tuple[Tokenizer, ...]:
    """Those of a diffusers folder, by the names of their folders; they also say what they pad with.

    Raises:
        ValueError: one is missing or damaged, or its tokens are not the tower's.
    """
    for name in towers:
        if not (path / name).is_dir():
            raise ValueError(f"its {name} is missing: fetch the folder from where the rest is")
    return tuple(
        _fitting(path / name, clip_tokenizer(path / name, tower.text.length), tower)
        for name, tower in towers.items()
    )


def file_tokenizers(
    file: Path, towers: Sequence[TextEncoderConfig], pads: Sequence[int]
) -> tuple[Tokenizer, ...]:
    """Those of a single file, from a vocabulary beside it or in the hub's cache.

    `pads` is what each tower's texts are padded with.

    Raises:
        ValueError: there is none; says which file to put where.
    """
    source = _vocabulary(file)
    try:
        return tuple(
            _fitting(source, clip_tokenizer(source, tower.text.length, pad=pad), tower)
            for tower, pad in zip(towers, pads, strict=True)
        )
    except ValueError as error:
        about = "" if str(error).startswith(f"{source}") else f"{source}: "
        raise ValueError(f"{about}{error}") from error


def _vocabulary(file: Path) -> Path:
    for name in NAMES:
        path = file.parent / name
        if path.is_file() and (name != "vocab.json" or path.with_name("merges.txt").is_file()):
            return path
    for repo, name in CACHED:
        found = cached(repo, name)
        if found is not None and (
            not name.endswith("vocab.json") or found.with_name("merges.txt").is_file()
        ):
            return found
    raise ValueError(
        f"a single file has no vocabulary, and there is none beside it: put the tokenizer.json of "
        f"openai/clip-vit-large-patch14 into {file.parent} (or vocab.json and merges.txt of any "
        f"Stable Diffusion's folder tokenizer, or OpenAI's {NAMES[-1]})"
    )


def _fitting(source: Path, tokenizer: Tokenizer, tower: TextEncoderConfig) -> Tokenizer:
    text, around = tower.text, tokenizer.config
    if tokenizer.vocabulary > text.vocabulary or around.end != text.end:
        raise ValueError(
            f"{source} has {tokenizer.vocabulary:,} tokens and ends texts with {around.end}; the "
            f"text tower knows {text.vocabulary:,} and ends them with {text.end}: it is of another "
            "model"
        )
    return tokenizer

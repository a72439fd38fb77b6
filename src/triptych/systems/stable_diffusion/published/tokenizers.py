"""The tokenizers of a published Stable Diffusion, one for each text tower.

A diffusers folder contains them. A single file does not: CLIP's vocabulary is searched beside it
and in the cache of earlier downloads; it is never downloaded.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from triptych.config import BadFile, errors_about
from triptych.systems.clip.model import TextEncoderConfig
from triptych.text.tokenizer import Tokenizer, clip_tokenizer
from triptych.weights.hub import find_cached

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
    """Read the tokenizers of a diffusers folder; the keys of `towers` are their subfolders.

    Raises:
        ValueError: one is missing or damaged, or does not fit its tower.
    """
    for name in towers:
        if not (path / name).is_dir():
            raise ValueError(
                f"its folder {name} is missing: download it from where you got the others"
            )
    return tuple(
        _check_tokenizer(path / name, clip_tokenizer(path / name, tower.text.length), tower)
        for name, tower in towers.items()
    )


def file_tokenizers(
    file: Path, towers: Sequence[TextEncoderConfig], pads: Sequence[int]
) -> tuple[Tokenizer, ...]:
    """The tokenizers for a single file, from a vocabulary beside it or in the hub's cache.

    `pads` are the padding tokens of the towers.

    Raises:
        ValueError: there is no vocabulary; says which file to put where.
    """
    source = _find_vocabulary(file)
    with errors_about(source):
        return tuple(
            _check_tokenizer(source, clip_tokenizer(source, tower.text.length, pad=pad), tower)
            for tower, pad in zip(towers, pads, strict=True)
        )


def _find_vocabulary(file: Path) -> Path:
    beside = (file.parent / name for name in NAMES)
    for path in chain(beside, (find_cached(repo, name) for repo, name in CACHED)):
        if path is None or not path.is_file():
            continue
        if path.name != "vocab.json" or path.with_name("merges.txt").is_file():
            return path
    raise ValueError(
        f"a single file has no vocabulary, and there is none beside it: put the tokenizer.json of "
        f"openai/clip-vit-large-patch14 into {file.parent} (or vocab.json and merges.txt of any "
        f"Stable Diffusion's folder tokenizer, or OpenAI's {NAMES[-1]})"
    )


def _check_tokenizer(source: Path, tokenizer: Tokenizer, tower: TextEncoderConfig) -> Tokenizer:
    text, end = tower.text, tokenizer.config.end
    if tokenizer.vocabulary > text.vocabulary or end != text.end:
        raise BadFile(
            source,
            f"has {tokenizer.vocabulary:,} tokens and the end token {end}; the text tower has "
            f"{text.vocabulary:,} and {text.end}: they belong to different models",
        )
    return tokenizer

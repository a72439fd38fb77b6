"""`triptych generate`: pictures of a prompt, or of classes, whichever the model draws."""

import json
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from triptych.cli.generate import class_pictures, text_pictures
from triptych.cli.words import gathered, parted
from triptych.systems import find_command
from triptych.systems.class_to_image.request import ClassToImage
from triptych.systems.stable_diffusion.request import TextToImage

LISTS = ("--attributes", "--vector", "--loras")
SWITCHES = (
    "--json", "--deterministic", "--no-deterministic", "--tiling", "--no-tiling", "--no-json",
    "--help", "--help-all",
)  # fmt: skip
PUBLISHED = "stable-diffusion"  # what a checkpoint of another program is, if it draws at all


def main(arguments: list[str]) -> int:
    rest, taken = gathered(arguments, LISTS)
    words, flags = parted(rest, SWITCHES)
    given = dict(flag.partition("=")[::2] for flag in flags)
    replays = "--from-parameters" in given
    kind = model_kind(given.get("--model", ""))
    system = find_command("generate", kind)
    by_words = TextToImage if words or replays else ClassToImage
    of_text = (system.requests["generate"] if system else by_words) is TextToImage
    if asks := {"-h", "--help", "--help-all"} & set(flags):
        if of_text or not kind:
            text_pictures.explain(every="--help-all" in asks)
            return 0
        return class_pictures.main(list(asks))
    if not of_text and (words or replays):
        raise ValueError(
            f"{given['--model']} is a {kind}: it draws no prompts, so say what it is to draw with "
            "flags (`--help --model` of it shows which)"
        )
    _refuse_strangers(flags + [flag for flag, _ in taken], of_text, given.get("--model", ""), kind)
    for flag in LISTS:
        if values := [value for name, value in taken if name == flag]:
            flags += [flag, *values]
    if not of_text:
        return class_pictures.main(flags)
    if len(words) > 1:
        raise ValueError(
            f"one prompt, in quotes, not {len(words)}: {' '.join(words)[:60]!r} is one text"
        )
    if not words and not replays:
        raise ValueError('there is no prompt: triptych generate "a red cat" --model ...')
    return text_pictures.main(words[0] if words else None, flags)


def model_kind(name: str) -> str:
    """What a model's configuration says that it is; empty where that takes more than a look."""
    folder = Path(name or ".")
    if not name or not folder.exists():
        return ""
    if folder.is_file() or (folder / "model_index.json").exists():
        return PUBLISHED
    try:
        card = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    kind = card.get("model") if isinstance(card, dict) else None
    return kind if isinstance(kind, str) else ""


def _refuse_strangers(flags: list[str], of_text: bool, model: str, kind: str) -> None:
    """A flag that only the other kind of model can use is told from one that is misspelt."""
    text = {field.name for field in fields(TextToImage)} | text_pictures.FLAGS
    classes = {field.name for field in fields(ClassToImage)} | class_pictures.FLAGS
    own, other = (text, classes) if of_text else (classes, text)
    for flag in flags:
        name = flag.partition("=")[0].removeprefix("--").replace("-", "_")
        if name in other - own:
            _refuse(flag, of_text, model, kind)


def _refuse(flag: str, of_text: bool, model: str, kind: str) -> NoReturn:
    draws = "prompts" if of_text else "classes"
    what = f"{model or 'the model'} is a {kind}" if kind else f"this is about pictures of {draws}"
    raise ValueError(f"{flag.partition('=')[0]} cannot be used: {what}")

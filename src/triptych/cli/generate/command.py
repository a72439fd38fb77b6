"""`triptych generate`: pictures of a prompt or of classes, whichever the model draws."""

import json
from pathlib import Path

from triptych.cli.arguments import HELP_FLAGS, find_options, refuse_others, split_words
from triptych.cli.generate import class_pictures, text_pictures
from triptych.cli.output import UsageError
from triptych.systems import find_command
from triptych.systems.class_to_image.request import ClassToImage
from triptych.systems.stable_diffusion.request import TextToImage

PUBLISHED = "stable-diffusion"  # the kind of any checkpoint of another program


def main(arguments: list[str]) -> int:
    of_text = {option.flag: option for option in find_options(text_pictures.Arguments)}
    of_classes = {option.flag: option for option in find_options(class_pictures.Arguments)}
    words, given = split_words(arguments, of_classes | of_text)
    flags = {flag: values[-1] for flag, values in given if values}
    model, has_prompt = flags.get("--model", ""), bool(words) or "--from-parameters" in dict(given)
    kind = model_kind(model)
    system = find_command("generate", kind)
    by_words = TextToImage if has_prompt else ClassToImage
    takes_text = (system.requests["generate"] if system else by_words) is TextToImage
    if asks := HELP_FLAGS & set(arguments):
        if kind and not takes_text:
            return class_pictures.main(list(asks))
        text_pictures.print_help(every="--help-all" in asks)
        return 0
    if has_prompt and not takes_text:
        raise UsageError(
            f"{model} is a {kind}, which takes no prompt; `triptych generate --model {model} "
            "--help` lists its options"
        )
    if not arguments and not Path(ClassToImage().model).exists():
        raise UsageError('give a prompt or a model: triptych generate "a red cat" --model RUN')
    draws = "prompts" if takes_text else "classes"
    reason = f"{model} is a {kind}" if kind else f"it is not for pictures of {draws}"
    if takes_text:
        refuse_others(given, of_text, of_classes, reason)
        return text_pictures.main(arguments)
    refuse_others(given, of_classes, of_text, reason)
    return class_pictures.main(arguments)


def model_kind(name: str) -> str:
    """The kind of a model by its configuration; empty if it cannot be told without loading."""
    folder = Path(name or ".")
    if not name or not folder.exists():
        return ""
    if folder.is_file() or (folder / "model_index.json").exists():
        return PUBLISHED
    try:
        card = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    kind = card.get("model") if isinstance(card, dict) else None
    return kind if isinstance(kind, str) else ""

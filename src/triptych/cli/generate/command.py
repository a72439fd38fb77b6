"""`triptych generate`: pictures of a prompt or of classes, whichever the model draws."""

from pathlib import Path
from types import ModuleType

from triptych.cli.arguments import HELP_FLAGS, find_options, refuse_others, split_words
from triptych.cli.generate import class_pictures, embedding_pictures, text_pictures
from triptych.cli.output import UsageError
from triptych.systems import KINDS, find_command
from triptych.systems.class_to_image.request import ClassToImage
from triptych.systems.stable_diffusion.request import TextToImage
from triptych.systems.unclip.request import UnclipPictures
from triptych.weights.bundled_models import find_bundled
from triptych.weights.describe_model import find_kind, require_weights

PUBLISHED = "stable-diffusion"  # the kind of a single file of another program


PAGES: dict[type, ModuleType] = {
    TextToImage: text_pictures,
    ClassToImage: class_pictures,
    UnclipPictures: embedding_pictures,
}
"""The module that carries out each request of this command."""


def main(arguments: list[str]) -> int:
    options = {
        request: {option.flag: option for option in find_options(page.Arguments)}
        for request, page in PAGES.items()
    }
    every = {flag: option for each in options.values() for flag, option in each.items()}
    words, given = split_words(arguments, every)
    flags = {flag: values[-1] for flag, values in given if values}
    model, has_prompt = flags.get("--model", ""), bool(words) or "--from-parameters" in dict(given)
    kind = model_kind(model)
    system = find_command("generate", kind)
    by_words = TextToImage if has_prompt else ClassToImage
    request = system.requests["generate"] if system else by_words
    if asks := HELP_FLAGS & set(arguments):
        if kind and request is not TextToImage:
            return int(PAGES[request].main(list(asks)))
        text_pictures.print_help(every="--help-all" in asks)
        return 0
    if model and (Path(model) / "run.json").exists():
        require_weights(Path(model), model)
    if has_prompt and request is ClassToImage:
        raise UsageError(
            f"{model} is a {kind}, which takes no prompt; `triptych generate --model {model} "
            "--help` lists its options"
        )
    if not arguments:
        raise UsageError(
            'give a prompt, triptych generate "a red apple", or a model, triptych generate --model '
            "RUN"
        )
    if not system and kind in KINDS and "generate" in KINDS[kind].requests:
        raise ValueError(
            f"{model} is one of the parts of a model, {kind}: give the run folder with all parts, "
            f"such as {Path(model).parent}"
        )
    draws = "classes" if request is ClassToImage else "prompts"
    reason = f"{model} is a {kind}" if kind else f"it is not for pictures of {draws}"
    refuse_others(given, options[request], every, reason)
    return int(PAGES[request].main(arguments))


def model_kind(name: str) -> str:
    """The kind of a model by its configuration; empty if it cannot be told without loading."""
    folder = find_bundled(name) or Path(name or ".")
    if not name or not folder.exists():
        return ""
    return find_kind(folder) or (PUBLISHED if folder.is_file() else "")

"""`triptych generate PROMPT`: pictures of a prompt, and the request in their files."""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from triptych.cli.arguments import find_options, parse, render_help, split_words
from triptych.cli.generate.default_model import say_default_model
from triptych.cli.generate.from_parameters import read_parameters
from triptych.cli.output import UsageError, say, watch
from triptych.cli.places import PICTURE_ENDINGS, next_number, require_file, require_folder
from triptych.cli.threads import spare_threads
from triptych.given import require_values
from triptych.systems.stable_diffusion.request import TextToImage

if TYPE_CHECKING:
    import numpy as np

    from triptych.systems.stable_diffusion.pipeline import Drawing


@dataclass(frozen=True)
class Arguments:
    """Generate pictures of a prompt: from noise, from a picture, or within its mask."""

    request: TextToImage
    out: Path = Path("pictures")
    """Folder for the pictures: 0000-SEED.png and so on. Pictures that are there are kept: the
    numbers go on.
    """
    format: Literal["png", "jpeg", "webp"] = "png"
    """Format of the picture files; PNG and WebP are lossless."""
    preview: str = ""
    """A .png, .jpg or .webp file with a preview, rewritten every half second."""
    from_parameters: str = ""
    """Repeat the request stored in a picture file, or in a text of AUTOMATIC1111; other options
    change it.
    """
    json: bool = False
    """Print one JSON object on stdout: the request and the files with their seeds."""


USAGE = "triptych generate PROMPT [--model MODEL] [OPTIONS]"
BASIC = (
    "negative", "model", "size", "n", "seed", "steps", "sampler", "guidance", "image", "strength",
    "mask", "loras", "out", "from_parameters", "json",
)  # fmt: skip


def print_help(every: bool) -> None:
    options = list(find_options(Arguments))
    print(render_help(options, USAGE, BASIC, Arguments.__doc__ or "", every=every))
    print("\nClass-conditional models have other options: triptych generate --model RUN --help")


def main(arguments: list[str]) -> int:
    options = {option.flag: option for option in find_options(Arguments)}
    words, given = split_words(arguments, options)
    if len(words) > 1:
        raise UsageError(f"one prompt, in quotes, not {len(words)}: {' '.join(words)[:60]!r}")
    flags = {flag: values[-1] for flag, values in given if values}
    default = None
    if source := flags.get("--from-parameters"):
        start, notes = read_parameters(source, flags.get("--model", ""))
        say(*(f"triptych: {line}" for line in notes))
        default = Arguments(start)
    elif not words and "--from-parameters" not in dict(given):
        raise UsageError('there is no prompt: triptych generate "a red cat" --model ...')
    parsed = parse(
        Arguments, arguments, usage=USAGE, basic=BASIC, default=default, positional=("prompt",)
    )
    require_values(parsed.request)
    if default is None:
        say_default_model(arguments, parsed.request.model)
    else:
        from triptych.running import changed_values, read_digests

        recorded = replace(default.request, **read_digests(source))  # type: ignore[arg-type]
        for name in ("image", "mask", "latents"):
            changes = changed_values(recorded, parsed.request, name)
            say(*(f"triptych: {line}" for line in changes))
    return draw(parsed)


def draw(parsed: Arguments) -> int:
    """Draw and write pictures; each is saved as soon as it is done."""
    from triptych.loading import load
    from triptych.running import run
    from triptych.systems.stable_diffusion.pipeline import drawing_model, load_model
    from triptych.systems.stable_diffusion.preview import preview_of
    from triptych.vision.pixels import name_files

    request = parsed.request
    require_folder("--out", parsed.out)
    preview_file = Path(parsed.preview) if parsed.preview else None
    if preview_file:
        require_file("--preview", preview_file, PICTURE_ENDINGS)
    loaded = load_model(request, load)
    spare_threads(loaded.model, 1 if request.deterministic else request.n)
    preview = cache(lambda: preview_of(drawing_model(loaded)))  # built for the first preview

    def project(item: "Drawing") -> "np.ndarray | None":
        return None if item.guess is None else preview()(item.guess[:1])[0]

    parsed.out.mkdir(parents=True, exist_ok=True)
    first = next_number(parsed.out)
    files: list[dict[str, Any]] = []
    digests: dict[str, str] = {}
    work = run(request, loaded)
    try:
        for number, item in enumerate(watch(work, project, preview_file)):
            if not number:
                say(*(f"triptych: {line}" for line in item.notes))
                digests = name_files(request, "image", "mask")
            request = item.request
            for index in range(len(files), len(item.pictures)):
                files.append(_save(item, index, first + index, parsed, loaded.name, digests))
    except KeyboardInterrupt:
        say(f"triptych: {len(files)} of {parsed.request.n} pictures are in {parsed.out}")
        raise
    finally:
        work.close()  # type: ignore[attr-defined]
    seeds = sorted({one["seed"] for one in files})
    span = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    say(f"{len(files)} {'picture' if len(files) == 1 else 'pictures'} in {parsed.out}, {span}")
    if parsed.json:
        from triptych.systems.stable_diffusion.answer import to_record

        print(json.dumps({"request": to_record(request, loaded.name), "pictures": files}))
    return 0


def _save(
    item: "Drawing",
    index: int,
    number: int,
    parsed: Arguments,
    model: str,
    digests: dict[str, str],
) -> dict[str, Any]:
    """Write one picture, under a number, with the request that draws it alone, and the digests of
    the files that it was drawn from.
    """
    from triptych.systems.stable_diffusion.answer import to_parameters, to_record
    from triptych.vision.images import save_picture

    one = item.request_of(index)
    seed, variation = one.seed, one.variation_seed
    ending = {"png": "png", "jpeg": "jpg", "webp": "webp"}[parsed.format]
    name = f"{number:04d}-{seed}" + ("" if variation is None else f"-{variation}")
    path = parsed.out / f"{name}.{ending}"
    record = {"request": to_record(one, model)} | ({"pictures": digests} if digests else {})
    save_picture(path, item.pictures[index], record, to_parameters(one, model))
    saved = {"file": str(path), "seed": seed}
    return saved if variation is None else saved | {"variation_seed": variation}

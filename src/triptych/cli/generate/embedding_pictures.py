"""`triptych generate` with a DALL-E 2: pictures through CLIP embeddings, and one labelled strip."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import find_options, parse, split_words
from triptych.cli.output import UsageError, counted, finish, say
from triptych.cli.places import free_path, next_number, require_folder
from triptych.cli.threads import spare_threads
from triptych.fields import to_json
from triptych.given import require_values
from triptych.systems.unclip.request import INPUTS, UnclipPictures

if TYPE_CHECKING:
    from triptych.systems.unclip.pipeline import UnclipDrawing


@dataclass(frozen=True)
class Arguments:
    """Generate pictures through CLIP embeddings: of a prompt, or of other pictures (DALL-E 2)."""

    request: UnclipPictures
    out: Path = Path("pictures")
    """Folder for the pictures, 0000-SEED.png and so on, and for strip.png, which shows all with
    their labels. Pictures that are there are kept: the numbers go on.
    """
    json: bool = False
    """Print one JSON object on stdout: the request, the files and what each shows."""


USAGE = "triptych generate [PROMPT] --model MODEL [OPTIONS]"
BASIC = (
    "model", "what", "image", "n", "seed", "prior", "prior_steps", "steps", "upsampler_steps",
    "prior_guidance", "guidance", "out", "json",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    options = {option.flag: option for option in find_options(Arguments)}
    words, given = split_words(arguments, options)
    if len(words) > 1:
        raise UsageError(f"one prompt, in quotes, not {len(words)}: {' '.join(words)[:60]!r}")
    what = {flag: values[-1] for flag, values in given if values}.get("--what", "pictures")
    if what in INPUTS and "prompt" in INPUTS[what] and not words:
        raise UsageError('there is no prompt: triptych generate "a red cat" --model ...')
    parsed = parse(Arguments, arguments, usage=USAGE, basic=BASIC, positional=("prompt",))
    require_folder("--out", parsed.out)
    require_values(parsed.request)
    from triptych.loading import load
    from triptych.running import run
    from triptych.vision.pixels import name_files

    loaded = load(parsed.request.model)
    spare_threads(loaded.model, 1 if parsed.request.deterministic else parsed.request.n)
    result: UnclipDrawing = finish(
        run(parsed.request, loaded), lambda item: counted(len(item.pictures), "picture")
    )
    say(*(f"triptych: {note}" for note in result.notes))
    parsed.out.mkdir(parents=True, exist_ok=True)
    names = {"model": loaded.name, "image": Path(str(parsed.request.image)).name}
    digests = name_files(result.request, "image")
    files = _save(parsed.out, result, names, {"pictures": digests} if digests else {})
    strip = free_path(parsed.out / "strip.png")
    _save_strip(strip, result, names)
    say(f"{counted(len(files), 'picture')} in {parsed.out}, seed {result.request.seed}")
    if parsed.json:
        request = to_json(result.request) | names
        print(json.dumps({"request": request, "pictures": files, "strip": str(strip)}))
    return 0


def _save(
    folder: Path, result: "UnclipDrawing", names: dict[str, str], drawn_from: dict[str, Any]
) -> list[dict[str, Any]]:
    """Write each picture with the request that draws it."""
    from triptych.vision.images import save_picture

    first, seed, files = next_number(folder), result.request.seed, []
    assert seed is not None
    for i, (picture, label) in enumerate(zip(result.pictures, result.labels, strict=True)):
        one = replace(result.request, seed=seed + i, n=1)
        path = folder / f"{first + i:04d}-{one.seed}.png"
        record = {"request": to_json(one) | names, "shows": label, **drawn_from}
        save_picture(path, picture, record)
        files.append({"file": str(path), "seed": one.seed, "shows": label})
    return files


def _save_strip(path: Path, result: "UnclipDrawing", names: dict[str, str]) -> None:
    from triptych.vision.grids import labelled_grid
    from triptych.vision.images import save_picture

    shown = result.pictures[None]
    sheet = labelled_grid(shown, (), result.labels, result.title)
    save_picture(path, sheet, {"request": to_json(result.request) | names})

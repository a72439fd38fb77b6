"""`triptych generate` with a DALL-E 2: pictures through CLIP embeddings, and one labelled strip."""

import json
from dataclasses import dataclass
from pathlib import Path

from triptych.cli.arguments import HELP_FLAGS, find_options, parse, split_words
from triptych.cli.output import UsageError, counted, finish, say
from triptych.cli.places import free_path, next_number, require_folder
from triptych.cli.threads import spare_threads
from triptych.given import require_values
from triptych.systems.unclip.request import INPUTS, UnclipPictures


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
    "model", "what", "image", "second", "before", "shares", "n", "seed", "prior", "prior_steps",
    "steps", "upsampler_steps", "prior_guidance", "guidance", "precision", "out", "json",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    options = {option.flag: option for option in find_options(Arguments)}
    words, given = split_words(arguments, options)
    if len(words) > 1:
        raise UsageError(f"one prompt, in quotes, not {len(words)}: {' '.join(words)[:60]!r}")
    what = {flag: values[-1] for flag, values in given if values}.get("--what", "pictures")
    draws = what in INPUTS and "prompt" in INPUTS[what].fields
    if draws and not words and not HELP_FLAGS & set(arguments):
        raise UsageError('there is no prompt: triptych generate "a red cat" --model ...')
    parsed = parse(Arguments, arguments, usage=USAGE, basic=BASIC, positional=("prompt",))
    require_folder("--out", parsed.out)
    require_values(parsed.request)
    from triptych.loading import load
    from triptych.running import run
    from triptych.systems.unclip.answer import draw_strip, to_answer
    from triptych.vision.images import save_picture
    from triptych.vision.pixels import name_files

    loaded = load(parsed.request.model)
    spare_threads(loaded.model, 1 if parsed.request.deterministic else parsed.request.n)
    result = finish(
        run(parsed.request, loaded), lambda item: counted(len(item.pictures), "picture")
    )
    say(*(f"triptych: {note}" for note in result.notes))
    parsed.out.mkdir(parents=True, exist_ok=True)
    answer, first = to_answer(result, loaded.name), next_number(parsed.out)
    digests = name_files(result.request, "image", "second")
    drawn_from = {"pictures": digests} if digests else {}
    files = []
    for number, picture in enumerate(answer.pictures, first):
        path = parsed.out / f"{number:04d}-{picture.facts['seed']}.png"
        save_picture(path, picture.pixels, {**picture.record, **drawn_from})
        files.append({"file": str(path), **picture.facts})
    strip = free_path(parsed.out / "strip.png")
    save_picture(strip, draw_strip(result), {**answer.values, **drawn_from})
    say(f"{counted(len(files), 'picture')} in {parsed.out}, seed {result.request.seed}")
    if parsed.json:
        print(json.dumps({**answer.values, "pictures": files, "strip": str(strip)}))
    return 0

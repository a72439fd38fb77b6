"""`triptych segment PICTURE LABEL ...`: masks of what labels name."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.cli.arguments import parse
from triptych.cli.ask import check_transcript, finish, show
from triptych.cli.output import say
from triptych.cli.places import free_path, require_folder
from triptych.systems.paligemma.request import Ask

if TYPE_CHECKING:
    from triptych.systems.gemma.pipeline import Said

USAGE = "triptych segment PICTURE LABEL ... --model MODEL [OPTIONS]"
BASIC = ("model", "codes", "free", "out", "transcript", "max_tokens", "temperature", "json")


@dataclass(frozen=True)
class Arguments:
    """Draw masks of what labels name in a picture, by a PaliGemma that learned to."""

    request: Ask
    out: Path | None = None
    """Folder for NAME-masks.png, the picture with boxes and masks, and a black and white picture of
    each mask. Files that are there are kept: another result of NAME is NAME-2.
    """
    transcript: Path | None = None
    """A .jsonl file to which the answer is added: a line with picture, prefix and suffix, as
    `triptych train vlm` reads them.
    """
    json: bool = False
    """Print one JSON object on stdout: text, tokens, boxes, codes and pixels of masks."""


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parsed = parse(
        Arguments, arguments, usage=USAGE, basic=BASIC, positional=("picture", "labels"),
        fixed={"task": "segment", "question": ""},
    )  # fmt: skip
    check_transcript(parsed.transcript)
    if parsed.out is not None:
        require_folder("--out", parsed.out)
    from triptych.running import run

    request = parsed.request
    said = show(run(request), parsed.json)
    files = _save(request, said, parsed.out) if parsed.out is not None else []
    finish(request, said, parsed.transcript, parsed.json, {"files": [str(file) for file in files]})
    found = {each.label for each in said.objects.objects.located}
    if missing := [label for label in request.labels if label not in found]:
        say(f"not found: {', '.join(missing)}")
    return 0


def _save(request: Ask, said: "Said", out: Path) -> list[Path]:
    """The picture with its objects, and every mask; returns the paths."""
    import numpy as np

    from triptych.systems.paligemma.answer import draw_seen, to_record
    from triptych.vision.given_pictures import picture_name
    from triptych.vision.images import save_picture

    out.mkdir(parents=True, exist_ok=True)
    stem = Path(picture_name(request.picture)).stem
    record = {"request": to_record(request, Path(request.model).name)}
    files = [free_path(out / f"{stem}-masks.png")]
    save_picture(files[0], draw_seen(said.objects), record)
    for number, (each, mask) in enumerate(
        zip(said.objects.objects.located, said.objects.masks, strict=True)
    ):
        word = re.sub(r"[^\w]+", "-", each.label).strip("-")[:40]
        files.append(free_path(out / f"{stem}-mask-{number:02d}-{word}.png"))
        save_picture(files[-1], mask.numpy()[..., None].astype(np.uint8) * 255, record)
    say(f"{len(files)} files in {out}")
    return files

"""`triptych ask PICTURE QUESTION`, `caption` and `segment`: answers about pictures."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import parse
from triptych.cli.output import printable, say
from triptych.cli.places import require_file
from triptych.systems.paligemma.request import OBJECTS, Ask
from triptych.vision.given_pictures import picture_name

if TYPE_CHECKING:
    from triptych.systems.gemma.pipeline import Said

USAGE = "triptych ask PICTURE QUESTION --model MODEL [OPTIONS]"
BASIC = (
    "model", "task", "labels", "language", "codes", "transcript", "max_tokens", "temperature",
    "json",
)  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Ask a PaliGemma about a picture; `--task detect --labels cat dog` gives boxes."""

    request: Ask
    transcript: Path | None = None
    """A .jsonl file to which the answer is added: a line with picture, prefix and suffix, as
    `triptych train vlm` reads them.
    """
    json: bool = False
    """Print one JSON object on stdout: text, tokens, log-probabilities, boxes."""


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parsed = parse(
        Arguments, arguments, usage=USAGE, basic=BASIC, positional=("picture", "question")
    )
    check_transcript(parsed.transcript)
    from triptych.running import run

    said = show(run(parsed.request), parsed.json)
    finish(parsed.request, said, parsed.transcript, parsed.json)
    return 0


def check_transcript(path: Path | None) -> None:
    """Refuse a transcript that cannot be written, before the model is loaded."""
    if path is not None:
        require_file("--transcript", path, (".jsonl",))


def show(answer: "Iterator[Said]", as_json: bool) -> "Said":
    """Print an answer as it comes, unless it is printed as JSON when it is complete: words, or an
    object per line. Returns the complete one.
    """
    printed = 0
    for said in answer:
        if as_json:
            continue
        if said.request.task in OBJECTS:
            printed = _show_objects(said, printed)
        else:
            sys.stdout.write(printable(said.new))
            sys.stdout.flush()
    if not as_json and said.request.task not in OBJECTS:
        print()
    return said


def _show_objects(said: "Said", printed: int) -> int:
    """Print the objects that are complete and were not printed; returns how many were by now."""
    from triptych.text.locations import parse_objects

    found = parse_objects(said.text, said.request.location_steps).objects
    complete = len(found) if said.reason else len(found) - 1  # more of its label may follow
    if said.objects is not None:
        found = said.objects.objects.located
        complete = len(found)
    for each in found[printed:complete]:
        sides = " ".join(f"{side:.3f}" for side in each.box)
        print(printable(f"{sides}  {each.label}"), flush=True)
    return max(printed, complete)


def finish(
    request: Ask,
    said: "Said",
    transcript: Path | None,
    as_json: bool,
    more: dict[str, Any] | None = None,
) -> None:
    """What follows an answer: JSON, remarks, and a line of the transcript."""
    from triptych.systems.paligemma.answer import to_values

    values = to_values(said, Path(request.model).name)
    if as_json:
        print(json.dumps(values | (more or {})))
    for text in values.get("ignored", ()):
        say(f"ignored, since it is no object: {text}")
    if said.reason == "limit":
        say(f"(cut off after {len(said.tokens)} tokens: --max-tokens allows more)")
    if transcript is not None:
        name = picture_name(request.picture)
        row = {"picture": name, "prefix": request.prefix, "suffix": said.text}
        transcript.parent.mkdir(parents=True, exist_ok=True)
        with transcript.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

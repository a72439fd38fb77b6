"""`triptych ask PICTURE QUESTION` and `triptych caption PICTURE`: answers about pictures."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.cli.arguments import parse
from triptych.cli.output import printable, say
from triptych.systems.paligemma.request import Ask

if TYPE_CHECKING:
    from triptych.systems.gemma.pipeline import Said

USAGE = "triptych ask PICTURE QUESTION --model MODEL [OPTIONS]"
BASIC = ("model", "task", "labels", "language", "max_tokens", "temperature", "json")


@dataclass(frozen=True)
class Arguments:
    """Ask a PaliGemma about a picture; `--task detect --labels cat dog` gives boxes."""

    request: Ask
    json: bool = False
    """Print one JSON object on stdout: text, tokens, log-probabilities, boxes."""


def main(arguments: list[str]) -> int:
    """Returns the exit code."""
    parsed = parse(
        Arguments, arguments, usage=USAGE, basic=BASIC, positional=("picture", "question")
    )
    from triptych.running import run

    return show(parsed.request, run(parsed.request), parsed.json)


def show(request: Ask, answer: "Iterator[Said]", as_json: bool) -> int:
    """Print an answer as it comes, or when it is complete as JSON or boxes."""
    boxes = request.task == "detect"
    for said in answer:
        if not as_json and not boxes:
            sys.stdout.write(printable(said.new))
            sys.stdout.flush()
    from triptych.systems.paligemma.answer import to_answer

    values = to_answer(said, Path(request.model).name).values
    if as_json:
        print(json.dumps(values))
    elif boxes:
        for row in values["boxes"]:
            left, top, right, bottom = row["box"]
            print(printable(f"{left:.3f} {top:.3f} {right:.3f} {bottom:.3f}  {row['label']}"))
        for text in values["ignored"]:
            say(f"ignored, since it is no box: {text}")
    else:
        print()
    if said.reason == "limit":
        say(f"(cut off after {len(said.tokens)} tokens: --max-tokens allows more)")
    return 0

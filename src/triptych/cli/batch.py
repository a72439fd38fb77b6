"""`--batch INPUT --out DIR` of embed, classify, detect, caption and generate: one request over a
folder, tars, Parquet or JSONL, in parts that survive a kill.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from triptych.cli.arguments import TOPICS, parse
from triptych.cli.output import UsageError, counted, finish, say
from triptych.passes.settings import HERE, Pass
from triptych.systems.classification.request import Classify
from triptych.systems.detection.request import Detect
from triptych.systems.paligemma.request import Ask
from triptych.systems.stable_diffusion.request import TextToImage
from triptych.systems.two_towers.request import Embed

if TYPE_CHECKING:
    from triptych.passes.carry_out import Progress

LISTED = 5  # reasons that are printed
BASIC = ("batch", "out", "on", "workers", "part_size", "columns", "model", "labels", "json")
TOPIC = {**TOPICS, "input": ("batch", "columns", *TOPICS["input"])}


@dataclass(frozen=True)
class Output:
    """What is printed."""

    json: bool = False
    """Print one JSON object on stdout at the end: out, parts, rows, errors, failed."""


class Kind(NamedTuple):
    """What a command does with a row."""

    request: type
    fixed: Mapping[str, str]
    """Fields that come from the rows, or that make no sense here."""
    text: str


COMMANDS: dict[str, Kind] = {
    "embed": Kind(
        Embed,
        {"image": HERE},
        "Vectors of every picture, and of every text beside one, as Parquet: key, embedding, "
        "text_embedding, cut, error. `triptych search DIR` finds pictures in them.",
    ),
    "classify": Kind(
        Classify,
        {"pictures": HERE, "truth": "False", "split": "", "limit": "0"},
        "The label of every picture, and all labels with their probability, as Parquet.",
    ),
    "detect": Kind(Detect, {"picture": HERE}, "The boxes of every picture, as Parquet."),
    "caption": Kind(
        Ask,
        {"picture": HERE, "task": "caption", "question": ""},
        "Describe every picture in words, by a PaliGemma, as Parquet.",
    ),
    "generate": Kind(
        TextToImage,
        {"prompt": HERE},
        "Pictures of every prompt of a .txt, JSONL or Parquet, as tars of PNG and JSON; the seeds "
        "of row i follow those of row i - 1.",
    ),
}


def main(command: str, arguments: list[str]) -> int:
    """Returns the exit code: 0, or 3 where some rows or parts have no result."""
    kind = COMMANDS[command]
    parts = [("options", Pass), ("request", kind.request), ("output", Output)]
    parsed: Any = parse(
        make_dataclass("Arguments", parts, frozen=True),
        arguments,
        usage=f"triptych {command} --batch INPUT --out DIR [OPTIONS]",
        basic=BASIC,
        description=kind.text,
        topics=TOPIC,
        fixed=kind.fixed,
    )
    if isinstance(parsed.request, Embed) and parsed.request.text:
        raise UsageError("--text: in a pass the texts are those of the input")
    from triptych.passes.carry_out import carry_out

    work = carry_out(parsed.request, parsed.options)
    result: Progress = finish(
        work, lambda now: f"{now.rows:,} rows, part {now.parts} of {now.total}"
    )
    if result.found:
        say(f"{counted(result.found, 'part')} of {result.total:,} were there already")
    if result.lost:
        say(f"{counted(result.lost, 'part')} had lost the file and were computed again")
    say(f"{counted(result.rows, 'row')} in {counted(result.parts, 'part')}: {parsed.options.out}")
    if result.errors:
        say(f"{counted(result.errors, 'row')} without a result: the column `error` says why")
    if result.failed:
        say(f"triptych: {counted(len(result.failed), 'part')} could not be read:")
        say(*(f"  {why}" for why in result.failed[:LISTED]))
        say("the same command tries them again")
    if parsed.output.json:
        print(
            json.dumps(
                {
                    "out": parsed.options.out,
                    "parts": result.parts,
                    "rows": result.rows,
                    "errors": result.errors,
                    "failed": list(result.failed),
                }
            )
        )
    return 3 if result.failed or result.errors > result.rows / 10 else 0

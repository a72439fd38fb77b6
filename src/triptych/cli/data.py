"""`triptych data check SOURCE`: what a source of pictures holds, and what is wrong with it."""

import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import parse

if TYPE_CHECKING:
    from triptych.data.disk.check import Checked, Survey
    from triptych.data.disk.index import Index

HELP = """usage: triptych data check SOURCE [--json] [--report FILE]

Decodes every picture of a source and prints what it holds and what is wrong with it.

`triptych data check --help` lists the options."""
USAGE = "triptych data check SOURCE [OPTIONS]"
SHOWN = 12  # rows of a list that people see; the report has all of them


@dataclass(frozen=True)
class CheckData:
    """Decode every picture of a source; print what it holds and what is wrong with it."""

    source: str
    """`digits`, `scenes`, or a path: a folder, a .tar or a range of them, an .npz."""
    json: bool = False
    """One JSON object on stdout, and nothing else there."""
    report: Path | None = None
    """A file for every skipped picture and every duplicate, as JSON lines."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, or 3 where nothing can be trained on the source."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print(HELP)
        return 0 if arguments else 2
    if arguments[0] != "check":
        print(
            f"triptych: no command 'data {arguments[0]}'. Did you mean 'data check'?",
            file=sys.stderr,
        )
        return 2
    request = parse(
        CheckData, arguments[1:], usage=USAGE, basic=("report", "json"), positional=True
    )
    return check(request)


def check(request: CheckData) -> int:
    """Look at the source and say what was seen; returns the exit code."""
    from triptych.data.disk.check import survey, survey_endless
    from triptych.data.sources import SCENES, open_index, open_source

    if request.source in SCENES:
        seen = survey_endless(open_source(request.source))
    else:
        index = open_index(request.source)
        seen = survey(index, _look(index))
    if request.report is not None:
        _write_report(request.report, seen)
    if request.json:
        print(json.dumps(_as_json(seen)))
    else:
        _show(seen)
    if seen.problem:
        print(f"triptych: {_plain(seen.problem)}", file=sys.stderr)
        return 3
    return 0


def _look(index: "Index") -> "Mapping[int, Checked]":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from triptych.data.disk.check import check_pictures

    columns = ("looking", BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    looked = {}
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=len(index))
        for seen in check_pictures(index):
            looked[seen.row] = seen
            bar.advance(task)
    return looked


def _show(seen: "Survey") -> None:
    """For people, on stderr."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = _facts(seen)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, Text(_plain(text)))
    console = Console(stderr=True, highlight=False)
    console.print(table)
    if seen.skipped or seen.duplicates:
        console.print(Text("`--report FILE` lists all that is skipped and all duplicates"))


def _facts(seen: "Survey") -> list[tuple[str, str]]:
    rows = [("source", seen.source), ("form", seen.form)]
    if seen.pictures is None:
        named = (("classes", seen.classes), ("attributes", seen.attributes))
        rows += [(f"{len(words)} {what}", ", ".join(words)) for what, words in named if words]
        return [*rows, ("pictures", "without an end, each with captions")]
    rows += [("pictures", f"{seen.pictures:,}" + (f" ({seen.grey:,} grey)" if seen.grey else ""))]
    held_out = " (no test split here: a tenth is held out by a key of the name)"
    rows += [("splits", _counts(seen.splits) + (held_out if seen.held_out else ""))]
    rows += [("sizes", _counts(seen.sizes))]
    if seen.classes:
        rows.append((f"{len(seen.classes)} classes", _counts(seen.classes)))
    if seen.attributes:
        rows.append((f"{len(seen.attributes)} attributes", _counts(seen.attributes)))
    for name, (least, most) in seen.vector.items():
        rows.append(("number", f"{name}: {least:g} to {most:g}"))
    captions = f"{seen.captions:,} of {seen.captioned:,} pictures" if seen.captioned else "none"
    rows.append(("captions", captions))
    if seen.boxes:
        rows.append(("boxes", f"{seen.boxes:,}"))
    copies = sum(map(len, seen.duplicates)) - len(seen.duplicates)
    rows.append(
        ("duplicates", f"{copies:,} in {len(seen.duplicates):,} groups" if copies else "none")
    )
    rows += [("", " = ".join(group[:4])) for group in seen.duplicates[:3]]
    rows.append(("skipped", f"{len(seen.skipped):,}"))
    reasons = Counter(seen.skipped.values())
    for reason, count in reasons.most_common(SHOWN):
        names = [name for name, other in seen.skipped.items() if other == reason]
        rows.append(
            ("", f"{count:,}: {reason} ({', '.join(names[:3])}{', ...' if count > 3 else ''})")
        )
    rows += [("note", note) for note in seen.notes]
    return rows


def _counts(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name}: {count:,}" for name, count in list(counts.items())[:SHOWN])
    more = len(counts) - SHOWN
    return shown + (f" and {more:,} more" if more > 0 else "")


def _plain(text: str) -> str:
    """Without the control characters that a file name could send to a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def _as_json(seen: "Survey") -> dict[str, Any]:
    return {
        "source": seen.source,
        "form": seen.form,
        "pictures": seen.pictures,
        "grey": seen.grey,
        "splits": seen.splits,
        "held_out": seen.held_out,
        "sizes": seen.sizes,
        "classes": seen.classes,
        "attributes": seen.attributes,
        "vector": {name: list(limits) for name, limits in seen.vector.items()},
        "captioned": seen.captioned,
        "captions": seen.captions,
        "boxes": seen.boxes,
        "duplicates": [list(group) for group in seen.duplicates[:SHOWN]],
        "duplicate_groups": len(seen.duplicates),
        "skipped": len(seen.skipped),
        "reasons": dict(Counter(seen.skipped.values()).most_common(SHOWN)),
        "notes": list(seen.notes),
        "problem": seen.problem or None,
    }


def _write_report(path: Path, seen: "Survey") -> None:
    rows: list[dict[str, Any]] = [{"skipped": n, "reason": r} for n, r in seen.skipped.items()]
    rows += [{"duplicates": list(group)} for group in seen.duplicates]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

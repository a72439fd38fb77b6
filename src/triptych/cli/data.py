"""`triptych data check SOURCE`: what a source of pictures contains, and what is wrong with it."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import choose_command, parse
from triptych.cli.output import Lines, bar, printable, say
from triptych.cli.places import require_file

if TYPE_CHECKING:
    from triptych.data.disk.check import Checked, Survey
    from triptych.data.disk.index import Index

HELP = """usage: triptych data check SOURCE [--json] [--report FILE]

Decodes every picture of a source and prints what it contains and what is wrong with it.

`triptych data check --help` lists the options."""
USAGE = "triptych data check SOURCE [OPTIONS]"
LISTED = 12  # rows of a printed list; the report has all


@dataclass(frozen=True)
class CheckData:
    """Decode every picture of a source; print what it contains and what is wrong with it."""

    source: str
    """`digits`, `scenes`, or a path: a folder, a .tar or a range of them, an .npz."""
    json: bool = False
    """Print one JSON object on stdout."""
    report: Path | None = None
    """A file to write: every skipped picture and every duplicate, as JSON lines."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, or 3 where nothing can be trained on the source."""
    choose_command(arguments, "data", ("check",), HELP)
    request = parse(
        CheckData, arguments[1:], usage=USAGE, basic=("report", "json"), positional=("source",)
    )
    if request.report is not None:
        require_file("--report", request.report)
    from triptych.data.disk.check import describe_survey, survey, survey_endless
    from triptych.data.names import SCENES
    from triptych.data.sources import open_index, open_source

    if request.source in SCENES:
        seen = survey_endless(open_source(request.source))
    else:
        index = open_index(request.source)
        seen = survey(index, _decode(index))
    if request.report is not None:
        _write_report(request.report, seen)
    if request.json:
        print(json.dumps(describe_survey(seen)))
    else:
        _print(seen)
    if seen.problem:
        say(f"triptych: {seen.problem}")
        return 3
    return 0


def _decode(index: "Index") -> "Mapping[int, Checked]":
    """The result of decoding each picture, by its row; shows a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

    from triptych.data.disk.check import check_pictures

    found: dict[int, Checked] = {}
    lines, total = Lines(), len(index)
    with bar("decoding", BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        for seen in progress.track(check_pictures(index), total):
            found[seen.row] = seen
            if progress.disable:
                lines.show(len(found) / total, f"{len(found):,} of {total:,} pictures decoded")
    return found


def _print(seen: "Survey") -> None:
    """A table on stderr."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _facts(seen):
        table.add_row(name, Text(printable(text)))
    console = Console(stderr=True, highlight=False)
    console.print(table)
    if seen.skipped or seen.duplicates:
        console.print(Text("`--report FILE` lists all skipped pictures and all duplicates"))


def _facts(seen: "Survey") -> list[tuple[str, str]]:
    rows = [("source", seen.source), ("form", seen.form)]
    if seen.pictures is None:
        named = (("classes", seen.classes), ("attributes", seen.attributes))
        rows += [(f"{len(words)} {what}", ", ".join(words)) for what, words in named if words]
        return [*rows, ("pictures", "endless, each with captions")]
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
    for reason, count in reasons.most_common(LISTED):
        names = [name for name, other in seen.skipped.items() if other == reason]
        rows.append(
            ("", f"{count:,}: {reason} ({', '.join(names[:3])}{', ...' if count > 3 else ''})")
        )
    rows += [("note", note) for note in seen.notes]
    return rows


def _counts(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name}: {count:,}" for name, count in list(counts.items())[:LISTED])
    more = len(counts) - LISTED
    return shown + (f" and {more:,} more" if more > 0 else "")


def _write_report(path: Path, seen: "Survey") -> None:
    rows: list[dict[str, Any]] = [{"skipped": n, "reason": r} for n, r in seen.skipped.items()]
    rows += [{"duplicates": list(group)} for group in seen.duplicates]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

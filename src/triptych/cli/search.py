"""`triptych search`: pictures of a folder by texts, by pictures, and by sums of both."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import parse
from triptych.cli.main import say
from triptych.cli.words import parted, plain
from triptych.systems.search.request import Search

if TYPE_CHECKING:
    from triptych.systems.search.pipeline import SearchResults

SHOWN = 12  # skipped pictures that people see; JSON has all
CELLS = 100  # pictures of a contact sheet
ALIKE_SHOWN = 5  # of one group
ALIKE = "0.95"  # cosine of near duplicates where no other is given
SWITCHES = ("--json", "--no-json", "--help", "--help-all")
USAGE = "triptych search FOLDER [QUERY ...] [OPTIONS]"
BASIC = (
    "text", "image", "minus", "minus_image", "model", "k", "duplicates", "index", "sheet", "json",
)  # fmt: skip


@dataclass(frozen=True)
class Output:
    """What is printed and written."""

    json: bool = False
    """One JSON object on stdout: the pictures, or groups of them, with their cosines."""
    sheet: Path | None = None
    """A picture file with what was found, labelled."""


@dataclass(frozen=True)
class Arguments:
    """Find pictures of a folder by what they show, by what they are like, or by both.

    `--image a.jpg --text "at night" --minus "by day"` is a.jpg at night; all but the folder may be
    given again. A part written as "(at night:0.5)" counts half. `--duplicates` alone is
    `--duplicates 0.95`.
    """

    request: Search
    output: Output = field(default_factory=Output)


def main(arguments: list[str]) -> int:
    words, flags = parted(_with_threshold(arguments), SWITCHES)
    texts = [f"--text={word}" for word in words[1:]]  # so that the request checks all of itself
    parsed = parse(
        Arguments,
        [*words[:1], *texts, *flags],
        usage=USAGE,
        basic=BASIC,
        positional=True,
        append=True,
    )
    request, output = parsed.request, parsed.output
    sheet = output.sheet
    if sheet is not None and not sheet.parent.is_dir():
        raise ValueError(f"--sheet {sheet}: there is no such folder")
    from triptych.running import run

    found = _shown(run(request))
    _tell(found)
    if sheet is not None:
        _write_sheet(sheet, found)
    if output.json:
        print(json.dumps(_as_json(found)))
    elif request.duplicates is not None:
        for group in found.groups:
            print(*(plain(f"{match.score:.4f}  {match.name}") for match in group), "", sep="\n")
    else:
        for match in found.matches:
            print(plain(f"{match.score:.4f}  {match.name}"))
    return 0


def _with_threshold(arguments: list[str]) -> list[str]:
    """`--duplicates` without a number gets one."""
    words: list[str] = []
    for number, word in enumerate(arguments):
        words.append(word)
        following = arguments[number + 1] if number + 1 < len(arguments) else ""
        if word == "--duplicates" and not re.fullmatch(r"[-+.\d][-+.\deE]*", following):
            words.append(ALIKE)
    return words


def _shown(work: "Iterator[SearchResults]") -> "SearchResults":
    """Runs to the result, under a live bar on a terminal."""
    if not sys.stderr.isatty():
        *_, found = work
        return found
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.fields[what]} {task.percentage:3.0f} %"),
        BarColumn(24),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, what="looking")
        for found in work:
            what = f"indexing {found.new:,} pictures" if found.index is None else "comparing"
            bar.update(task, completed=found.done, what=what)
    return found


def _tell(found: "SearchResults") -> None:
    """What happened, to people."""
    from triptych.systems.search.pipeline import format_query

    index = found.index
    assert index is not None
    new = f", {found.new:,} of them looked at now" if found.new else ""
    say(plain(f"{len(index.names):,} pictures in the index{new}: {found.place}"))
    for name, reason in list(index.skipped.items())[:SHOWN]:
        say(plain(f"skipped {name}: {reason}"))
    if len(index.skipped) > SHOWN:
        say(f"and {len(index.skipped) - SHOWN:,} more (`--json` names all)")
    for note in found.notes:
        say(plain(note))
    if found.request.duplicates is not None:
        pictures = sum(map(len, found.groups))
        say(f"near duplicates: {pictures:,} pictures, groups of them: {len(found.groups):,}")
    elif query := format_query(found.request):
        say(plain(f"nearest to: {query}"))


def _as_json(found: "SearchResults") -> dict[str, Any]:
    from triptych.systems.search.pipeline import format_query

    index = found.index
    assert index is not None
    notes: dict[str, Any] = {
        "folder": found.request.folder,
        "query": format_query(found.request),
        "pictures": len(index.names),
        "new": found.new,
        "index": str(found.place),
        "skipped": index.skipped,
        "notes": list(found.notes),
    }
    if found.request.duplicates is None:
        return notes | {"matches": [match._asdict() for match in found.matches]}
    groups = [[match._asdict() for match in group] for group in found.groups]
    return notes | {"threshold": found.request.duplicates, "groups": groups}


def _write_sheet(path: Path, found: "SearchResults") -> None:
    """The pictures that were found, in reading order; near duplicates by the number of their
    group.
    """
    from triptych.systems.search.pipeline import format_query
    from triptych.vision.grids import contact_sheet
    from triptych.vision.images import open_picture, save_picture

    cells: list[tuple[str, str]] = [(m.name, f"{m.score:.3f} {m.name}") for m in found.matches]
    for number, group in enumerate(found.groups, 1):
        cells += [(m.name, f"{number}: {m.score:.3f} {m.name}") for m in group[:ALIKE_SHOWN]]
    if not cells:
        say(f"{path} was not written: nothing was found")
        return
    shown: Sequence[tuple[str, str]] = cells[:CELLS]
    assert found.index is not None
    folder = found.index.folder
    pictures, labels = [], []
    for name, label in shown:
        try:
            pictures.append(open_picture(folder / name, channels=3, near=160))
        except (ValueError, OSError):  # it was there a moment ago
            continue
        labels.append(label)
    title = format_query(found.request) or f"near duplicates in {folder.resolve().name}"
    save_picture(path, contact_sheet(pictures, labels, title))
    more = f", the first {len(shown)} of {len(cells)}" if len(shown) < len(cells) else ""
    say(f"{path}: {len(labels)} pictures{more}")

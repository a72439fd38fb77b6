"""`triptych search`: pictures of a folder by texts, by pictures, and by sums of both."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.cli.arguments import parse
from triptych.cli.output import UsageError, counted, finish, printable, say, say_skipped
from triptych.cli.places import PICTURE_ENDINGS, require_file
from triptych.systems.search.request import Search

if TYPE_CHECKING:
    from triptych.systems.search.nearest import Match
    from triptych.systems.search.pipeline import SearchResults

MAX_CELLS = 100  # pictures of a contact sheet
MAX_DUPLICATES = 5  # of one group, on the sheet
THRESHOLD = "0.95"  # default cosine of near duplicates
USAGE = "triptych search FOLDER [QUERY ...] [OPTIONS]"
BASIC = (
    "text", "image", "minus", "minus_image", "model", "k", "duplicates", "index", "sheet", "json",
)  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Find pictures of a folder by what they show, by similar pictures, or by both.

    `--image a.jpg --text "at night" --minus "by day"` finds pictures like a.jpg, but at night. Each
    of these options may be given several times. "(at night:0.5)" has half the weight.
    `--duplicates` alone is `--duplicates 0.95`.
    """

    request: Search
    sheet: Path | None = None
    """A picture file to write: a contact sheet of the results, labelled."""
    json: bool = False
    """Print one JSON object on stdout: the pictures, or groups of them, with their cosines."""


def main(arguments: list[str]) -> int:
    parsed = parse(
        Arguments,
        _with_threshold(arguments),
        usage=USAGE,
        basic=BASIC,
        positional=("folder", "text"),
        append=True,
    )
    request, sheet = parsed.request, parsed.sheet
    if request.duplicates is None and not (request.text or request.image):
        raise UsageError(
            "nothing to search for: give a text, as in `triptych search FOLDER 'a red car'`, "
            "--image FILE, or --duplicates"
        )
    if sheet is not None:
        require_file("--sheet", sheet, PICTURE_ENDINGS)
    from triptych.running import run

    found: SearchResults = finish(run(request), _progress)
    _say_summary(found)
    if sheet is not None:
        _write_sheet(sheet, found)
    if parsed.json:
        from triptych.systems.search.answer import describe

        print(json.dumps(describe(found) | {"index": str(found.place)}))
    elif request.duplicates is not None:
        for group in found.groups:
            print(*map(_line, group), "", sep="\n")
    else:
        for match in found.matches:
            print(_line(match))
    return 0


def _line(match: "Match") -> str:
    return printable(f"{match.score:.4f}  {match.name}")


def _progress(found: "SearchResults") -> str:
    return f"indexing {found.new:,} pictures" if found.index is None else "comparing"


def _with_threshold(arguments: list[str]) -> list[str]:
    """`--duplicates` without a number gets the default."""
    words: list[str] = []
    for number, word in enumerate(arguments):
        words.append(word)
        following = arguments[number + 1] if number + 1 < len(arguments) else ""
        if word == "--duplicates" and not re.fullmatch(r"[-+.\d][-+.\deE]*", following):
            words.append(THRESHOLD)
    return words


def _say_summary(found: "SearchResults") -> None:
    from triptych.systems.search.pipeline import format_query

    index = found.index
    assert index is not None
    new = f", {found.new:,} of them new" if found.new else ""
    say(f"{counted(len(index.names), 'picture')} in the index{new}: {found.place}")
    say_skipped(index.skipped)
    say(*found.notes)
    if found.request.duplicates is not None:
        pictures = sum(map(len, found.groups))
        say(f"near duplicates: {pictures:,} pictures in {len(found.groups):,} groups")
    elif query := format_query(found.request):
        say(f"nearest to: {query}")


def _write_sheet(path: Path, found: "SearchResults") -> None:
    """Write a contact sheet of the results; near duplicates have the number of their group."""
    from triptych.systems.search.pipeline import format_query
    from triptych.vision.grids import contact_sheet
    from triptych.vision.images import open_picture, save_picture

    cells = [(m.name, f"{m.score:.3f} {m.name}") for m in found.matches]
    for number, group in enumerate(found.groups, 1):
        cells += [(m.name, f"{number}: {m.score:.3f} {m.name}") for m in group[:MAX_DUPLICATES]]
    if not cells:
        say(f"{path} was not written: nothing was found")
        return
    shown = cells[:MAX_CELLS]
    assert found.index is not None
    pictures, labels = [], []
    for name, label in shown:
        try:
            file = Path(found.index.paths[name])
            pictures.append(open_picture(file, channels=3, near=160))
        except (ValueError, OSError):  # removed or changed since it was indexed
            continue
        labels.append(label)
    title = format_query(found.request) or f"near duplicates in {found.index.folder.resolve().name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(path, contact_sheet(pictures, labels, title))
    more = f", the first {len(shown)} of {len(cells)}" if len(shown) < len(cells) else ""
    say(f"{path}: {len(labels)} pictures{more}")

"""`triptych grid PROMPT`: one labelled picture of what one, two or three settings do.

Dimensions: R rows, K columns, H height, W width, C channels.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from triptych.cli.arguments import parse
from triptych.cli.generate.text_pictures import recorded
from triptych.cli.main import say
from triptych.cli.output import watched
from triptych.cli.words import gathered, parted
from triptych.config import from_json, nearest, to_json
from triptych.systems.stable_diffusion.request import TextToImage

if TYPE_CHECKING:
    import numpy as np

    from triptych.systems.stable_diffusion.pipeline import Drawing

MOST = 400  # pictures of a grid
LISTS = ("--loras",)
SWITCHES = (
    "--json", "--no-json", "--deterministic", "--no-deterministic", "--tiling", "--no-tiling",
    "--help", "--help-all",
)  # fmt: skip
NOT_SWEPT = ("n",)
USAGE = "triptych grid PROMPT --x FIELD=VALUE,VALUE [--y ...] [--z ...] [OPTIONS]"
BASIC = (
    "x", "y", "z", "negative", "model", "size", "seed", "steps", "sampler", "guidance", "loras",
    "out", "json",
)  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Sweep one, two or three settings of a prompt into one labelled picture.

    A sweep is FIELD=VALUE,VALUE,... of any setting below, such as `--x steps=10,20,40`,
    `--y sampler=euler,dpmpp_2m` or `--z "prompt=a fox,a cat"`; values with commas in them stand in
    double quotes. All pictures have the same seed unless it is what is swept.
    """

    request: TextToImage
    x: str = ""
    """What changes from column to column."""
    y: str = ""
    """What changes from row to row."""
    z: str = ""
    """What changes from table to table, one below the other."""
    out: Path = Path("grid.png")
    """The .png, .jpg or .webp file of the grid."""
    json: bool = False
    """One JSON object on stdout: the request, the sweeps and the file."""


class Sweep(NamedTuple):
    """The values of one field."""

    field: str
    values: tuple[Any, ...]

    def labels(self) -> list[str]:
        """What rows or columns are called."""
        shown = [
            ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            for value in self.values
        ]
        return [f"{self.field} {text}" for text in shown]


ONE = Sweep("", (None,))


def main(arguments: list[str]) -> int:
    rest, taken = gathered(arguments, LISTS)
    words, flags = parted(rest, SWITCHES)
    if asks := {"-h", "--help", "--help-all"} & set(flags):
        parse(Arguments, list(asks), usage=USAGE, basic=BASIC)
    if len(words) != 1:
        raise ValueError('one prompt, in quotes: triptych grid "a red cat" --x steps=10,20,40')
    if taken:
        flags += ["--loras", *[value for _, value in taken]]
    parsed = parse(Arguments, [f"--prompt={words[0]}", *flags], usage=USAGE, basic=BASIC)
    x, y, z = (sweep_of(getattr(parsed, axis), axis) for axis in "xyz")
    if x is y is ONE and z is ONE:
        raise ValueError("nothing is swept: give --x FIELD=VALUE,VALUE, such as --x steps=10,20,40")
    swept = [sweep.field for sweep in (x, y, z) if sweep.field]
    if len(set(swept)) < len(swept):
        raise ValueError(f"each axis sweeps a field of its own, not {', '.join(swept)}")
    return _drawn(parsed, x, y, z)


def sweep_of(text: str, axis: str) -> Sweep:
    """The field and the values of FIELD=VALUE,VALUE.

    Raises:
        ValueError: another form, no such field (offers the nearest), or a value of another kind.
    """
    if not text:
        return ONE
    field, equals, values = text.partition("=")
    field = field.strip().removeprefix("--").replace("-", "_")
    names = [f.name for f in fields(TextToImage) if f.name not in NOT_SWEPT]
    if not equals or field not in names:
        raise ValueError(
            f"--{axis} is FIELD=VALUE,VALUE, such as steps=10,20, not {text[:60]!r}."
            f"{nearest(field, names)} Fields: {', '.join(names)}"
        )
    found = next(csv.reader([values], skipinitialspace=True), [])
    if not found or (len(found) == 1 and not found[0]):
        raise ValueError(f"--{axis} {field} has no values: {field}=VALUE,VALUE")
    hint = get_type_hints(TextToImage)[field]
    return Sweep(field, tuple(_value(hint, value.strip(), field) for value in found))


def _value(hint: Any, text: str, field: str) -> Any:
    """A text as the kind of value that a field has."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) is tuple:
        return (text,) if text else ()
    if get_origin(hint) is Literal:
        return text
    kind = kinds[0] if kinds else hint
    if kind is bool:
        known = {"true": True, "false": False}
        if text.lower() not in known:
            raise ValueError(f"{field} is true or false, not {text!r}")
        return known[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{field} is a number, not {text[:60]!r}") from None


def requests_of(start: TextToImage, x: Sweep, y: Sweep, z: Sweep) -> list[TextToImage]:
    """A request for each cell, tables before rows before columns; all checked before any is drawn.

    Raises:
        ValueError: too many, or a value that the field does not take.
    """
    count = len(x.values) * len(y.values) * len(z.values)
    if count > MOST:
        raise ValueError(f"{count} pictures in one grid; at most {MOST}: sweep fewer values")
    cells = []
    for depth in z.values:
        for row in y.values:
            for column in x.values:
                changes = {z.field: depth, y.field: row, x.field: column}
                changes.pop("", None)
                cell = replace(start, n=1, **changes)
                cells.append(from_json(TextToImage, to_json(cell)))  # checks literals too
    return cells


def _drawn(parsed: Arguments, x: Sweep, y: Sweep, z: Sweep) -> int:
    from triptych import runtime
    from triptych.vision.images import save_picture

    start = parsed.request
    if start.seed is None:
        start = replace(start, seed=runtime.drawn_seed())
    if parsed.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"the grid is a .png, .jpg or .webp file, not {parsed.out.name!r}")
    pictures: list[np.ndarray] = []
    work = _work(requests_of(start, x, y, z), pictures)
    for _ in watched(work, lambda _: None, None):
        pass  # `_work` keeps the pictures
    sheet = tables(pictures, x, y, z, start.prompt)
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    sweeps = {s.field: list(s.values) for s in (x, y, z) if s.field}
    record = {"request": recorded(start, Path(start.model).name), "sweep": sweeps}
    save_picture(parsed.out, sheet, {"grid": record})
    say(f"{len(pictures)} pictures in {parsed.out}, seed {start.seed}")
    if parsed.json:
        print(json.dumps(record | {"file": str(parsed.out)}))
    return 0


def _work(cells: Sequence[TextToImage], pictures: "list[np.ndarray]") -> "Iterator[Drawing]":
    """Draws cell by cell; a model stays loaded while the next cell has the same."""
    from triptych.loading import load
    from triptych.running import run
    from triptych.systems.stable_diffusion.pipeline import load_model

    there, loaded = ("", "", ""), None
    for number, cell in enumerate(cells):
        if loaded is None or (cell.model, cell.precision, cell.backend) != there:
            there, loaded = (cell.model, cell.precision, cell.backend), load_model(cell, load)
        for item in run(cell, loaded):
            yield replace(item, done=(number + item.done) / len(cells))
        pictures.append(item.pictures[0])


def tables(
    pictures: "Sequence[np.ndarray]", x: Sweep, y: Sweep, z: Sweep, title: str
) -> "np.ndarray":
    """The cells as tables of rows and columns, one below the other; smaller pictures lie in the
    middle of the space that the largest takes.
    """
    import numpy as np

    from triptych.vision.grids import PAPER, labelled_grid

    height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    whole = np.full((len(pictures), height, width, 3), PAPER, np.uint8)
    for cell, picture in zip(whole, pictures, strict=True):
        top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
        cell[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    shape = len(z.values), len(y.values), len(x.values), height, width, 3
    rows = y.labels() if y.field else []
    columns = x.labels() if x.field else []
    heads = [title if not z.field else f"{title}: {label}" for label in z.labels()]
    sheets = [
        labelled_grid(table, rows, columns, head)
        for table, head in zip(whole.reshape(shape), heads, strict=True)
    ]
    across = max(sheet.shape[1] for sheet in sheets)
    padded = []
    for sheet in sheets:
        wide = np.full((sheet.shape[0], across, 3), PAPER, np.uint8)
        wide[:, : sheet.shape[1]] = sheet
        padded.append(wide)
    return np.concatenate(padded)

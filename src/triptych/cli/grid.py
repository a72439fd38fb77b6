"""`triptych grid PROMPT`: one labelled picture of the effect of one, two or three settings.

Dimensions: R rows, K columns, H height, W width, C channels.
"""

import csv
import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from triptych.cli.arguments import parse
from triptych.cli.generate.default_model import say_default_model
from triptych.cli.output import UsageError, counted, say, watch
from triptych.cli.places import PICTURE_ENDINGS, free_path, require_file
from triptych.cli.threads import spare_threads
from triptych.fields import from_json, nearest, to_json
from triptych.systems.stable_diffusion.request import TextToImage

if TYPE_CHECKING:
    import numpy as np

    from triptych.systems.stable_diffusion.pipeline import Drawing

MAX_CELLS = 400
NOT_SWEPT = ("n",)
USAGE = "triptych grid PROMPT --x OPTION=VALUE,VALUE [--y ...] [--z ...] [OPTIONS]"
BASIC = (
    "x", "y", "z", "negative", "model", "size", "seed", "steps", "sampler", "guidance", "loras",
    "out", "json",
)  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Vary one, two or three settings of a prompt, in one labelled picture.

    A sweep is OPTION=VALUE,VALUE,... with any option of --help-all, such as `--x steps=10,20,40`,
    `--y sampler=euler,dpmpp_2m` or `--z "prompt=a fox,a cat"`; put values with commas in double
    quotes. All pictures have the same seed, unless the sweep is over seeds.
    """

    request: TextToImage
    x: str = ""
    """Sweep over the columns: OPTION=VALUE,VALUE."""
    y: str = ""
    """Sweep over the rows."""
    z: str = ""
    """Sweep over tables, one below the other."""
    out: Path = Path("grid.png")
    """The picture file to write: .png, .jpg or .webp. A file that is there is kept: the next is
    grid-2.png.
    """
    json: bool = False
    """Print one JSON object on stdout: the request, the sweeps and the file."""


class Sweep(NamedTuple):
    """The values of one field."""

    field: str
    values: tuple[Any, ...]

    def labels(self) -> list[str]:
        """Headings of the rows or columns."""
        shown = [
            ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            for value in self.values
        ]
        return [f"{self.field} {text}" for text in shown]


ONE = Sweep("", (None,))


def main(arguments: list[str]) -> int:
    parsed = parse(Arguments, arguments, usage=USAGE, basic=BASIC, positional=("prompt",))
    x, y, z = (parse_sweep(getattr(parsed, axis), axis) for axis in "xyz")
    if x is y is ONE and z is ONE:
        raise UsageError("there is no sweep: give one, such as --x steps=10,20,40")
    swept = [sweep.field for sweep in (x, y, z) if sweep.field]
    if len(set(swept)) < len(swept):
        raise UsageError(f"each sweep must be of another option, not {', '.join(swept)}")
    if "model" not in swept:
        say_default_model(arguments, parsed.request.model)
    return _draw(parsed, x, y, z)


def parse_sweep(text: str, axis: str) -> Sweep:
    """The sweep that OPTION=VALUE,VALUE describes.

    Raises:
        UsageError: another form, an unknown option, or a value of the wrong type.
    """
    if not text:
        return ONE
    field, equals, values = text.partition("=")
    field = field.strip().removeprefix("--").replace("-", "_")
    names = [f.name for f in fields(TextToImage) if f.name not in NOT_SWEPT]
    if not equals or field not in names:
        raise UsageError(
            f"--{axis} is OPTION=VALUE,VALUE, such as steps=10,20, not {text[:60]!r}."
            f"{nearest(field, names)} Options: {', '.join(names)}"
        )
    texts = next(csv.reader([values], skipinitialspace=True), [])
    if not any(texts[:1]) and len(texts) < 2:
        raise UsageError(f"--{axis} {field} has no values: {field}=VALUE,VALUE")
    hint = get_type_hints(TextToImage)[field]
    return Sweep(field, tuple(_convert(hint, value.strip(), field) for value in texts))


def _convert(hint: Any, text: str, field: str) -> Any:
    """A text as a value of the type of a field."""
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) is tuple:
        return (text,) if text else ()
    if get_origin(hint) is Literal:
        return text
    kind = kinds[0] if kinds else hint
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{field} is true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{field} is a number, not {text[:60]!r}") from None


def list_requests(start: TextToImage, x: Sweep, y: Sweep, z: Sweep) -> list[TextToImage]:
    """A request for each cell, by table, row and column; all are checked before any is drawn.

    Raises:
        UsageError: too many, or a value out of range.
    """
    count = len(x.values) * len(y.values) * len(z.values)
    if count > MAX_CELLS:
        raise UsageError(f"{count} pictures in one grid; at most {MAX_CELLS}: sweep fewer values")
    cells = []
    for depth in z.values:
        for row in y.values:
            for column in x.values:
                changes = {z.field: depth, y.field: row, x.field: column}
                changes.pop("", None)
                try:
                    cell = replace(start, n=1, **changes)
                    cells.append(from_json(TextToImage, to_json(cell)))  # checks literals too
                except ValueError as error:
                    raise UsageError(str(error)) from error
    return cells


def _draw(parsed: Arguments, x: Sweep, y: Sweep, z: Sweep) -> int:
    from triptych import runtime
    from triptych.systems.stable_diffusion.answer import to_record
    from triptych.vision.images import save_picture

    start = parsed.request
    if start.seed is None:
        start = replace(start, seed=runtime.drawn_seed())
    require_file("--out", parsed.out, PICTURE_ENDINGS)
    pictures: list[np.ndarray] = []
    work = _draw_cells(list_requests(start, x, y, z), pictures)
    deque(watch(work, lambda _: None, None), maxlen=0)
    sheet = draw_tables(pictures, x, y, z, str(start.prompt))
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    sweeps = {s.field: list(s.values) for s in (x, y, z) if s.field}
    record = {"request": to_record(start, Path(start.model).name), "sweep": sweeps}
    out = free_path(parsed.out)
    save_picture(out, sheet, {"grid": record})
    say(f"{counted(len(pictures), 'picture')} in {out}, seed {start.seed}")
    if parsed.json:
        print(json.dumps(record | {"file": str(out)}))
    return 0


def _draw_cells(cells: Sequence[TextToImage], pictures: "list[np.ndarray]") -> "Iterator[Drawing]":
    """Draw cell by cell and append to `pictures`; reload only if the model changes."""
    from triptych.loading import load
    from triptych.running import run
    from triptych.systems.stable_diffusion.pipeline import load_model

    before, loaded = ("", "", ""), None
    for number, cell in enumerate(cells):
        wanted = cell.model, cell.precision, cell.backend
        if loaded is None or wanted != before:
            before, loaded = wanted, load_model(cell, load)
            spare_threads(loaded.model, 1)
        for item in run(cell, loaded):
            yield replace(item, done=(number + item.done) / len(cells))
        pictures.append(item.pictures[0])


def draw_tables(
    pictures: "Sequence[np.ndarray]", x: Sweep, y: Sweep, z: Sweep, title: str
) -> "np.ndarray":
    """The cells as tables, one below the other; all cells have the size of the largest picture."""
    import numpy as np

    from triptych.vision.grids import PAPER, labelled_grid

    height, width = (max(p.shape[axis] for p in pictures) for axis in (0, 1))
    cells = np.full((len(pictures), height, width, 3), PAPER, np.uint8)
    for cell, picture in zip(cells, pictures, strict=True):
        top, left = (height - picture.shape[0]) // 2, (width - picture.shape[1]) // 2
        cell[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    shape = len(z.values), len(y.values), len(x.values), height, width, 3
    rows = y.labels() if y.field else []
    columns = x.labels() if x.field else []
    heads = [title if not z.field else f"{title}: {label}" for label in z.labels()]
    sheets = [
        labelled_grid(table, rows, columns, head)
        for table, head in zip(cells.reshape(shape), heads, strict=True)
    ]
    widest = max(sheet.shape[1] for sheet in sheets)
    padded = []
    for sheet in sheets:
        canvas = np.full((sheet.shape[0], widest, 3), PAPER, np.uint8)
        canvas[:, : sheet.shape[1]] = sheet
        padded.append(canvas)
    return np.concatenate(padded)

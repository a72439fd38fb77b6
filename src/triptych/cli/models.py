"""`triptych models`: the models that are on this computer, and the cards of bundled ones."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from triptych.cli.arguments import WIDTH, parse
from triptych.cli.output import printable
from triptych.config import BadFile
from triptych.fields import nearest, to_json
from triptych.weights.bundled_models import (
    ModelCard,
    bundled_folder,
    bundled_names,
    find_bundled,
    has_card,
    read_card,
)
from triptych.weights.describe_model import find_kind
from triptych.weights.hub import cached_repositories

USAGE = "triptych models [NAME] [OPTIONS]"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Arguments:
    """The models on this computer: those that come with Triptych, run folders, and those in the
    cache of the Hugging Face hub. With a name, the card of a bundled model: what it was trained on,
    how, and how good it is.
    """

    name: str = ""
    """A bundled model, or the folder of one."""
    runs: Path = Path("runs")
    """The folder with the run folders."""
    json: bool = False
    """Print one JSON object on stdout, or one per line."""


@dataclass(frozen=True)
class Model:
    """A model on this computer."""

    name: str
    """What `--model` takes."""
    place: str
    """bundled, run or hub."""
    kind: str
    """As in its config.json; empty where that is another program's."""
    megabytes: float
    about: str


def main(arguments: list[str]) -> int:
    options = parse(
        Arguments, arguments, usage=USAGE, basic=("name", "runs", "json"), positional=("name",)
    )
    if options.name:
        card = find_card(options.name)
        if options.json:
            print(json.dumps({"name": options.name} | to_json(card)))
        else:
            print(printable(describe_card(options.name, card)))
        return 0
    found = [*list_bundled(), *list_runs(options.runs), *list_hub()]
    if options.json:
        for model in found:
            print(json.dumps(asdict(model)))
        return 0
    rows = [(m.name, m.place, m.kind, f"{m.megabytes:,.1f}", m.about) for m in found]
    rows = [("name", "from", "kind", "MB", ""), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        print(printable("  ".join([*cells, row[4]]).rstrip()))
    return 0


def find_card(name: str) -> ModelCard:
    """The card of a bundled model, or of a folder that has one.

    Raises:
        ValueError: there is none; suggests the nearest name.
    """
    folder = find_bundled(name) or Path(name)
    if has_card(folder):
        return read_card(folder)
    if folder.is_dir():
        raise ValueError(
            f"{name} has no card: those that `triptych weights bundle` writes have one"
        )
    names = bundled_names()
    there = f"there are {', '.join(names)}" if names else "this installation has none"
    raise ValueError(f"no bundled model {name[:200]!r}: {there}.{nearest(name, names)}")


def describe_card(name: str, card: ModelCard) -> str:
    """A card as text, a line per figure and command."""
    facts = {
        "trained on": card.data,
        "licence": card.licence,
        "attribution": card.attribution,
        "hardware": card.hardware,
        "seed": str(card.seed),
        "limits": card.limits,
    }
    lines = [f"{name}: {card.title}", ""]
    for fact, text in facts.items():
        head = f"{fact:<13}"
        lines += textwrap.wrap(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head))
    lines += ["", "commands:", *(f"  {command}" for command in card.commands)]
    if card.figures:
        lines += ["", "figures:"]
    for figure in card.figures:
        lines += [f"  {figure}", f"    {figure.command}"]
    return "\n".join(lines)


def list_bundled() -> Iterator[Model]:
    """The models that come with the package. What is wrong with one stands beside it."""
    for name in bundled_names():
        folder = bundled_folder(name)
        try:
            about = read_card(folder).title
        except BadFile as error:
            about = str(error)
        if find_bundled(name) is None:
            about = f"not by this name here, which is that of ./{name}"
        yield Model(name, "bundled", find_kind(folder), _megabytes(folder), about)


def list_runs(folder: Path) -> Iterator[Model]:
    """The run folders in a folder that have saved a model."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if (path / WEIGHTS).is_file():
            yield Model(str(path), "run", find_kind(path), _megabytes(path), _last_step(path))


def list_hub() -> Iterator[Model]:
    """What is in the cache of the Hugging Face hub, whichever program downloaded it."""
    for repo, size in cached_repositories().items():
        yield Model(repo, "hub", "", size / 1e6, "")


def _last_step(run: Path) -> str:
    steps = [int(path.name[5:]) for path in run.glob("step-*") if path.name[5:].isdecimal()]
    return f"step {max(steps):,}" if steps else ""


def _megabytes(folder: Path) -> float:
    weights = folder / WEIGHTS
    return weights.stat().st_size / 1e6 if weights.is_file() else 0.0

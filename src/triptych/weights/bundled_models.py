"""The models that come with the package: each a folder with weights and a card. No torch.

Such a folder is a run folder in half the size, which `triptych weights bundle` writes.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from triptych.config import BadFile, errors_about, read_object
from triptych.fields import from_json

FOLDER = Path(__file__).parent / "bundled"
CARD = "card.json"
MODEL_FILES = ("config.json", "run.json", "model_index.json", "open_clip_config.json")
"""One of them is in every folder of a model, trained here or published."""


@dataclass(frozen=True)
class Figure:
    """A figure of a model's card: how good it is, and the command that measures it."""

    what: str
    value: float
    command: str
    """`triptych evaluate NAME ...`, or the script that measures it."""
    low: float | None = None
    """The lower end of its 95 % interval."""
    high: float | None = None
    reference: str = ""
    """What to compare it with: chance, or the same figure of real pictures."""
    field: str = ""
    """Where `triptych evaluate NAME --json` has it, such as `classes.accuracy.overall.right`; empty
    where another command measures it.
    """

    def __post_init__(self) -> None:
        if not self.what or not self.command:
            raise ValueError("a figure says what was measured, and by which command")
        numbers = [x for x in (self.value, self.low, self.high) if x is not None]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"{self.what}: a figure and its interval are finite numbers")
        if (self.low is None) != (self.high is None):
            raise ValueError(f"{self.what}: an interval has a low and a high end")

    def __str__(self) -> str:
        interval = "" if self.low is None else f" ({self.low:.4g} to {self.high:.4g})"
        compared = f"; {self.reference}" if self.reference else ""
        return f"{self.what}: {self.value:.4g}{interval}{compared}"


@dataclass(frozen=True)
class ModelCard:
    """What a bundled model is, how it was made, and how good it is: the content of card.json."""

    title: str
    """What it does, in a line."""
    data: str
    """What it was trained on, and where that is from."""
    licence: str
    """The licence of the weights, and that of the data."""
    commands: tuple[str, ...]
    """The commands that trained it, in order."""
    seed: int
    hardware: str
    """The machine, and how long training took."""
    attribution: str = ""
    """What to write beside its pictures; empty where nothing is required."""
    figures: tuple[Figure, ...] = ()
    limits: str = ""
    """What it cannot do."""

    def __post_init__(self) -> None:
        for name in ("title", "data", "licence", "hardware"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty")
        if not self.commands:
            raise ValueError("commands is empty: list those that trained the model")


def bundled_names() -> tuple[str, ...]:
    """The names of the models that come with this installation."""
    names = sorted(path.parent.name for path in FOLDER.glob(f"*/{CARD}"))
    return tuple(name for name in names if "." not in name)  # one that is being written has a dot


def find_bundled(name: str) -> Path | None:
    """The folder of a bundled model; None for any other name.

    A file, or a folder of a model, of that name in the working directory goes first, as it does
    with every name. A folder of something else, such as pictures, does not.
    """
    return bundled_folder(name) if name in bundled_names() and not is_model(Path(name)) else None


def bundled_folder(name: str) -> Path:
    """The folder of one of `bundled_names()`."""
    return FOLDER / name


def is_model(path: Path) -> bool:
    """Whether a path is a file, or the folder of a model."""
    return path.is_file() or any((path / file).exists() for file in MODEL_FILES)


def has_card(folder: Path) -> bool:
    """Whether a folder holds a bundled model."""
    return (folder / CARD).is_file()


def read_card(folder: Path) -> ModelCard:
    """The card of a bundled model.

    Raises:
        BadFile: there is none, or it is damaged.
    """
    if not has_card(folder):
        raise BadFile(folder, f"has no card: a folder of `triptych weights bundle` has a {CARD}")
    return read_card_file(folder / CARD)


def read_card_file(path: Path) -> ModelCard:
    """A card in a file of its own.

    Raises:
        BadFile: it is damaged.
        OSError: there is none.
    """
    with errors_about(path):
        return from_json(ModelCard, read_object(path), "the card")

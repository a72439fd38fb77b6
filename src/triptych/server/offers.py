"""What clients may name: models, sources of data and LoRAs. Anything else is refused, so that no
name reaches the file system. No torch.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from triptych.data.names import BUILT_IN
from triptych.fields import nearest
from triptych.server.settings import Places, Serve
from triptych.text.known_words import FILE
from triptych.weights.bundled_models import MODEL_FILES, bundled_folder, bundled_names, is_model
from triptych.weights.describe_model import Description, describe_model
from triptych.weights.hub import find_repository
from triptych.weights.short_names import SHORT_NAMES

RUNS, LORAS = Path("runs"), Path("loras")
RESULTS = "results"
"""As a source: every picture that the service has made."""
LORA_ENDINGS = (".safetensors", ".pt", ".bin")
DESCRIBING = (*MODEL_FILES, FILE)
"""What the description of a model is read from."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,79}")


@dataclass(frozen=True)
class Model:
    """A model that clients may name."""

    name: str
    place: str
    """What `triptych.load` takes."""
    about: Description
    """What its files say of it."""
    created: int = 0
    """Time of its files, in seconds since 1970."""

    @property
    def kind(self) -> str:
        """Such as `cvae`; empty where only loading tells."""
        return self.about.kind


@dataclass(frozen=True)
class Offers:
    """Everything that clients may name, as it is now."""

    settings: Serve
    places: Places
    data_sets: Callable[[], Mapping[str, str]] = field(default=dict)
    """Ids and titles of data sets that were uploaded."""
    files: frozenset[str] = field(init=False)
    """Of the given models those that are files: once deleted, they are no names of repositories."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", frozenset(filter(os.path.exists, self.settings.models)))

    def check(self) -> None:
        """Refuse, at the start, models that do not exist and names that two of them have.

        Raises:
            ValueError: there is one; says which.
        """
        seen: dict[str, str] = {}
        for place in self.settings.models:
            if not (os.path.exists(place) or place in bundled_names() or find_repository(place)):
                raise ValueError(f"--models: there is no model {place!r}")
            name = read_model(place).name
            if name in seen:
                raise ValueError(f"--models: {seen[name]} and {place} are both called {name!r}")
            seen[name] = place

    def models(self) -> dict[str, Model]:
        """By name: those that are given, or those in the package and below `runs`; then those that
        were trained here.
        """
        gone = {place for place in self.files if not os.path.exists(place)}
        given = [read_model(place) for place in self.settings.models if place not in gone]
        if not self.settings.models:
            given = [read_bundled(name) for name in bundled_names()]
            given += [read_model(str(run)) for run in list_runs(RUNS)]
        trained = [read_model(str(run)) for run in list_runs(self.places.runs)]
        found: dict[str, Model] = {}
        for model in [*given, *trained]:
            found.setdefault(model.name, model)
        return found

    def find_model(self, name: str) -> Model:
        """The model of this name.

        Raises:
            ValueError: it is not offered; suggests the nearest name.
        """
        models = self.models()
        if name not in models:
            listed = ", ".join(list(models)[:20]) or "none yet: train one, or start with --models"
            raise ValueError(
                f"no model {name[:80]!r}.{nearest(name, list(models))} There are: {listed}"
            )
        return models[name]

    def fitting_models(self, kinds: Sequence[str]) -> list[Model]:
        """Models that a request works with, and those whose kind only loading tells."""
        return [model for model in self.models().values() if model.kind in (*kinds, "")]

    def data(self) -> dict[str, str]:
        """Sources of pictures by name: built in, made by this service, uploaded, or a folder below
        a data root.
        """
        found = {name: name for name in BUILT_IN} | {RESULTS: str(self.places.results)}
        found |= {name: str(self.places.data / name) for name in self.data_sets()}
        for root in self.settings.data_root:
            base = Path(root).resolve()
            folders = (
                sorted(each for each in base.iterdir() if each.is_dir()) if base.is_dir() else []
            )
            for folder in [base, *(one for one in folders if one.resolve().is_relative_to(base))]:
                found.setdefault(folder.name, str(folder))
        return found

    def find_data(self, name: str) -> str:
        """The place of a source of pictures.

        Raises:
            ValueError: it is not offered.
        """
        sources = self.data()
        if name not in sources:
            listed, near = ", ".join(list(sources)[:20]), nearest(name, list(sources))
            raise ValueError(
                f"no source of pictures {name[:80]!r}.{near} There are: {listed}; upload a data "
                "set, or start the service with --data-root"
            )
        return sources[name]

    def loras(self) -> dict[str, Path]:
        """Files of LoRAs in the folder `loras`, by name."""
        found: dict[str, Path] = {}
        for file in sorted(LORAS.glob("*")):
            if file.suffix in LORA_ENDINGS and file.is_file():
                found.setdefault(file.stem, file)
        return found

    def find_lora(self, name: str) -> Path:
        """The file of a LoRA.

        Raises:
            ValueError: there is none of this name.
        """
        loras = self.loras()
        if name not in loras:
            raise ValueError(f"no LoRA {name[:80]!r}.{nearest(name, list(loras))}")
        return loras[name]


def list_runs(folder: Path) -> list[Path]:
    """Run folders that have a model, in the order of their names."""
    if not folder.is_dir():
        return []
    return sorted(run for run in folder.iterdir() if (run / "model.safetensors").is_file())


def read_model(place: str) -> Model:
    """A model by its path or name, without loading it."""
    if place in bundled_names() and not is_model(Path(place)):
        return read_bundled(place)
    if not os.path.exists(place):
        known = SHORT_NAMES.get(place)
        return Model(place, place, Description(known.family if known else ""))
    path = Path(place)
    name = path.resolve().name
    title = path.stem if path.is_file() else name
    return Model(title, place, read_description(path), int(path.stat().st_mtime))


def read_bundled(name: str) -> Model:
    """A model that comes with the package."""
    return Model(name, name, read_description(bundled_folder(name)))


def read_description(path: Path) -> Description:
    """What the files of a model say, read again only when they have changed: every request names a
    model, and to read them all takes longer than to draw a digit.
    """
    return _describe(path, tuple(map(_last_change, (path, *(path / name for name in DESCRIBING)))))


@lru_cache(maxsize=1024)
def _describe(path: Path, changes: tuple[tuple[int, int] | None, ...]) -> Description:
    return describe_model(path)


def _last_change(file: Path) -> tuple[int, int] | None:
    """Time in nanoseconds and size; None where there is no such file."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size

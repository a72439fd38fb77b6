"""The record by which the rest of the package finds a system. No torch.

Each folder of `systems/` has one `SYSTEM`; `systems/__init__.py` lists them. Modules are named by
their path and imported on use, so that `--help` stays quick.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple


@dataclass(frozen=True, eq=False)
class System:
    """One system of the lecture: its models, its requests, and the modules that carry them out."""

    title: str
    kinds: tuple[str, ...] = ()
    """What the `model` of a config.json may be for this system, such as `cvae`."""
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """`triptych train NAME`: its presets by name, the default first. A preset is a training
    request, a dataclass.
    """
    requests: Mapping[str, type] = field(default_factory=dict)
    """The request dataclass of a command, such as `generate`."""
    serves: tuple[str, ...] = ()
    """Kinds of model that the requests work with."""
    evaluation: type | None = None
    """The options of `triptych evaluate` for a run of these recipes, a dataclass."""

    model: str = ""
    """Module with `KINDS`: a `ModelKind` for each name in `kinds`."""
    load: str = ""
    """Module with `recognise(layout)`, whether a published checkpoint is of this system, and
    `load_published(layout, dtype, reading)`, which returns a `triptych.weights.loaded.Published`.
    """
    auto_dtype: str = "auto"
    """What dtype `auto` is for those: the fastest of the device, or always float32."""
    packs: bool = False
    """Whether those load with weights in int8 or int4, too."""
    summary: str = ""
    """Module with `summary(layout)`: what a published checkpoint is made of and what it lacks."""
    pipeline: str = ""
    """Module with `run(request, load)`, which yields progress and, last, the result."""
    answer: str = ""
    """Module with `to_answer(item, model)`, the `Answer` of what the pipeline yields, where `model`
    is the name of the model in records; for systems that can show their guess early also
    `make_preview(loaded)`, a function from an item to a picture or None, and if that is rough
    `decode_guess(loaded)`, the same without haste; for those that read a
    prompt `read_prompt(loaded, prompt)`, a `triptych.text.prompt_tokens.PromptTokens`.
    """
    report: str = ""
    """Module with `evaluate(options, run)`, which yields messages and returns the figures."""
    recipe: str = ""
    """Module with `build(request, world, load)`, which returns a `Recipe`."""
    chain: str = ""
    """Module with `CHAINS`, the types of requests that are several trainings; `plan(request, run)`,
    which returns them as `Stage`s; `check_parts(request, run, load)`, whether those that are there
    belong together; and `assemble(request, run, load)`, which yields messages and writes the model
    that they make up.
    """
    export: str = ""
    """Module with `WRITERS`: by target layout, the function that writes it."""

    def module(self, role: str) -> ModuleType:
        """The module of a role: `model`, `load`, `pipeline`, `answer`, `report`, `recipe` or
        `export`.

        Raises:
            ValueError: the system has none.
        """
        path = getattr(self, role)
        if not path:
            raise ValueError(f"{self.title} has no {role}")
        return import_module(path)


class Stage(NamedTuple):
    """One of the trainings of a chain."""

    title: str
    request: Any
    folder: Path
    """Its run folder."""


class AnswerPicture(NamedTuple):
    """A picture of an answer."""

    pixels: Any
    """uint8 (H, W, C), a numpy array."""
    record: Mapping[str, Any]
    """What its file says of how it was made: `request` draws it alone."""
    facts: Mapping[str, Any]
    """What a list of pictures says of it, such as its seed: JSON."""
    parameters: str = ""
    """The same as `record` in the text format of AUTOMATIC1111."""
    kind: Literal["made", "shown"] = "made"
    """`shown` is what only explains a result, such as a heat map."""


class Answer(NamedTuple):
    """A result as plain values and pictures, for files and for other programs."""

    values: Mapping[str, Any]
    """JSON."""
    pictures: Sequence[AnswerPicture] = ()


class ModelKind(NamedTuple):
    """How a model of one kind is built from its configuration and prepared for inference."""

    config: type
    """The configuration, a dataclass."""
    build: Callable[[Any], Any]
    """From a configuration to a `torch.nn.Module` with random weights."""
    prepare: Callable[[Any, Any], None] | None = None
    """Called with the loaded model, on its device, and the dtype of inference (a `torch.dtype`, or
    None for the stored one): casts parts or changes their memory format, in place.
    """
    cast_on_read: bool = False
    """All weights may be cast while they are read, so that a large model is never in memory twice.
    """

"""`triptych evaluate RUN`: a run's figures, tables and plots, by the report of its system."""

import json
import shlex
from collections.abc import Generator
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import parse
from triptych.cli.main import Interrupt, say, stop
from triptych.system import System
from triptych.systems import KINDS, RECIPES, SYSTEMS, find_command, find_recipe

if TYPE_CHECKING:
    from triptych.train.settings import TrainRequest
    from triptych.weights.loaded import Loaded

USAGE = "triptych evaluate RUN [OPTIONS]"
BASIC = (
    "out", "json", "seed", "samples_per_class", "judge", "guidance", "curves", "prompts", "sampler",
    "steps", "clip", "likelihood_samples", "score",
)  # fmt: skip
DESCRIPTION = """Judge a trained model: numbers, tables and plots in RUN/evaluation. Each system has
options of its own: triptych evaluate RUN --help shows those of a run."""


@dataclass(frozen=True)
class EvaluateRun:
    """Judge a trained model: numbers, tables and plots in RUN/evaluation."""

    run: Path
    """A run folder."""
    seed: int = 0
    """Seed of everything that is drawn."""
    out: Path | None = None
    """Folder for the report; by default RUN/evaluation."""
    json: bool = False
    """The report as one JSON object on stdout."""


def main(arguments: list[str]) -> int:
    words = [word for word in arguments if not word.startswith("-")]
    if not words:
        parse(
            EvaluateRun,
            arguments,
            usage=USAGE,
            basic=BASIC,
            description=DESCRIPTION,
            positional=True,
        )
    trained = _stored(Path(words[0]))
    systems = _systems(trained)
    options = {system: system.evaluation for system in systems if system.evaluation}
    _refuse_others(arguments, options, find_recipe(trained))
    names = [f"options_{i}" for i in range(len(options))]
    parsed: Any = parse(
        make_dataclass(
            "Arguments", [("common", EvaluateRun), *zip(names, options.values(), strict=True)]
        ),
        arguments,
        usage=USAGE,
        basic=BASIC,
        description=EvaluateRun.__doc__,
        positional=True,
    )
    chosen = {system: getattr(parsed, name) for system, name in zip(options, names, strict=True)}
    return evaluate(parsed.common, trained, systems, chosen, arguments)


def evaluate(
    request: EvaluateRun,
    trained: "TrainRequest",
    systems: list[System],
    options: dict[System, Any],
    arguments: list[str],
) -> int:
    """Run the reports of the systems one after the other; returns the exit code."""
    from triptych import runtime
    from triptych.data.sources import open_train_and_test
    from triptych.loading import load
    from triptych.train.curves import draw_curves
    from triptych.train.evaluation import TrainedRun
    from triptych.train.journal import rows

    loaded = load(str(request.run), runtime.device(), "float32")  # figures are to be compared
    train, test = open_train_and_test(trained.training.data, size=trained.training.size or None)
    folder = request.out or request.run / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    draw_curves(rows(request.run / "metrics.jsonl"), folder / "curves.png")
    run = TrainedRun(
        trained,
        loaded,
        train,
        test,
        request.run,
        folder,
        shlex.join(["triptych", "evaluate", request.run.name, *arguments[1:]]),
        request.seed,
        load,
        train_model,
    )
    figures: dict[str, Any] = {}
    reporting = [system for system in systems if system.report]
    for system in reporting:
        figures |= _show(system.module("report").evaluate(options.get(system), run))
    if not reporting:
        say(f"{KINDS[loaded.card.model].title}: figures of held-out data are in metrics.jsonl")
    say(f"report: {folder}")
    if request.json:
        print(json.dumps(figures))
    return 0


def _stored(run: Path) -> "TrainRequest":
    from triptych.training import stored

    trained = stored(run)
    if trained is None:
        raise ValueError(f"{run} is no run folder: it has no run.json")
    return trained


def _systems(trained: "TrainRequest") -> list[System]:
    """The system of a run, and the one that draws with its model, each once."""
    own = RECIPES[find_recipe(trained)]
    drawing = [find_command("generate", kind) for kind in own.kinds]
    return list(dict.fromkeys([own, *(system for system in drawing if system)]))


def _refuse_others(arguments: list[str], options: dict[System, Any], recipe: str) -> None:
    """An option of another system is an error, not ignored."""
    own = {field.name for kind in (EvaluateRun, *options.values()) for field in fields(kind)}
    others = {
        field.name
        for system in SYSTEMS.values()
        if system.evaluation
        for field in fields(system.evaluation)
    }
    for word in arguments:
        name = word.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        if word.startswith("--") and name in others - own:
            raise ValueError(f"{word.partition('=')[0]} cannot be used: this is a {recipe} run")


def _show(work: Generator[str, None, dict[str, Any]]) -> dict[str, Any]:
    """Run a report to its figures, printing its messages."""
    while True:
        try:
            say(next(work))
        except StopIteration as done:
            figures: dict[str, Any] = done.value
            return figures


def train_model(request: "TrainRequest", run: Path, name: str) -> "Loaded":
    """Train a model that a report needs, continue it, or take it as it is.

    Raises:
        ValueError: the folder is of another recipe.
    """
    from triptych.loading import load
    from triptych.training import stored, train

    before = stored(run)
    if before is not None and type(before) is not type(request):
        wanted = find_recipe(request)
        raise ValueError(f"{run} is a {find_recipe(before)} run; the {name} is a {wanted}")
    request = before or request
    steps = train(request, run)
    with Interrupt() as interrupt:
        for report in steps:
            if report.row:
                accuracy = report.terms["accuracy"]
                total = request.training.steps
                say(f"  {name}: step {report.step}/{total} accuracy {accuracy:.3f}")
            if interrupt.signal:
                steps.close()
                stop(interrupt.signal)
    return load(str(run))

"""`triptych evaluate RUN`: the report of a run's system: numbers, tables and plots."""

import json
import shlex
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import Option, find_options, parse, refuse_others, split_words
from triptych.cli.main import Interrupt, stop
from triptych.cli.output import Lines, say
from triptych.cli.places import require_folder
from triptych.data.names import BUILT_IN
from triptych.system import System
from triptych.systems import RECIPES, SYSTEMS, find_command, find_recipe
from triptych.weights.bundled_models import ModelCard, find_bundled, has_card, read_card

if TYPE_CHECKING:
    from triptych.train.settings import TrainRequest
    from triptych.weights.loaded import Loaded

USAGE = "triptych evaluate RUN [OPTIONS]"
BASIC = (
    "data", "out", "json", "seed", "samples_per_class", "judge", "guidance", "curves", "prompts",
    "sampler", "steps", "clip", "likelihood_samples", "score",
)  # fmt: skip
DESCRIPTION = """Evaluate a trained model: numbers, tables and plots in RUN/evaluation. The options
depend on the model: triptych evaluate RUN --help lists those of a run."""


@dataclass(frozen=True)
class EvaluateRun:
    """Evaluate a trained model: numbers, tables and plots in RUN/evaluation."""

    run: Path
    """The folder of a training run, or a bundled model (`triptych models`)."""
    data: str = ""
    """The data, where it is not where it was in training: a bundled model does not say."""
    seed: int = 0
    """Seed of all random draws."""
    out: Path | None = None
    """Folder for the report. Default: RUN/evaluation; of a bundled model evaluation/NAME."""
    json: bool = False
    """Print the report as one JSON object on stdout."""


def main(arguments: list[str]) -> int:
    every = [system.evaluation for system in SYSTEMS.values() if system.evaluation]
    words, given = split_words(arguments, _by_flag([EvaluateRun, *every]))
    if not words:  # help, or a usage error
        parse(
            EvaluateRun, arguments, usage=USAGE, basic=BASIC, description=DESCRIPTION,
            positional=("run",),
        )  # fmt: skip
    trained = _read_request(find_bundled(words[0]) or Path(words[0]))
    systems = _find_systems(trained)
    options = {system: system.evaluation for system in systems if system.evaluation}
    ours = _by_flag([EvaluateRun, *options.values()])
    refuse_others(given, ours, _by_flag(every), f"this is a {find_recipe(trained)} run")
    names = [f"options_{i}" for i in range(len(options))]
    members = [("common", EvaluateRun), *zip(names, options.values(), strict=True)]
    parsed: Any = parse(
        make_dataclass("Arguments", members), arguments, usage=USAGE, basic=BASIC,
        description=EvaluateRun.__doc__, positional=("run",),
    )  # fmt: skip
    chosen = {system: getattr(parsed, name) for system, name in zip(options, names, strict=True)}
    line = [parsed.common.run.name if word == words[0] else word for word in arguments]
    command = shlex.join(["triptych", "evaluate", *line])
    return evaluate(parsed.common, trained, systems, chosen, command)


def evaluate(
    request: EvaluateRun,
    trained: "TrainRequest",
    systems: list[System],
    options: dict[System, Any],
    command: str,
) -> int:
    """Run the reports of the systems one after the other; returns the exit code."""
    from triptych import runtime
    from triptych.data.sources import open_train_and_test
    from triptych.loading import load
    from triptych.train.curves import draw_curves
    from triptych.train.evaluation import TrainedRun
    from triptych.train.journal import rows

    run = find_bundled(str(request.run)) or request.run
    card = read_card(run) if has_card(run) else None
    folder = request.out or (Path("evaluation") / run.name if card else run / "evaluation")
    require_folder("--out", folder)
    if request.data:
        training = replace(trained.training, data=request.data)
        trained = replace(trained, training=training)  # type: ignore[type-var]
    elif card and trained.training.data not in BUILT_IN:
        say(
            f"{run.name} was trained on {card.data}. Without that no figure can be measured: --data"
        )
        return _finish(card, {}, request.json)
    reporting = [system for system in systems if system.report]
    if not reporting:
        say(f"{systems[0].title}: figures of held-out data are in {run / 'metrics.jsonl'}")
        return _finish(card, {}, request.json)
    loaded = load(str(request.run), runtime.device(), "float32")  # for comparable figures
    train, test = open_train_and_test(trained.training.data, size=trained.training.size or None)
    folder.mkdir(parents=True, exist_ok=True)
    if card is None and (run / "metrics.jsonl").exists():  # a chain's parts have journals, not it
        draw_curves(rows(run / "metrics.jsonl"), folder / "curves.png")
    beside = Path("runs") / run.name if card else run  # where judges are, and are trained
    of_run = TrainedRun(
        trained, loaded, train, test, beside, folder, command, request.seed, load, train_model
    )
    figures: dict[str, Any] = {}
    for system in reporting:
        figures |= _finish_report(system.module("report").evaluate(options.get(system), of_run))
    say(f"report: {folder}")
    return _finish(card, figures, request.json)


def _finish(card: ModelCard | None, figures: dict[str, Any], as_json: bool) -> int:
    """Print the figures of the card beside those measured, and which were left out."""
    if card is not None:
        rows = list(compare_with_card(card, figures))
        figures = figures | {"card": rows}
        for row in rows:
            if row["here"] is not None:
                say(f"{row['what']}: {row['here']:.4g} here, {row['card']:.4g} on the card")
        for row in rows:
            if row["here"] is None:
                say(f"left out: {row['what']}, {row['card']:.4g} on the card ({row['command']})")
    if as_json:
        print(json.dumps(figures))
    return 0


def compare_with_card(card: ModelCard, figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each figure of a card with what was measured here; None where it was not."""
    for figure in card.figures:
        here = find_figure(figures, figure.field) if figure.field else None
        yield {
            "what": figure.what, "card": figure.value, "here": here, "command": figure.command,
        }  # fmt: skip


def find_figure(figures: Any, field: str) -> float | None:
    """A number in the figures of a report, such as that of `classes.accuracy.overall`; None if it
    is not there. A count of successes is their share.
    """
    for part in field.split("."):
        if isinstance(figures, list) and part.isdecimal() and int(part) < len(figures):
            figures = figures[int(part)]
        elif isinstance(figures, dict) and part in (names := {str(key): key for key in figures}):
            figures = figures[names[part]]
        else:
            return None
    if isinstance(figures, dict) and figures.keys() >= {"right", "of"} and figures["of"]:
        return float(figures["right"] / figures["of"])
    number = isinstance(figures, int | float) and not isinstance(figures, bool)
    return float(figures) if number else None


def _by_flag(kinds: Sequence[type]) -> dict[str, Option]:
    return {option.flag: option for kind in kinds for option in find_options(kind)}


def _read_request(run: Path) -> "TrainRequest":
    from triptych.training import stored

    trained = stored(run)
    if trained is None:
        raise ValueError(f"{run} is no run folder: it has no run.json")
    return trained


def _find_systems(trained: "TrainRequest") -> list[System]:
    """The system of a run, and the one that generates with its model, each once."""
    own = RECIPES[find_recipe(trained)]
    generating = [find_command("generate", kind) for kind in own.kinds]
    return list(dict.fromkeys([own, *(system for system in generating if system)]))


def _finish_report(work: Generator[str, None, dict[str, Any]]) -> dict[str, Any]:
    """Run a report to its figures, printing its messages."""
    while True:
        try:
            say(next(work))
        except StopIteration as done:
            figures: dict[str, Any] = done.value
            return figures


def train_model(request: "TrainRequest", run: Path, name: str) -> "Loaded":
    """Train a model that a report needs, or continue its training, unless it is finished.

    Raises:
        ValueError: the folder belongs to another recipe.
    """
    from triptych.loading import load
    from triptych.training import stored, train

    before = stored(run)
    if before is not None and type(before) is not type(request):
        recipes = find_recipe(before), find_recipe(request)
        raise ValueError(f"{run} is a {recipes[0]} run; the {name} is a {recipes[1]}")
    request = before or request
    steps, lines, total = train(request, run), Lines(at_once=True), request.training.steps
    with Interrupt() as interrupt:
        for report in steps:
            accuracy = report.terms["accuracy"]
            what = f"{name}: step {report.step:,}/{total:,}  accuracy {accuracy:.3f}"
            lines.show(report.step / total, what)
            if interrupt.signal:
                steps.close()
                stop(interrupt.signal)
    return load(str(run))

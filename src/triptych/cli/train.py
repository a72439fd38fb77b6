"""`triptych train RECIPE`: train in a run folder, show progress, stop and continue exactly."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import find_options, parse, split_words
from triptych.cli.main import Interrupt
from triptych.cli.output import Lines, UsageError, bar, counted, say
from triptych.cli.places import require_folder
from triptych.cli.threads import spare_threads
from triptych.fields import nearest
from triptych.system import Stage
from triptych.systems import RECIPES, find_recipe
from triptych.train.settings import TrainRequest

if TYPE_CHECKING:
    from triptych.train.distributed import World
    from triptych.train.loop import Report
    from triptych.train.recipe import Progress

FINE_TUNE = "fine-tune"  # the preset for `--init`, of recipes that have one
BASIC = (
    "run", "preset", "resume", "data", "size", "condition", "init", "autoencoder", "clip", "lora",
    "vision", "language", "tasks", "words", "method", "steps", "batch_size",
    "learning_rate", "precision", "seed",
)  # fmt: skip

HELP = """usage: triptych train [RECIPE] [--run DIR] [--preset NAME] [--resume] [--json] [OPTIONS]

Trains a model in a run folder. Without a recipe: a conditional VAE on handwritten digits.

recipes and their presets, the default first:
{recipes}

`triptych train RECIPE --help` lists the options of a recipe."""


TOPICS = {
    "run": ("run", "preset", "resume"),
    "data": (
        "data", "size", "batch_size", "tasks", "buckets", "first", "first_steps", "pictures",
        "templates", "vocabulary", "length", "duplicates", "hard_negative_pool", "crop", "flip",
        "colour", "shift", "words", "unseen", "cache", "cache_precision", "patch_dropout",
        "workers",
    ),
    "model": (
        "init", "vision", "language", "mask_codes", "lora", "autoencoder", "latents", "clip",
        "condition", "quadrants", "network", "method",
    ),
    "architecture": (),
    "optimisation": (
        "steps", "accumulate", "seed", "schedule", "warmup", "rate_floor", "ema_halflife",
        "learning_rate", "weight_decay", "beta1", "beta2", "max_norm", "optimizer", "matrix_rate",
        "critic_learning_rate", "discriminator_learning_rate", "critic_steps", "gp_weight",
        "gp_factor", "critic_data", "drop", "min_snr", "offset", "loss_space", "kl", "beta",
        "kl_warmup", "free_bits", "deviation", "perceptual", "perceptual_weight", "adversarial",
        "adversarial_from", "lock", "interpolate", "margin", "fine_tune",
    ),
    "logging and checkpoints": (
        "log_every", "sample_every", "evaluate_every", "save_every", "keep", "json",
    ),
    "computing": ("device", "precision", "gradient_cache", "shard", "recompute"),
}  # fmt: skip


@dataclass(frozen=True)
class RunOptions:
    """Where and how to run."""

    run: Path | None = None
    """The run folder. Default: runs/RECIPE-DATA. An interrupted run continues where it stopped."""
    preset: str = ""
    """Name of a preset; options override its settings. Default: the recipe's first, or with `init`
    the one for fine-tuning.
    """
    resume: bool = False
    """Continue with the settings of the run folder; only some of them can be changed."""
    json: bool = False
    """Print each row of metrics.jsonl on stdout as well."""


def main(arguments: list[str]) -> int:
    if arguments and arguments[0] in ("--help", "-h"):
        lines = [f"  {r:<16} {', '.join(s.recipes[r])}" for r, s in RECIPES.items()]
        print(HELP.format(recipes="\n".join(lines)))
        return 0
    recipe = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    if recipe and recipe not in RECIPES:
        raise UsageError(
            f"no recipe {recipe!r}.{nearest(recipe, list(RECIPES))} There are: {', '.join(RECIPES)}"
        )
    arguments = arguments[1:] if recipe else arguments
    usage = f"triptych train {recipe or 'cvae'} [--run DIR] [--preset NAME] [OPTIONS]"
    _, given = split_words(arguments, {o.flag: o for o in find_options(RunOptions)})
    flags = {flag: values[-1] if values else "" for flag, values in given}
    if "--resume" in flags:
        start = _request_of_run(recipe, flags.get("--run", ""))
    else:
        start = _preset(recipe or "cvae", flags)
    kind = make_dataclass("Arguments", [("options", RunOptions), ("request", type(start))])
    parsed: Any = parse(
        kind,
        arguments,
        usage=usage,
        basic=BASIC,
        default=kind(RunOptions(), start),
        description=type(start).__doc__,
        topics=TOPICS,
    )
    return train(parsed.request, parsed.options)


def train(request: TrainRequest, options: RunOptions) -> int:
    """Train and show progress; returns the exit code. Of several processes the first prints."""
    from triptych import training as runs
    from triptych.train.distributed import OtherProcessFailed, join_processes

    if (chain := runs.find_chain(request)) is not None:
        return _train_chain(request, options, chain)
    try:
        with join_processes(request.training) as world:
            try:
                return _train(request, options, world)
            except FloatingPointError:  # it is raised in all processes alike
                if world.first:
                    raise
                return 4
    except OtherProcessFailed as error:
        if str(error):
            say(f"triptych: {error}")
        return 1


def _train_chain(request: TrainRequest, options: RunOptions, chain: ModuleType) -> int:
    """The trainings of a chain one after the other, each in its run folder; then their model."""
    from triptych import training as runs
    from triptych.loading import load

    run = _run_folder(request, options)
    require_folder("--run", run)
    with runs.open_chain(request, run) as world:
        say_first = say if world.first else _say_nothing
        stages = chain.plan(request, run)
        for number, stage in enumerate(stages, 1):
            title = f"part {number} of {len(stages)}, {stage.title}"
            if runs.is_finished(stage.folder):
                say_first(f"{title}: {stage.folder} is finished", *_other_settings(stage))
                continue
            say_first(f"{title}:")
            code = train(stage.request, replace(options, run=stage.folder))
            if code:
                return code
        if world.first:
            for message in chain.assemble(request, run, load):
                say(message)
            say("next:", f"  triptych generate PROMPT --model {run}")
    return 0


def _other_settings(stage: Stage) -> list[str]:
    """What was not asked for in a finished part of a chain, which is taken as it is."""
    from triptych.training import FREE, differences

    # a CLIP is compared by its weights, and where embeddings are kept does not matter
    free = {*FREE, "clip", "cache"} - {"training.steps"}
    if not (listed := differences(stage.folder, stage.request, tuple(free))):
        return []
    return [*listed, f"  to train it with these settings, remove {stage.folder} first"]


def _run_folder(request: TrainRequest, options: RunOptions) -> Path:
    name = f"{find_recipe(request)}-{Path(request.training.data).stem or 'data'}"
    return options.run or Path("runs") / name


def _train(request: TrainRequest, options: RunOptions, world: "World") -> int:
    from triptych import training as runs
    from triptych.train import checkpoint
    from triptych.train.journal import lock_run
    from triptych.train.loop import fit

    training = request.training
    recipe_name = find_recipe(request)
    run = _run_folder(request, options)
    require_folder("--run", run)
    say_first = say if world.first else _say_nothing
    with lock_run(run, world):
        start = world.run_on_first(lambda: runs.adopt(run, request))
        for fault in checkpoint.newest(run)[1] if world.first else ():
            say(f"skipped a damaged checkpoint: {fault}")
        if start >= training.steps:
            say_first(f"{run} is finished: {start} steps. Raise --steps to train on")
            return 0
        recipe = world.run_on_all(lambda: runs.build(request, world))
        count = sum(p.numel() for p in recipe.model.parameters())
        what = f"{recipe_name} on {training.data}, {count:,} parameters"
        where = f"{run}, by {world.size} processes" if world.size > 1 else str(run)
        say_first(f"{what}: steps {start + 1:,} to {training.steps:,} in {where}")
        say_first(*(f"note: {note}" for note in recipe.notes))
        if recipe.chance:
            say_first(recipe.chance)
        if recipe.prepare:
            prepare = recipe.prepare
            world.run_on_all(lambda: _wait(prepare(), say_first))
        if world.size == 1:
            spare_threads(recipe.model, training.batch_size)
        steps, signal = fit(recipe, training, run, world), 0
        with Interrupt() as interrupt:
            for step, row in _show(steps, training.steps, start, world.first):
                if row and options.json:
                    print(json.dumps(row), flush=True)
                if row and recipe.warn and (warning := recipe.warn(row)):
                    say(f"warning: {warning}")
                # A signal may reach only one of the processes: all stop after the same step.
                signal = world.maximum(interrupt.signal)
                if signal and step < training.steps:
                    steps.close()
                    say_first(f"stopped after step {step}; saved. The same command continues")
                    return 128 + signal
    if world.first:
        _say_done(run, recipe_name)
    return 128 + signal if signal else 0  # in the last step: a chain stops before its next part


def _say_nothing(*lines: str) -> None:
    """Replaces `say` in all processes but the first."""


def _show(
    steps: "Iterator[Report]", total: int, start: int, first: bool
) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Step and row of each report, shown as a progress bar on a terminal, else as lines; only the
    first process has rows and prints.
    """
    if not first:
        for report in steps:
            yield report.step, None
        return
    began, drawn = time.monotonic(), 0.0
    if not sys.stderr.isatty():
        lines = Lines(at_once=True)
        for report in steps:
            _say_note(report)
            count, speed = f"step {report.step:,}/{total:,}", _speed(report.step - start, began)
            lines.show(report.step / total, f"{count}, {speed}  {_terms(report.terms)}")
            if report.step == total:
                say(f"  100%: {count}, {speed}  {_figures(report.row or {})}")
            yield report.step, report.row
        return
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    def fixed(width: int) -> Column:
        return Column(no_wrap=True, min_width=width)

    columns = (
        TextColumn(
            "step {task.completed:,}/{task.total:,}", table_column=fixed(2 * len(f"{total:,}") + 6)
        ),
        BarColumn(16, table_column=fixed(16)),
        TimeRemainingColumn(table_column=fixed(7)),
        TextColumn("{task.fields[speed]}", table_column=fixed(8)),
        TextColumn("{task.fields[terms]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with bar(*columns, transient=False) as progress:
        task = progress.add_task("", total=total, completed=start, terms="", speed="")
        for report in steps:
            _say_note(report)
            now = time.monotonic()
            if now - drawn > 0.25 or report.row:
                speed, terms = _speed(report.step - start, began), _terms(report.terms)
                progress.update(task, completed=report.step, terms=terms, speed=speed)
                drawn = now
            yield report.step, report.row


def _say_note(report: "Report") -> None:
    if report.note:
        say(f"note: {report.note}")


def _speed(steps: int, began: float) -> str:
    speed = steps / max(time.monotonic() - began, 1e-9)
    return f"{speed:.1f} /s" if speed >= 1 else f"{speed:.2g} /s"


def _terms(terms: dict[str, float]) -> str:
    """The first three that say something new: a bound, such as the elbo, is the negative loss."""
    named = {abs(v): (k, v) for k, v in reversed(terms.items())}
    return "  ".join(f"{k} {v:.4g}" for k, v in list(named.values())[:-4:-1])


def _figures(row: dict[str, Any]) -> str:
    """All figures of a row of the journal."""
    numbers = {k: v for k, v in row.items() if k not in ("step", "rate")}
    return "  ".join(f"{k} {v:.4g}" for k, v in numbers.items() if not isinstance(v, list))


def _wait(work: "Iterator[Progress]", say: Callable[..., None]) -> None:
    """Run the work before the first step, and print now and then how far it is."""
    before, lines = "", Lines(say=say)
    for what, done, total in work:
        if what != before:
            lines = Lines(say=say)
        if not total:
            say(what)
        elif done < total:
            lines.show(done / total, f"{what}: {done:,} of {total:,}")
        elif what == before:
            say(f"{what}: {done:,} of {total:,}")
        before = what


def _request_of_run(recipe: str, run: str) -> TrainRequest:
    """What a run folder was started with."""
    from triptych.training import stored

    if not run:
        raise UsageError("--resume needs --run DIR, the folder to continue")
    request = stored(Path(run))
    if request is None:
        raise UsageError(f"nothing to resume: {run} has no run.json")
    if recipe and recipe != find_recipe(request):
        raise UsageError(f"{run} is a {find_recipe(request)} run, not {recipe}")
    return request


def _preset(recipe: str, flags: Mapping[str, str]) -> TrainRequest:
    """The preset that is named, or the default."""
    presets: Mapping[str, TrainRequest] = RECIPES[recipe].recipes[recipe]
    fine_tunes = "--init" in flags and FINE_TUNE in presets
    name = flags.get("--preset") or (FINE_TUNE if fine_tunes else next(iter(presets)))
    if name not in presets:
        raise UsageError(
            f"no preset {name!r}.{nearest(name, list(presets))} There are: {', '.join(presets)}"
        )
    return presets[name]


def _say_done(run: Path, recipe: str) -> None:
    pictures = f", pictures in {run}/samples" if any((run / "samples").iterdir()) else ""
    say(f"done: {run}/model.safetensors{pictures}, numbers in {run}/metrics.jsonl")
    if (skipped := run / "skipped.jsonl").exists():
        count = skipped.read_bytes().count(b"\n")
        say(f"{counted(count, 'picture')} could not be read: {skipped} says why")
    if recipe in ("cvae", "wgan", "pixel-diffusion"):
        say("next:", f"  triptych generate --model {run}", f"  triptych evaluate {run}")
    if recipe in ("clip", "siglip"):
        say(
            "next:",
            f"  triptych classify PICTURE --labels cat dog --model {run}",
            f"  triptych search FOLDER 'a dog' --model {run}",
        )

"""Training in a run folder: starts, continues, or refuses another request's folder."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from triptych import config, fields
from triptych.atomic import lock_folder
from triptych.loading import load
from triptych.systems import RECIPES, find_recipe
from triptych.train import checkpoint
from triptych.train.distributed import SINGLE_PROCESS, World, join_processes, sync_batch_norms
from triptych.train.journal import lock_run
from triptych.train.loop import Report, fit
from triptych.train.recipe import Recipe
from triptych.train.settings import MAY_CHANGE, TrainRequest
from triptych.weights import skeleton


def train(request: TrainRequest, run: Path) -> Generator[Report, None, None]:
    """Train in a run folder, continuing from its last checkpoint; yields one report per step. Of a
    chain of trainings, the reports of all that are not finished, one after the other.

    With several processes, started by a launcher, each calls this and takes all its reports.

    Raises:
        RuntimeError: another process is training in the folder.
        ValueError: the folder belongs to another request, or the data cannot be used.
        FloatingPointError: training diverged; the last checkpoint is intact.
        OtherProcessFailed: another process failed.
    """
    if (chain := find_chain(request)) is not None:
        with open_chain(request, run) as world:
            for stage in chain.plan(request, run):
                if not is_finished(stage.folder):
                    yield from train(stage.request, stage.folder)
            world.run_on_first(lambda: deque(chain.assemble(request, run, load), maxlen=0))
        return
    with join_processes(request.training) as world, lock_run(run, world):
        world.run_on_first(lambda: adopt(run, request))
        recipe = world.run_on_all(lambda: build(request, world))
        if recipe.prepare:
            prepare = recipe.prepare
            world.run_on_all(lambda: deque(prepare(), maxlen=0))
        notes = recipe.notes
        with closing(fit(recipe, request.training, run, world)) as steps:
            for report in steps:
                yield report._replace(note="\n".join(filter(None, (*notes, report.note))))
                notes = ()


def build(request: TrainRequest, world: World = SINGLE_PROCESS) -> Recipe:
    """The model of a request with its data, ready for `fit`; each of several processes has its own
    share of the data.

    Raises:
        ValueError: the data cannot be used, or the model has more tensors than `load` reads.
    """
    module = RECIPES[find_recipe(request)].module("recipe")
    recipe: Recipe = module.build(request, world, load)
    count = len(list(recipe.exported.parameters()))
    if count > skeleton.MOST_TENSORS:
        most = f"{skeleton.MOST_TENSORS:,}"
        raise ValueError(
            f"a model of {count:,} tensors, and at most {most} load again: fewer layers"
        )
    training = request.training
    if (training.shard or training.recompute) and not recipe.blocks:
        option = "shard" if training.shard else "recompute"
        able = "text-to-image, clip, siglip, vlm and language"
        raise ValueError(f"--{option} is for {able}: leave it out")
    if world.size > 1:
        sync_batch_norms(recipe.model)
    return recipe


def find_chain(request: TrainRequest) -> ModuleType | None:
    """The module that plans the trainings of a request; None where it is one training."""
    system = RECIPES[find_recipe(request)]
    chain = system.module("chain") if system.chain else None
    return chain if chain is not None and isinstance(request, chain.CHAINS) else None


@contextmanager
def open_chain(request: TrainRequest, run: Path) -> Iterator[World]:
    """Hold the run folder of a chain, which records the request; its parts lock their own.

    Raises:
        RuntimeError: another process is training in the folder.
        ValueError: its parts do not belong together.
        OSError: the folder cannot be written.
    """
    with join_processes(request.training) as world, ExitStack() as held:
        if world.first:
            held.enter_context(lock_folder(run, instead="choose another --run"))
        if (chain := find_chain(request)) is not None:
            world.run_on_first(lambda: chain.check_parts(request, run, load))
        world.run_on_first(lambda: adopt(run, request))
        yield world


def is_finished(run: Path) -> bool:
    """Whether a run folder has the last checkpoint of its own request.

    Raises:
        ValueError: as `stored`.
    """
    request, (path, _) = stored(run), checkpoint.newest(run)
    return path is not None and request is not None and _step(path) >= request.training.steps


def stored(run: Path) -> TrainRequest | None:
    """The request that a run folder was started with; None if it has no run.json.

    Raises:
        ValueError: run.json is damaged or of another version.
    """
    path = run / "run.json"
    if not path.exists():
        return None
    data = config.read_json(path)
    recipe = data.get("recipe") if isinstance(data, dict) else None
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise ValueError(f"{path} names the recipe {recipe!r}; there are: {', '.join(RECIPES)}")
    kind = type(next(iter(RECIPES[recipe].recipes[recipe].values())))
    request: TrainRequest = fields.from_json(kind, data.get("request"), str(path))
    return request


def adopt(run: Path, request: TrainRequest) -> int:
    """Record the request in a run folder; returns the step of the checkpoint to continue from.

    Raises:
        ValueError: the folder was started with another request.
    """
    before = stored(run)
    started = bool(checkpoint.steps(run))  # before the first checkpoint any request may replace it
    if started and before is None:
        raise ValueError(f"{run} has checkpoints but no run.json: choose another --run")
    if started and (listed := "\n".join(differences(run, request))):
        raise ValueError(
            f"{run} was started with other settings:\n{listed}\n"
            "`--resume` continues with the settings of the folder; or choose another --run"
        )
    record = {"recipe": find_recipe(request), "request": fields.to_json(request)}
    config.write_json(run / "run.json", record | {"triptych": version("triptych")})
    path, _ = checkpoint.newest(run)
    return _step(path) if path else 0


def _step(checkpoint_folder: Path) -> int:
    return int(checkpoint_folder.name.split("-")[1])


FREE = tuple(f"training.{field}" for field in MAY_CHANGE)


def differences(run: Path, request: TrainRequest, free: Sequence[str] = FREE) -> list[str]:
    """A line for each setting of a request that is another in the one of a run folder, but for the
    `free` ones.

    Raises:
        ValueError: as `stored`.
    """
    before = stored(run)
    if before is None:
        return []
    if type(before) is not type(request):
        old, new = {"recipe": find_recipe(before)}, {"recipe": find_recipe(request)}
    else:
        old, new = _flatten(fields.to_json(before)), _flatten(fields.to_json(request))
    return [
        f"  {name}: {old[name]} there, {new[name]} requested"
        for name in old
        if name not in free and old[name] != new[name]
    ]


def _flatten(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by names such as `training.steps`."""
    flat: dict[str, Any] = {}
    for field, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{field}.{inner}": v for inner, v in value.items()}
        else:
            flat[field] = value
    return flat

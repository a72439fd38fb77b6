"""Who computes the parts: this process, several, or the actors of a Ray cluster.

Each holds the model and writes the files of its parts itself; only the digests come back.
"""

import importlib
import json
import logging
import multiprocessing
import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from triptych import loading
from triptych.data.disk.files import reason
from triptych.data.disk.parts import PLAN, Finished
from triptych.fields import from_json
from triptych.passes.compute import Prepared, set_threads, work_of
from triptych.passes.inputs import Slice
from triptych.passes.outputs import Failed, write_parquet, write_tar
from triptych.passes.rows import read_rows
from triptych.passes.settings import Pass
from triptych.runtime import device
from triptych.systems.search.index import model_digest

FRUITLESS = 3
"""So many times in a row may processes be killed before one part is complete."""
RAY_MEMORY = 200_000_000  # bytes of shared memory of a Ray started here: only digests are sent
Numbered = tuple[int, Slice]
Outcome = Finished | Failed


@dataclass(frozen=True)
class Order:
    """What a worker needs to begin."""

    request: Any
    options: Pass
    threads: int = 0
    """Of torch; 0 leaves them as they are."""


class Worker:
    """A request with its model, which is loaded before the first part."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.work = work_of(order.request)
        self.ready: tuple[Prepared, str] | None = None

    def _prepare(self) -> tuple[Prepared, str]:
        request = self.order.request
        if self.order.threads:
            set_threads(self.order.threads)
        precision = getattr(request, "precision", "") or getattr(request, "dtype", "") or "auto"
        chosen = device(getattr(request, "device", "auto"))
        loaded = loading.load(request.model, chosen, precision)
        return self.work.prepare(request, loaded), model_digest(loaded)

    def compute(self, number: int, part: Slice) -> Outcome:
        """Compute a part and write its file; an input that is damaged, has changed, or lacks a
        column is said.

        Raises:
            ValueError: the model cannot do this, or a chosen column is not there.
            OSError: the file cannot be written.
        """
        self.ready = self.ready or self._prepare()
        prepared, model = self.ready
        options = self.order.options
        with TemporaryDirectory(prefix="triptych-") as spare:
            try:
                rows = read_rows(part, Path(spare), self.work.wants)
            except (ValueError, OSError) as error:
                why = reason(error)
                return Failed(number, why if part.url in why else f"{part.url}: {why}")
            results = list(prepared.compute(rows))
        folder = Path(options.out)
        if self.work.writes == "tar":
            return write_tar(folder, number, rows, results, model)
        columns, beside = prepared.columns, options.columns
        return write_parquet(folder, number, rows, results, columns, beside, model)


class Actor:
    """A worker of Ray, perhaps on another machine. What it refuses comes back as a line, since Ray
    would add where in its own code it was.
    """

    def __init__(self, order: Order, folder: str) -> None:
        """`folder` is where the command was given; empty if no path depends on it."""
        self.worker, self.folder = Worker(order), folder
        self.entered = False

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """The parts of a batch of Ray Data, whose rows are numbers and slices as JSON."""
        lines = []
        for text in batch["part"]:
            number, part = json.loads(str(text))
            lines.append(json.dumps(self._compute(number, from_json(Slice, part))))
        return {"outcome": lines}

    def _compute(self, number: int, part: Slice) -> dict[str, Any]:
        try:
            if not self.entered:
                enter_folder(self.folder, Path(self.worker.order.options.out))
                self.entered = True
            return asdict(self.worker.compute(number, part))
        except ValueError as error:
            return {"refused": str(error)}
        except OSError as error:
            return {"errno": error.errno, "refused": reason(error), "file": error.filename}


def enter_folder(folder: str, out: Path) -> None:
    """Let relative paths mean what they mean where the command was given.

    Raises:
        ValueError: this machine has no such folder, or another `out` than the one of the pass.
    """
    here = f"the machine {socket.gethostname()} of the cluster"
    if folder:
        try:
            os.chdir(folder)
        except OSError as error:
            raise ValueError(
                f"{here} has no folder {folder}, where the command was given: give full paths, of "
                "places that all machines of the cluster see"
            ) from error
    if not (out / PLAN).exists():
        raise ValueError(
            f"{here} does not see --out {out}: give a folder that all machines of the cluster see"
        )


def find_folder(order: Order) -> str:
    """The folder that relative paths of an order begin in; empty if all its paths are full."""
    texts = [order.options.batch]
    for field in fields(order.request):
        value = getattr(order.request, field.name)
        texts += [text for text in (value if isinstance(value, tuple) else [value])
                  if isinstance(text, str) and os.path.exists(text)]  # fmt: skip
    full = all("://" in text or os.path.isabs(text) for text in texts)
    return "" if full else os.getcwd()


def compute_parts(order: Order, parts: Sequence[Numbered]) -> Iterator[Outcome]:
    """Compute parts by whom the options name; yields each when its file is complete.

    Raises:
        ValueError: as `Worker.compute`, or Ray is not installed.
        RuntimeError: processes were killed again and again.
    """
    where = order.options.on
    if where == "here":
        worker = Worker(order)
        return (worker.compute(number, part) for number, part in parts)
    return (_in_processes if where == "processes" else _on_ray)(order, parts)


_worker: Worker | None = None  # of a process of the pool


def _begin(order: Order) -> None:
    global _worker
    _worker = Worker(order)


def _compute(numbered: Numbered) -> Outcome:
    assert _worker is not None
    return _worker.compute(*numbered)


def _in_processes(order: Order, parts: Sequence[Numbered]) -> Iterator[Outcome]:
    """A part whose process was killed is computed again by a new one."""
    waiting = dict(parts)
    count = min(order.options.workers, len(waiting))
    order = Order(order.request, order.options, max(1, (os.cpu_count() or 1) // max(count, 1)))
    fruitless = 0
    while waiting:
        before = len(waiting)
        try:
            for outcome in _pool(order, list(waiting.items()), count):
                del waiting[outcome.part]
                yield outcome
        except BrokenProcessPool as error:
            fruitless = 0 if len(waiting) < before else fruitless + 1
            if fruitless == FRUITLESS:
                raise RuntimeError(
                    "the processes were killed again and again, perhaps for lack of memory: use "
                    "fewer --workers or a smaller --part-size. The same command continues"
                ) from error


def _pool(order: Order, parts: Sequence[Numbered], count: int) -> Iterator[Outcome]:
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_begin, initargs=(order,))
    try:
        left = iter(parts)
        running: set[Future[Outcome]] = set()
        while True:
            while len(running) < 2 * count and (following := next(left, None)) is not None:
                running.add(pool.submit(_compute, following))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _on_ray(order: Order, parts: Sequence[Numbered]) -> Iterator[Outcome]:
    """Ray Data: a pool of actors with the model, a batch a part; Ray replaces lost actors."""
    ray = _require_ray()
    began = not ray.is_initialized()
    if began:
        _start_ray(ray, order.options.workers)
    try:
        items = [{"part": json.dumps([number, asdict(part)])} for number, part in parts]
        count = min(order.options.workers, len(items))
        cores = int(ray.cluster_resources().get("CPU", 1))
        options = replace(order.options, out=os.path.abspath(order.options.out))
        order = Order(order.request, options, max(1, cores // count))
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        results = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Actor,
            fn_constructor_args=(order, find_folder(order)),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=1,
        )
        for row in results.iter_rows():
            yield read_outcome(json.loads(str(row["outcome"])))
    finally:
        if began:
            ray.shutdown()


def read_outcome(values: dict[str, Any]) -> Outcome:
    """What an actor made of a part.

    Raises:
        ValueError, OSError: as it refused the part.
    """
    if "errno" in values:
        raise OSError(values["errno"], values["refused"], values["file"])
    if "refused" in values:
        raise ValueError(values["refused"])
    return from_json(Failed, values) if "reason" in values else from_json(Finished, values)


def _start_ray(ray: Any, workers: int) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine."""
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
        return
    ray.init(
        num_cpus=max(workers, os.cpu_count() or 1),
        include_dashboard=False,
        object_store_memory=RAY_MEMORY,
        log_to_driver=False,
        logging_level="ERROR",
    )


def _require_ray() -> Any:
    try:
        importlib.import_module("ray.data")
        return importlib.import_module("ray")
    except ImportError as error:
        raise ValueError(
            'Ray is not installed: `pip install "triptych[scale]"`, or --on processes'
        ) from error

"""How many small mistakes do the tests notice? `python -m tests.mutation.run`, see CONTRIBUTING.md.

Each mutant is tried in a copy of the package on a temporary path, in a process with a limit of CPU
time, by the tests of its module only. Results are written as they come; a run that was stopped
continues with `--resume`, where what was caught stays caught while its module is the same, and a
survivor is tried again when its tests have changed.
"""

import argparse
import compileall
import contextlib
import difflib
import hashlib
import json
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from threading import Lock

from tests.mutation.child import PRELOADED, run_tests
from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.mutants import Mutant, find, sample
from tests.mutation.selection import tests_of_modules

ROOT = Path(__file__).parents[2]
PACKAGE = Path("src/triptych")
MUTATED = ("diffusion/", "nn/", "scores/", "train/")
DRAWINGS = ("scores/environment.py", "scores/style.py", "train/curves.py")
"""What people look at, where another colour or number of columns is no mistake."""
MARKERS = "not slow and not gpu and not network"


@dataclass(frozen=True)
class Outcome:
    """How a run of tests ended."""

    passed: bool
    by: str
    """The test that failed, or the limit that was reached."""
    seconds: float
    """CPU time."""
    waited: float
    """Seconds by the clock."""


class Tests:
    """Runs test files in copies of the repository, one copy per process."""

    def __init__(self, folder: Path, processes: int):
        self.copies: queue.Queue[Path] = queue.Queue()
        self.clean: dict[str, Outcome] = {}
        self.lock = Lock()
        first = folder / "0"
        for part in ("src", "tests"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, first / part, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", first)
        # checked by content: a mutant may have the size and the second of what it replaces
        checked = PycInvalidationMode.CHECKED_HASH
        compileall.compile_dir(first / "src", quiet=2, invalidation_mode=checked)
        self.copies.put(first)
        for number in range(1, processes):
            self.copies.put(shutil.copytree(first, folder / str(number)))
        os.environ["OMP_NUM_THREADS"] = "1"
        self.processes = multiprocessing.get_context("forkserver")
        self.processes.set_forkserver_preload(list(PRELOADED))

    def run_clean(self, file: str) -> Outcome:
        """The outcome of a test file without a mutant.

        Raises:
            ValueError: it fails.
        """
        with self.lock:
            known = self.clean.get(file)
        if known is None:
            copy = self.copies.get()
            try:
                known = self._run(copy, file, 3600, 3600)
            finally:
                self.copies.put(copy)
            if not known.passed:
                raise ValueError(f"{file} fails without a mutant: {known.by}")
            self.clean[file] = known
            print(f"{file}: {known.seconds:.0f} s of CPU time without a mutant", flush=True)
        return known

    def judge(self, mutant: Mutant, files: Sequence[str]) -> Outcome:
        """The outcome of the tests for a mutant, up to the first file that notices it: the module's
        own, then those that are known to be quick. Without any it survives.
        """
        own = f"test_{Path(mutant.file).stem}.py"
        spent = waited = 0.0
        quick_first = sorted(files, key=lambda f: self.clean[f].seconds if f in self.clean else 60)
        for file in sorted(quick_first, key=lambda f: Path(f).name != own):
            clean = self.run_clean(file)
            copy = self.copies.get()
            place = copy / PACKAGE / mutant.file
            source = place.read_text(encoding="utf-8")
            try:
                place.write_text(mutant.apply(source), encoding="utf-8")
                limit, patience = 30 + 4 * clean.seconds, 120 + 8 * clean.waited
                outcome = self._run(copy, file, limit, patience)
            finally:
                place.write_text(source, encoding="utf-8")
                self.copies.put(copy)
            spent, waited = spent + outcome.seconds, waited + outcome.waited
            if not outcome.passed:
                return Outcome(False, outcome.by, spent, waited)
        return Outcome(True, "", spent, waited)

    def _run(self, copy: Path, file: str, limit: float, patience: float) -> Outcome:
        """Run a test file up to the first failure; `limit` is in CPU seconds, and `patience`, for
        what waits forever, in seconds by the clock.
        """
        options = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-m", MARKERS]
        options += ["--hypothesis-seed=0", file]
        printed = copy / "printed.txt"
        process = self.processes.Process(
            target=run_tests, args=(copy, options, int(limit) + 1, printed)
        )
        start = time.monotonic()
        process.start()
        process.join(patience)
        waited = time.monotonic() - start
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # it, or what it left running
        process.join()
        lines = printed.read_text(encoding="utf-8", errors="replace").splitlines()
        code = process.exitcode
        if code is None or code < 0:
            return Outcome(False, "limit of time", limit, waited)
        told = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        if code not in (0, 1, 2) or (code and not told):
            end = "\n".join(lines[-5:])
            raise ValueError(f"{file}: pytest ended with {code}\n{end}")
        by = told[0].split(" - ")[0].split(maxsplit=1)[1] if code else ""
        return Outcome(not code, by, float(lines[-1]), waited)


def describe(mutant: Mutant, source: str) -> str:
    """Place and difference of a mutant."""
    name = str(PACKAGE / mutant.file)
    lines = (text.splitlines() for text in (source, mutant.apply(source)))
    diff = list(difflib.unified_diff(*lines, n=1, lineterm=""))[2:]
    return "\n".join([f"{name}:{mutant.line}", mutant.name, *(f"    {line}" for line in diff)])


def digests(files: dict[str, list[str]]) -> dict[str, dict[bool, str]]:
    """For each module what a result depends on, as far as it is kept for `--resume`: the module if
    the mutant was caught, and its tests too if it survived.
    """
    found = {}
    for module, tests in files.items():
        parts = [(ROOT / path).read_bytes() for path in (PACKAGE / module, *tests)]
        whole = [hashlib.sha256(b"".join(each)).hexdigest()[:16] for each in (parts[:1], parts)]
        found[module] = {True: whole[0], False: whole[1]}
    return found


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="mutants in the sample")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60, help="no mutant starts after them")
    parser.add_argument("--within", default="", help="modules whose path begins with this, instead")
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "mutation.jsonl")
    parser.add_argument("--resume", action="store_true", help="keep results that still hold")
    parser.add_argument("--least", type=float, default=0.0, help="fail below this score")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse_arguments()
    end = time.monotonic() + 60 * options.minutes
    modules = sorted((ROOT / PACKAGE).rglob("*.py"))
    mutants, sources = [], {}
    for path in modules:
        file = path.relative_to(ROOT / PACKAGE).as_posix()
        if file.startswith(options.within or MUTATED) and file not in DRAWINGS:
            sources[file] = path.read_text(encoding="utf-8")
            mutants += find(file, sources[file])
    chosen = sample(mutants, options.count, options.seed)
    files = tests_of_modules(ROOT, {m.file for m in chosen})
    keys = digests(files)
    known: dict[str, dict[str, object]] = {}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    if options.resume and options.results.exists():
        for line in options.results.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            known[row["name"]] = row
    else:
        options.results.unlink(missing_ok=True)

    def is_known(mutant: Mutant) -> bool:
        row = known.get(mutant.name)
        return row is not None and row["key"] == keys[mutant.file][bool(row["caught"])]

    print(f"{len(chosen)} of {len(mutants)} mutants, seed {options.seed}", flush=True)
    broken: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        tests, lock = Tests(Path(folder).resolve(), options.processes), Lock()

        def attempt(mutant: Mutant) -> None:
            if mutant.name in EQUIVALENT or is_known(mutant) or time.monotonic() > end:
                return
            try:
                outcome = tests.judge(mutant, files[mutant.file])
            except ValueError as error:
                broken.add(str(error))
                return
            row = {
                "name": mutant.name, "line": mutant.line, "caught": not outcome.passed,
                "by": outcome.by, "seconds": round(outcome.seconds, 1),
                "key": keys[mutant.file][not outcome.passed],
            }  # fmt: skip
            with lock, options.results.open("a", encoding="utf-8") as log:
                known[mutant.name] = row
                log.write(json.dumps(row) + "\n")
                print(
                    f"caught by {outcome.by}: {mutant.name}"
                    if outcome.by
                    else f"\nsurvived: {describe(mutant, sources[mutant.file])}\n",
                    flush=True,
                )

        with ThreadPoolExecutor(options.processes) as pool:
            for _ in pool.map(attempt, chosen):
                pass
    judged = [m for m in chosen if is_known(m) and m.name not in EQUIVALENT]
    failed = report(chosen, judged, known, options)
    if broken:
        print("\n".join(["Tests that have to pass first:", *sorted(broken)]))
    return failed or int(bool(broken))


def report(
    chosen: Sequence[Mutant],
    judged: Sequence[Mutant],
    known: dict[str, dict[str, object]],
    options: argparse.Namespace,
) -> int:
    """Print the score; 1 below the least one."""
    from triptych.scores.accuracy import wilson_interval  # not in the processes that run tests

    equivalent = [m for m in chosen if m.name in EQUIVALENT]
    caught = sum(bool(known[m.name]["caught"]) for m in judged)
    timed = sum(known[m.name]["by"] == "limit of time" for m in judged)
    score = caught / max(1, len(judged))
    low, high = wilson_interval(caught, len(judged)) if judged else (0.0, 1.0)
    print(
        f"\ncaught {caught} of {len(judged)} mutants: {score:.1%} ({low:.1%} to {high:.1%}), "
        f"{timed} of them by the limit of time; {len(equivalent)} more compute the same"
    )
    if missing := len(chosen) - len(judged) - len(equivalent):
        print(f"{missing} were not tried within {options.minutes:g} minutes: --resume goes on")
    return int(score < options.least)


if __name__ == "__main__":
    sys.exit(main())

"""Runs tests in a process that imports the package from a copy of the repository.

Imports nothing of the package, and is forked from a process that has imported what takes seconds.
"""

import importlib
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

PRELOADED = (
    "numpy", "torch", "PIL.Image", "safetensors.torch", "scipy.stats", "tokenizers", "jaxtyping",
    "pytest", "hypothesis",
)  # fmt: skip
OF_ANOTHER_COPY = 99
"""The exit code if the package did not come from the copy."""


def run_tests(copy: Path, options: Sequence[str], limit: int, printed: Path) -> None:
    """Run pytest in a copy with at most `limit` seconds of CPU time; its messages and the seconds
    go to the file `printed`. Exits with pytest's code.
    """
    os.setsid()
    with printed.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    os.chdir(copy)
    roots = [str(copy / "src"), str(copy)]
    os.environ["PYTHONPATH"] = os.pathsep.join(roots)
    sys.path[:] = [*roots, *(path for path in sys.path if path)]
    for name in list(sys.modules):
        if name.split(".")[0] in ("tests", "triptych"):
            del sys.modules[name]
    importlib.invalidate_caches()
    import pytest

    start = time.process_time()
    code = int(pytest.main(list(options)))
    package = sys.modules.get("triptych")
    if package is None or not Path(str(package.__file__)).is_relative_to(copy):
        code = OF_ANOTHER_COPY
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(time.process_time() - start + children.ru_utime + children.ru_stime, flush=True)
    os._exit(code)

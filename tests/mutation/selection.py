"""Which test files judge a module."""

import ast
from collections.abc import Iterable
from pathlib import Path

ELSEWHERE = ("cli", "examples", "learning", "mutation", "written_before")
"""Folders of tests about the whole rather than a module."""
PROCESSES = ("test_kills.py", "test_cache_kills.py", "test_distributed.py")
"""Tests that start processes judge the module of their name only."""


def tests_of_modules(root: Path, modules: Iterable[str]) -> dict[str, list[str]]:
    """For each module, relative to the package: the test file at the same place under `tests`, and
    those of its package, or of faults, that import it; where there is none, all that import it.
    """
    imported = {path: imports(path) for path in sorted((root / "tests").rglob("test_*.py"))}
    found = {}
    for file in sorted(modules):
        place = Path(file).with_suffix("")
        mirror = root / "tests" / place.parent / f"test_{place.name}.py"
        name = ".".join(("triptych", *place.parts))
        near, far = [], []
        for path, names in imported.items():
            folder = path.relative_to(root / "tests").parts[0]
            if path == mirror:
                near.append(path)
            elif name in names and folder not in ELSEWHERE and path.name not in PROCESSES:
                (near if folder in (place.parts[0], "faults") else far).append(path)
        found[file] = [path.relative_to(root).as_posix() for path in near or far]
    return found


def imports(path: Path) -> set[str]:
    """The modules, and the names in modules, that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names

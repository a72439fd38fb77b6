"""Which test files judge a module."""

import ast
from collections.abc import Iterable
from pathlib import Path

ELSEWHERE = ("cli", "examples", "learning", "mutation", "written_before")
"""Folders of tests about the whole rather than a module."""
KILLS = ("test_kills.py", "test_cache_kills.py")
"""Tests that start and kill processes for minutes."""


def tests_of_modules(root: Path, modules: Iterable[str]) -> dict[str, list[str]]:
    """For each module, relative to the package: the test file at the same place under `tests`, and
    those that import it.
    """
    imported = {
        path: imports(path)
        for path in sorted((root / "tests").rglob("test_*.py"))
        if path.relative_to(root / "tests").parts[0] not in ELSEWHERE and path.name not in KILLS
    }
    found = {}
    for file in sorted(modules):
        place = Path(file).with_suffix("")
        mirror = root / "tests" / place.parent / f"test_{place.name}.py"
        name = ".".join(("triptych", *place.parts))
        files = [path for path, names in imported.items() if path == mirror or name in names]
        found[file] = [path.relative_to(root).as_posix() for path in files]
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

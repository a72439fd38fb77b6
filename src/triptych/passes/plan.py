"""What a pass is to do: written once, so that a restart does the same."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from triptych.atomic import make_parents, remove_temporary, replace_file, sync
from triptych.config import BadFile
from triptych.data.disk.parts import MANIFEST, PARTS, PLAN, read_plan
from triptych.fields import from_json, to_json
from triptych.passes.inputs import Slice, plan_slices
from triptych.passes.settings import Pass

FORM = 1
BEGUN = re.compile(r"lock|parts\.jsonl|\.(parts\.jsonl|pass\.json)\.tmp-\d+")
"""What a pass that was killed before its plan was complete leaves."""
FREE = ("on", "workers")
"""Options that a restart may change."""


def write_or_read_plan(request: Any, options: Pass, folder: Path) -> list[Slice]:
    """The parts of a pass: read where it has begun, else planned and written. A plan of which no
    part is done, such as one whose model was refused, gives way to another.

    Raises:
        ValueError: the folder belongs to another pass, with the difference; or as `plan_slices`.
    """
    asked = _record(request, options)
    file = folder / PLAN
    if file.exists():
        other = _describe_difference(folder, asked)
        if not other:
            return _read_parts(folder / PARTS)
        if (folder / MANIFEST).exists() or any(folder.glob("part-*")):
            raise ValueError(other)
        file.unlink()  # before its parts are replaced: a kill leaves no plan, or a whole one
        sync(folder)
        remove_temporary(folder)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if others := [name for name in names if not BEGUN.fullmatch(name)]:
        raise ValueError(
            f"--out {folder} already has other files in it ({sorted(others)[0]!r}): give a new or "
            "empty folder"
        )
    slices = list(plan_slices(options.batch, options.part_size))
    if not slices:
        raise ValueError(f"{options.batch} has no rows")
    with make_parents(folder / PLAN):
        folder.mkdir(exist_ok=True)
        _write(folder / PARTS, (json.dumps(asdict(part)) for part in slices))
        _write(file, [json.dumps(asked, indent=2)])  # last: with it the pass has begun
    return slices


def _record(request: Any, options: Pass) -> dict[str, Any]:
    settings = {name: value for name, value in to_json(options).items() if name not in FREE}
    settings.pop("out")
    return {
        "form": FORM,
        "request": {"kind": type(request).__name__, **to_json(request)},
        "settings": settings,
    }


def _describe_difference(folder: Path, asked: dict[str, Any]) -> str:
    """What the plan in a folder has else than is asked for, as a sentence; empty if nothing."""
    found = read_plan(folder)
    if found["form"] != FORM:
        raise BadFile(
            folder / PLAN,
            f"of another version of Triptych (form {found['form']}): give another --out",
        )
    parts = [(found[name], asked[name]) for name in ("request", "settings")]
    for old, new in parts:
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                return (
                    f"{folder} belongs to a pass with {name} {old.get(name)!r}, not "
                    f"{new.get(name)!r}: give another --out, or the same options again"
                )
    return ""


def _read_parts(file: Path) -> list[Slice]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [from_json(Slice, json.loads(line), str(file)) for line in lines]
    except (OSError, ValueError) as error:
        raise BadFile(file, "no list of parts: give another --out") from error


def _write(path: Path, lines: Iterator[str] | list[str]) -> None:
    with replace_file(path) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
        sync(temporary)
    sync(path.parent)

"""The rules of the house as tests: what the import contracts cannot say."""

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from triptych.systems import KINDS, SYSTEMS

SOURCE = Path(__file__).parents[1] / "src" / "triptych"
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = sorted("triptych." + ".".join(p.relative_to(SOURCE).with_suffix("").parts) for p in FILES)


class Facts(NamedTuple):
    """What the rules ask of a file; its tree itself would burden the garbage collector."""

    text: str
    bases: list[tuple[str, set[str]]]  # of each class
    functions: list[tuple[str, int]]  # with their lines
    imports: list[str]
    imports_from: list[str]
    loads: list[tuple[int, set[str | None]]]  # of state dicts: arguments and the names of others


def read_facts(path: Path) -> Facts:
    facts = Facts(path.read_text(), [], [], [], [], [])
    for node in ast.walk(ast.parse(facts.text)):
        match node:
            case ast.ClassDef(name=name, bases=bases):
                facts.bases.append((name, {b.id for b in bases if isinstance(b, ast.Name)}))
            case ast.FunctionDef(name=name):
                facts.functions.append((name, (node.end_lineno or 0) - node.lineno + 1))
            case ast.Import(names=names):
                facts.imports.extend(each.name for each in names)
            case ast.ImportFrom(module=module):
                facts.imports_from.append(module or "")
            case ast.Call(func=ast.Attribute(attr="load_state_dict"), args=args, keywords=words):
                facts.loads.append((len(args), {word.arg for word in words}))
    return facts


@cache
def facts() -> dict[Path, Facts]:
    return {path: read_facts(path) for path in FILES}


def test_no_class_of_ours_inherits_from_another_class_of_ours() -> None:
    classes = {name for found in facts().values() for name, _ in found.bases}
    for path, found in facts().items():
        for name, bases in found.bases:
            assert not bases & classes, f"{path}: {name} inherits from {bases & classes}"


@pytest.mark.parametrize(
    "block",
    [
        r"scaled_dot_product_attention\(",
        r"class GroupNorm\b",
        r"def timestep_embedding\b",
        r"def attend\b",
        r"clip_grad_norm_\(|get_total_norm\(",
        r"save_file\(",
        r"FileLock\(",
        r"def parse_sampler\b",
        r"def recall_at\b",
        r"import huggingface_hub|from huggingface_hub",
    ],
)
def test_each_block_is_defined_once(block: str) -> None:
    """In exactly one file: a pattern that matches nothing keeps nothing."""
    found = [path for path, each in facts().items() if re.search(block, each.text)]
    assert len(found) == 1, f"{block} is in {found}"


def test_files_and_functions_stay_readable() -> None:
    for path, found in facts().items():
        assert len(found.text.splitlines()) <= 450, path
        for name, lines in found.functions:
            assert lines <= 70, f"{path}: {name} has {lines} lines"


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_record_names_what_exists(name: str) -> None:
    """Each module of a record imports and has what `System` says of it; each folder is listed."""
    system = SYSTEMS[name]
    package = importlib.import_module(f"triptych.systems.{name}")
    assert package.SYSTEM is system and "In reading order" in (package.__doc__ or "")
    parts = {
        "load": ("recognise", "load_published"), "summary": ("summary",), "pipeline": ("run",),
        "report": ("evaluate",), "recipe": ("build",), "export": ("WRITERS",),
    }  # fmt: skip
    for role, names in parts.items():
        if getattr(system, role):
            module = system.module(role)
            assert all(hasattr(module, each) for each in names), f"{name}: {role}"
    if system.kinds:
        assert tuple(system.module("model").KINDS) == system.kinds
    for presets in system.recipes.values():
        assert len({type(preset) for preset in presets.values()}) == 1
        assert system.recipe
    assert bool(system.requests) == bool(system.serves) == bool(system.pipeline) or system.load
    assert set(system.serves) <= set(KINDS)


def test_every_system_is_listed() -> None:
    folders = {path.parent.name for path in (SOURCE / "systems").glob("*/__init__.py")}
    assert folders == set(SYSTEMS)


def test_weights_are_never_loaded_loosely() -> None:
    calls = 0
    for path, found in facts().items():
        for arguments, names in found.loads:
            calls += 1
            assert "strict" not in names, path
            assert arguments == 1, path
    assert calls  # the rule looks at something


def test_nothing_is_unpickled() -> None:
    for path, found in facts().items():
        for bad in (
            "import pickle",
            "pickle.load",
            "torch.load(",
            "weights_only=False",
            "eval(input",
        ):
            assert bad not in found.text, f"{path} has {bad}"


def test_reference_libraries_are_never_imported() -> None:
    references = {"transformers", "diffusers", "open_clip", "timm", "torchvision"}
    for path, found in facts().items():
        tops = {name.split(".")[0] for name in (*found.imports, *found.imports_from)}
        assert not tops & references, path


def test_samplers_know_a_denoiser_and_nothing_else() -> None:
    """Only torch and the standard library: so every network, guidance and schedule fits them."""
    steps = "triptych.diffusion.steps"
    samplers = "triptych.diffusion.samplers"
    names = ("deterministic", "singlestep", "stochastic", "dpm_solver")
    allowed = {"torch", steps, *(f"{samplers}.{name}" for name in names)}
    folder = SOURCE / "diffusion"
    for path in (folder / "steps.py", *(folder / "samplers" / f"{name}.py" for name in names)):
        imported = {*facts()[path].imports, *facts()[path].imports_from}
        assert imported - set(sys.stdlib_module_names) - {"collections.abc"} <= allowed, path


def test_no_drawers() -> None:
    """A name that says nothing about its content ends up holding everything."""
    for path in FILES:
        assert not set(path.stem.split("_")) & {
            "utils",
            "util",
            "helper",
            "helpers",
            "manager",
            "common",
            "misc",
        }


def test_nothing_in_the_package_imports_the_package_itself() -> None:
    for path, found in facts().items():
        assert "triptych" not in found.imports, path


def probe(code: str, home: Path) -> str:
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(SOURCE.parent),  # the checkout, not an installed tree
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", code],
        capture_output=True, text=True, env=environment, cwd=home, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_import_is_silent_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Every module, under an empty home: no print, no folder, no seed, no environment variable."""
    present = [m for m in MODULES if "__main__" not in m]
    code = f"""
import importlib, os
import numpy, torch

def state():
    generators = torch.random.get_rng_state().tolist(), numpy.random.get_state()[1].tolist()
    return dict(os.environ), generators

before, threads = state(), torch.get_num_threads()
for name in {present!r}:
    importlib.import_module(name.removesuffix('.__init__'))
assert before == state() and threads == torch.get_num_threads()
"""
    assert probe(code, tmp_path) == ""
    assert [p for p in tmp_path.rglob("*") if p.name != "__pycache__"] == []


def test_help_and_import_load_no_torch(tmp_path: Path) -> None:
    code = """
import json, sys
import triptych
first = [m for m in ("torch", "numpy", "tyro") if m in sys.modules]
from triptych.cli.main import run
for arguments in (["--help"], ["--version"], ["nonsense"]):
    sys.stderr = open("/dev/null", "w"); run(arguments); sys.stderr = sys.__stderr__
import contextlib, io
for arguments in (["train", "--help"], ["train", "cvae", "--help"], ["generate", "--help"],
                  ["classify", "--help"],
                  ["evaluate", "--help"], ["data", "--help"], ["weights", "--help"],
                  ["detect", "--help"], ["embed", "--help"], ["search", "--help"],
                  ["serve", "--help"], ["weights", "inspect", "--help"], ["weights", "list"],
                  ["models", "--help"], ["models"]):
    with contextlib.redirect_stdout(io.StringIO()):
        try: run(arguments)
        except SystemExit: pass
print(json.dumps([first, "torch" in sys.modules, "numpy" in sys.modules]))
"""
    *_, last = probe(code, tmp_path).splitlines()
    assert json.loads(last) == [[], False, False]


def test_the_annotated_tree_of_the_readme_is_true() -> None:
    """Every module stands in docs/architecture.md, and every module named there exists."""
    page = (SOURCE.parents[1] / "docs" / "architecture.md").read_text()
    tree = page.split("```text\n")[1].split("```")[0]
    folders: list[str] = []
    named = set()
    for line in tree.splitlines()[1:]:
        name = line.split()[0] if line.split() else ""
        depth = (len(line) - len(line.lstrip())) // 2
        if name.endswith("/"):
            folders = [*folders[: depth - 1], name.rstrip("/")]
        elif name.endswith(".py"):
            named.add("/".join([*folders[: depth - 1], name]))
    exist = {str(p.relative_to(SOURCE)) for p in FILES if p.name != "__init__.py"}
    assert named == exist

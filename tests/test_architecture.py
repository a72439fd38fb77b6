"""The rules of the house as tests: what the import contracts cannot say."""

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.systems import KINDS, SYSTEMS

SOURCE = Path(__file__).parents[1] / "src" / "triptych"
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = sorted("triptych." + ".".join(p.relative_to(SOURCE).with_suffix("").parts) for p in FILES)


def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in FILES]


def test_no_class_of_ours_inherits_from_another_class_of_ours() -> None:
    classes = {n.name for _, tree in trees() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)}
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases = {b.id for b in node.bases if isinstance(b, ast.Name)}
                assert not bases & classes, f"{path}: {node.name} inherits from {bases & classes}"


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
    found = [p for p in FILES if re.search(block, p.read_text())]
    assert len(found) == 1, f"{block} is in {found}"


def test_files_and_functions_stay_readable() -> None:
    for path, tree in trees():
        assert len(path.read_text().splitlines()) <= 450, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 70, f"{path}: {node.name} has {lines} lines"


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
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr != "load_state_dict":
                    continue
                calls += 1
                assert "strict" not in {word.arg for word in node.keywords}, path
                assert len(node.args) == 1, path
    assert calls  # the rule looks at something


def test_nothing_is_unpickled() -> None:
    for path in FILES:
        text = path.read_text()
        for bad in (
            "import pickle",
            "pickle.load",
            "torch.load(",
            "weights_only=False",
            "eval(input",
        ):
            assert bad not in text, f"{path} has {bad}"


def test_reference_libraries_are_never_imported() -> None:
    for path, tree in trees():
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top not in {
                    "transformers",
                    "diffusers",
                    "open_clip",
                    "timm",
                    "torchvision",
                }, path


def test_samplers_know_a_denoiser_and_nothing_else() -> None:
    """Only torch and the standard library: so every network, guidance and schedule fits them."""
    steps = "triptych.diffusion.steps"
    samplers = "triptych.diffusion.samplers"
    names = ("deterministic", "singlestep", "stochastic", "dpm_solver")
    allowed = {"torch", steps, *(f"{samplers}.{name}" for name in names)}
    folder = SOURCE / "diffusion"
    for path in (folder / "steps.py", *(folder / "samplers" / f"{name}.py" for name in names)):
        tree = ast.parse(path.read_text())
        imported = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        imported |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
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
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert "triptych" not in [a.name for a in node.names], path


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

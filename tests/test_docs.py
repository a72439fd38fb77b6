"""The pages name files, modules, links, options and imports that exist."""

import ast
import contextlib
import dataclasses
import io
import pkgutil
import re
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
from benchmarks import every_claim

from triptych.cli.main import COMMANDS, PASSES, run
from triptych.systems import RECIPES, SYSTEMS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
FOLDERS_OF_USERS = {
    "annotations/", "embeddings/", "loras/", "models/", "photos/", "runs/", "samples/",
    "step-000500/", "test/", "train/", "vae/", "val/",
}  # fmt: skip
OPTIONS_OF_OTHERS = {"--nnodes", "--nproc-per-node", "--rdzv-endpoint", "--shutdown-timeout"}
SCRIPTS = ("python ", "torchrun ", "make ", "pip ")

pages = pytest.mark.parametrize("page", PAGES)


@cache
def tracked() -> tuple[str, ...]:
    """The files of the repository, each with a leading slash."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = done.stdout.splitlines() or [str(p.relative_to(ROOT)) for p in ROOT.rglob("*.*")]
    return tuple(f"/{name}" for name in names if (ROOT / name).exists())


def missing_files(text: str) -> list[str]:
    """Files and folders of the repository that a page names and that do not exist."""
    text = re.sub(r"https?://\S+", "", text)
    files = re.findall(r"(?<![\w/.*-])((?:[\w-]+/)*[\w-]+\.py)\b", text)
    folders = re.findall(r"`((?:[\w-]+/)+)`", text)
    dotted = re.findall(r"`(triptych(?:\.\w+)+)\b(?<!\.json)", text)
    missing = [f for f in files if not any(name.endswith(f"/{f}") for name in tracked())]
    missing += [
        f for f in folders
        if f not in FOLDERS_OF_USERS and not any(f"/{f}" in name for name in tracked())
    ]  # fmt: skip
    return missing + [name for name in dotted if not exists(name)]


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    try:
        pkgutil.resolve_name(dotted)
    except (ImportError, AttributeError):
        return False
    return True


@pages
def test_files_and_modules_exist(page: str) -> None:
    assert missing_files((ROOT / page).read_text()) == []


def test_a_file_that_is_not_there_is_noticed() -> None:
    text = "`models/clip.py` and `weights/files/store.py`, `pipelines/`, `triptych.loading.lod`"
    assert missing_files(text) == ["models/clip.py", "pipelines/", "triptych.loading.lod"]


def broken_links(page: Path) -> list[str]:
    """Relative links and pictures of a page without a file, or without the heading they name."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", target):
            continue
        name, _, heading = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (heading and heading not in headings(path)):
            broken.append(target)
    return broken


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pages
def test_relative_links_and_pictures_exist(page: str) -> None:
    assert broken_links(ROOT / page) == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One heading, with a comma\n")
    page = tmp_path / "page.md"
    good = "[a](other.md) [b](other.md#one-heading-with-a-comma) [c](https://example.org/x)"
    page.write_text(f"{good} [d](gone.md) ![e](gone.png) [f](other.md#gone)")
    assert broken_links(page) == ["gone.md", "gone.png", "other.md#gone"]


@cache
def options(*command: str) -> frozenset[str]:
    """The flags of a command, as its help lists them; both of `--flag` and `--no-flag`."""
    with contextlib.redirect_stdout(io.StringIO()) as page, contextlib.suppress(SystemExit):
        run([*command, "--help-all"])
        if command == ("generate",):  # a model of classes has other options than one of prompts
            for kind in ("cvae", "unclip"):
                with tempfile.TemporaryDirectory() as folder:
                    Path(folder, "config.json").write_text(f'{{"model": "{kind}"}}')
                    with contextlib.suppress(SystemExit):
                        run([*command, "--model", folder, "--help-all"])
        if command[0] in PASSES:
            run([*command, "--batch", "--help-all"])
    flags = set(re.findall(r"(?<![\w-])--[a-z0-9-]+", page.getvalue()))
    if command == ("evaluate",):
        kinds = [system.evaluation for system in SYSTEMS.values() if system.evaluation]
        names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
        flags |= {"--" + name.replace("_", "-") for name in names}
    flags |= {"--help", "--help-all", "--json", "--debug"}
    flags |= {flag.replace("--no-", "--") for flag in flags}
    return frozenset(flags | {flag.replace("--", "--no-", 1) for flag in flags})


@cache
def every_option() -> frozenset[str]:
    names = [name for name in COMMANDS if name not in ("train", "data", "weights")]
    commands = [(name,) for name in names] + [("train", recipe) for recipe in RECIPES]
    commands += [("data", "check"), *(("weights", n) for n in ("inspect", "convert", "doctor"))]
    ours = {flag for command in commands for flag in options(*command)} | {"--version"}
    paths = [*ROOT.glob("benchmarks/*.py"), ROOT / "tests" / "mutation" / "run.py"]
    scripts = " ".join(path.read_text() for path in paths)
    return frozenset(ours | set(re.findall(r'"(--[a-z-]+)"', scripts)))


def unknown_options(text: str) -> list[str]:
    """Options that a page names, other than as "(was `--old`)", and that do not exist."""
    unknown = []
    text = re.sub(r"\(was `[^`]+`\)", "", text)
    blocks = [block.replace("\\\n", " ") for block in re.findall(r"```\w*\n(.*?)```", text, re.S)]
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^ {4}(triptych .+)$", text, re.M)
    for line in [*lines, *spans]:
        words = shlex.split(line.split("  #")[0].replace("'", ""), posix=False)
        flags = [w.split("=")[0] for w in words if re.match(r"--[a-z]", w)]
        flags = [flag.strip('"').rstrip(",.;") for flag in flags]
        if line.startswith("triptych ") and words[1] in COMMANDS:
            depth = 3 if words[1] in ("train", "data", "weights") and len(words) > 2 else 2
            known = options(*words[1:depth]) if re.match(r"[a-z-]+$", words[depth - 1]) else None
            known = known if known and words[depth - 1] != "|" else every_option()
        elif line.startswith(SCRIPTS):
            continue
        else:
            known = every_option()
        unknown += [flag for flag in flags if flag not in known | OPTIONS_OF_OTHERS]
    return unknown


@pages
def test_options_exist(page: str) -> None:
    assert unknown_options((ROOT / page).read_text()) == []


def test_an_option_that_is_not_there_is_noticed() -> None:
    text = "`--alike`\n```\ntriptych train clip --size 3 \\\n  --bogus\n```\nor `--seed`"
    assert unknown_options(text) == ["--bogus", "--alike"]


def unknown_commands(text: str) -> list[str]:
    """Commands and recipes that a page names and that do not exist."""
    words = re.findall(r"(?:`|^ *)triptych ([a-z-]+)(?: ([a-z-]+))?", text, re.MULTILINE)
    unknown = [name for name, _ in words if not name.startswith("-") and name not in COMMANDS]
    recipes = [recipe for name, recipe in words if name == "train" and not recipe.startswith("-")]
    return unknown + [recipe for recipe in recipes if recipe and recipe not in RECIPES]


@pages
def test_commands_and_recipes_exist(page: str) -> None:
    assert unknown_commands((ROOT / page).read_text()) == []


def test_a_command_that_is_not_there_is_noticed() -> None:
    text = "`triptych draw x`\n    triptych train gan --size 8\ntriptych train cvae\n"
    assert unknown_commands(text) == ["draw", "gan"]


SPEED = r"`(?:TRIPTYCH_DATA=\S+ )?(?:python )?benchmarks/(\w+\.py(?: [^`\[]*[^`\[ ])?)"
WHAT = r"`((?:step|picture|decode|int8|openvino|xl|start|lecture) --precision [^`]+)`"


def speed_commands(page: str) -> set[str]:
    """The commands of benchmarks by which a page of results measures speed."""
    scripts = (ROOT / "benchmarks").glob("*.py")
    timed = {path.name for path in scripts if "measure.pairs(" in path.read_text()}
    named = {command for command in re.findall(SPEED, page) if command.split()[0] in timed}
    return named | {f"stable_diffusion.py {arguments}" for arguments in re.findall(WHAT, page)}


def test_make_bench_runs_every_speed_claim() -> None:
    commands = every_claim.COMMANDS
    claims = speed_commands((ROOT / "docs" / "results.md").read_text())
    assert len(claims) >= 20
    assert {c for c in claims if not any(one.startswith(c) for one in commands)} <= {
        "stable_diffusion.py WHAT"
    }
    for command in commands:
        assert (ROOT / "benchmarks" / command.split()[0]).exists()
    assert "benchmarks/every_claim.py" in (ROOT / "Makefile").read_text()


@pages
def test_imports_in_snippets_exist(page: str) -> None:
    for snippet in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S):
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("triptych"):
                for alias in node.names:
                    assert exists(f"{node.module}.{alias.name}"), f"{node.module}.{alias.name}"

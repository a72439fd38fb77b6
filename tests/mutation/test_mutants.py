"""The mutants of a small module, and which tests judge a module."""

import ast
from pathlib import Path

import pytest

from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.mutants import find, sample
from tests.mutation.selection import tests_of_modules as select

LEFT_ALONE = '''
"""At least 3 pictures, not 4."""
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    SIZE = 2 + 2

@decorate(slots=True)
class Settings(Base):
    width: "int | 3" = 4

    def __repr__(self) -> str:
        return "a" if self.width > 2 else "b"

def check(x: Literal[3] = None, *, y: Literal[4] = None) -> Literal[5]:
    """Not 1."""
    assert x > 3, 7
    print(x + 1)
    logger.warning("%d", x * 2)
    name = f"{x + 1} of {len(x) - 1}" + "s" + f"{x}"
    pairs = zip(x, y, strict=True)
    return None
'''


def changes(source: str) -> set[tuple[str, str]]:
    found = find("m.py", source)
    for mutant in found:
        ast.parse(mutant.apply(source))
    return {(mutant.before, mutant.after) for mutant in found}


def test_what_changes_no_result_is_left_alone() -> None:
    assert changes(LEFT_ALONE) == set()


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("a < b", {("a < b", "(a <= b)"), ("a < b", "(a >= b)")}),
        ("a == b", {("a == b", "(a != b)")}),
        ("0 <= a < n", {(0, 1), (0, -1), *((("0 <= a < n"), f"(0 {first} a {second} n)")
          for first, second in (("<", "<"), (">", "<"), ("<=", "<="), ("<=", ">=")))}),
        ("a is None", {("a is None", "(a is not None)")}),
        ("a - b * c", {("a - b * c", "(a + b * c)"), ("b * c", "(b / c)")}),
        ("a and not b", {("a and not b", "(a or not b)"), ("not b", "(b)")}),
        ("-a", {("-a", "(a)")}),
        ("7", {(7, 8), (7, 6)}),
        ("0.5", {(0.5, 1.5)}),
        ("True", {("True", "(False)")}),
        ("a if b else c", {("b", "(not (b))")}),
        ("[a for a in b if c]", {("c", "(not (c))")}),
        ("f(a, b=c)", {("f(a, b=c)", "(f(a))")}),
        ("range(n)", {("n", "(n - 1)")}),
        ("a[b:c]", {("b", "(b + 1)"), ("c", "(c + 1)")}),
        ("a.min(b)", {("a.min", "(a.max)")}),
        ("min(a, b)", {("min", "(max)")}),
        ("sum(a)", set()),
        ("'text' + a", set()),
        ("a / 'name'", set()),
    ],
)  # fmt: skip
def test_expressions(source: str, wanted: set[tuple[object, object]]) -> None:
    """Numbers stand for the same in brackets."""

    def written(before: object, after: object) -> tuple[object, object]:
        return (before, after) if isinstance(before, str) else (repr(before), f"({after!r})")

    assert changes(f"x = {source}") == {written(*pair) for pair in wanted}


@pytest.mark.parametrize(
    ("statement", "wanted"),
    [
        ("x += y", {("x += y", "pass")}),
        ("x = x.abs()", {("x = x.abs()", "pass")}),
        ("x = y.abs()", set()),
        ("x[y] = z", {("x[y] = z", "pass")}),
        ("x.append(y)", {("x.append(y)", "pass")}),
        ("raise ValueError('at least 3')", {("raise ValueError('at least 3')", "pass")}),
        ("return x", {("return x", "return None")}),
        ("return None", set()),
        ("while x: break", {("x", "(not (x))"), ("break", "pass")}),
        ("if not x: y", {("not x", "(x)")}),
    ],
)
def test_statements(statement: str, wanted: set[tuple[str, str]]) -> None:
    assert changes(f"def f():\n    {statement}\n") == wanted


def test_a_mutant_replaces_its_own_place_and_no_other() -> None:
    source = "é = 'ü'; a = 1 + (\n    1  # one\n    + 1)\ndef f():\n    return 1\n"
    found = [m for m in find("m.py", source) if (m.before, m.after) == ("1", "(2)")]
    assert [(m.function, m.line, m.nth) for m in found] == [
        ("", 1, 1), ("", 2, 2), ("", 3, 3), ("f", 5, 1)
    ]  # fmt: skip
    assert found[1].apply(source) == source.replace("    1  #", "    (2)  #")
    assert found[2].apply(source) == source.replace("+ 1)", "+ (2))")
    assert len({m.name for m in find("m.py", source)}) == len(find("m.py", source))


def test_what_is_said_to_compute_the_same_exists() -> None:
    package = Path(__file__).parents[2] / "src" / "triptych"
    files = {name.split()[0] for name in EQUIVALENT}
    names = {m.name for file in files for m in find(file, (package / file).read_text())}
    assert set(EQUIVALENT) <= names


def test_a_sample_is_of_its_seed_and_stays_as_the_package_grows() -> None:
    source = "def f(a, b):\n    return a + b < 3 and a * b > 4 or not a\n"
    mutants = find("m.py", source)
    first = sample(mutants, 5, 0)
    assert first == sample(mutants[::-1], 5, 0) and len(set(first)) == 5
    assert first != sample(mutants, 5, 1)
    moved = find("m.py", "import a\n\n" + source)
    assert [m.name for m in sample(moved, 5, 0)] == [m.name for m in first]
    more = sample(mutants + find("n.py", source), 10, 0)
    kept = [m for m in more if m.file == "m.py"]
    assert 0 < len(kept) < 10 and kept[:5] == first[: len(kept)]


def test_a_module_is_judged_by_its_mirror_and_by_what_imports_it_near_by(tmp_path: Path) -> None:
    for path, text in {
        "nn/test_norm.py": "",
        "nn/test_attention.py": "from triptych.nn import norm, position",
        "nn/test_lora.py": "from triptych.nn.lora import add",
        "faults/test_checkpoints.py": "import triptych.nn.norm",
        "faults/test_kills.py": "import triptych.nn.norm",
        "systems/test_unet.py": "from triptych.nn.norm import GroupNorm\nimport triptych.nn.levels",
        "cli/test_commands.py": "import triptych.nn.norm, triptych.nn.loss",
        "nn/tiny.py": "import triptych.nn.norm",
    }.items():
        place = tmp_path / "tests" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    names = ("norm", "position", "lora", "levels", "loss")
    found = select(tmp_path, [f"nn/{name}.py" for name in names])
    assert found == {
        "nn/norm.py": [
            "tests/faults/test_checkpoints.py", "tests/nn/test_attention.py",
            "tests/nn/test_norm.py",
        ],
        "nn/position.py": ["tests/nn/test_attention.py"],
        "nn/lora.py": ["tests/nn/test_lora.py"],
        "nn/levels.py": ["tests/systems/test_unet.py"],
        "nn/loss.py": [],
    }  # fmt: skip

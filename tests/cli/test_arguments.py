"""Help pages and usage errors of every command."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from triptych.cli import (
    ask,
    caption,
    chat,
    classify,
    data,
    detect,
    embed,
    evaluate,
    grid,
    models,
    probe,
    search,
    segment,
    weights,
)
from triptych.cli.arguments import Option, find_options, parse, split_words
from triptych.cli.generate import class_pictures, text_pictures
from triptych.cli.main import COMMANDS, run
from triptych.cli.output import UsageError
from triptych.cli.train import RunOptions
from triptych.server.settings import Serve
from triptych.systems import RECIPES
from triptych.training import adopt

TOPICS = {
    "input", "sampling", "settings", "output", "computing", "run", "data", "model",
    "architecture", "optimisation", "logging and checkpoints", "address", "access", "content",
}  # fmt: skip


def pages() -> dict[str, list[type]]:
    """By command line, the dataclasses whose fields are its options."""
    found: dict[str, list[type]] = {
        "generate": [text_pictures.Arguments],
        "grid": [grid.Arguments],
        "classify": [classify.Arguments],
        "probe": [probe.Arguments],
        "detect": [detect.Arguments],
        "ask": [ask.Arguments],
        "caption": [caption.Arguments],
        "segment": [segment.Arguments],
        "chat": [chat.Arguments],
        "evaluate": [evaluate.EvaluateRun],
        "embed": [embed.Arguments],
        "search": [search.Arguments],
        "serve": [Serve],
        "data check": [data.CheckData],
        "weights list": [weights.ListWeights],
        "weights inspect": [weights.Inspect],
        "weights doctor": [weights.Doctor],
        "weights convert": [weights.Convert],
        "weights bundle": [weights.Bundle],
        "models": [models.Arguments],
    }
    for name, system in RECIPES.items():
        preset = next(iter(system.recipes[name].values()))
        found[f"train {name}"] = [RunOptions, type(preset)]
        options = evaluate._find_systems(preset)
        reports = [one.evaluation for one in options if one.evaluation]
        found[f"evaluate RUN-{name}"] = [evaluate.EvaluateRun, *reports]
    return found


PAGES = pages()
FIXED = {
    "detect": ("picture",),
    "caption": ("task", "question"),
    "segment": ("task", "question"),
    "chat": ("message",),
}
"""Fields of a request that the command sets itself: `detect` from each of its pictures."""


@pytest.fixture
def page(tmp_path: Path, monkeypatch, capsys):
    """The help page of a command line; RUN-x is a run folder of the recipe x."""
    monkeypatch.chdir(tmp_path)

    def read(command: str, flag: str) -> str:
        words = command.split()
        if words[-1].startswith("RUN-"):
            system = RECIPES[name := words[-1].removeprefix("RUN-")]
            (tmp_path / words[-1]).mkdir()
            adopt(tmp_path / words[-1], next(iter(system.recipes[name].values())))
        assert run([*words, flag]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return str(out)

    return read


def entries(text: str) -> dict[str, str]:
    """By flag or argument, the sentences about it."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        if match := re.match(r"  (?:--no-|--)?([a-zA-Z][\w-]*)(?: [^ ].*?)?(?:  +(.*))?$", line):
            found[name := match[1].lower().replace("-", "_")] = match[2] or ""
        elif line.startswith(" " * 30):
            found[name] = f"{found[name]} {line.strip()}".strip()
    return found


def assert_sentences(listed: dict[str, str]) -> None:
    for name, text in listed.items():
        plain = re.sub(r" \((default: .*|this turns it off)\)$", "", text)
        assert len(plain) > 10 and plain.endswith("."), (name, text)


def test_every_command_has_a_page() -> None:
    assert {name.split()[0] for name in PAGES} == set(COMMANDS)


@pytest.mark.parametrize("command", PAGES)
def test_at_most_fifteen_options_come_first(command: str, page) -> None:
    text = page(command, "--help")
    flags = re.findall(r"^  --", text, re.M)
    assert len(flags) <= 15
    assert set(re.findall(r"^(\w[\w ]*):$", text, re.M)) <= TOPICS
    assert max(map(len, text.splitlines())) <= 96


@pytest.mark.parametrize("command", PAGES)
def test_all_fields_are_listed_with_a_sentence(command: str, page) -> None:
    text = page(command, "--help-all")
    listed = entries(text)
    options = [option for kind in PAGES[command] for option in find_options(kind)]
    options = [option for option in options if option.name not in FIXED.get(command, ())]
    assert len({option.name for option in options}) == len(options)
    assert set(listed) == {option.name for option in options}
    assert_sentences(listed)
    assert "further options" not in text


def test_a_model_of_classes_has_its_own_page(page, tmp_path: Path) -> None:
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "config.json").write_text('{"model": "cvae"}')
    for flag in ("--help", "--help-all"):
        listed = entries(page("generate --model classes", flag))
        assert "label" in listed and "prompt" not in listed
    assert set(listed) == {option.name for option in find_options(class_pictures.Arguments)}
    assert_sentences(listed)


@dataclass(frozen=True)
class Inner:
    """Options of a nested dataclass."""

    count: int = 3
    """A number."""
    words: tuple[str, ...] = ("a",)
    """Several words."""
    renamed: float = field(default=1.0, metadata={"was": "old_name"})
    """A field that had another name."""

    def __post_init__(self) -> None:
        if self.count > 9:
            raise ValueError("count is at most 9")


@dataclass(frozen=True)
class Outer:
    """Options of a command."""

    path: Path
    """An argument."""
    inner: Inner = field(default_factory=Inner)
    colour: Literal["", "red", "green"] = ""
    """One of several."""
    loud: bool = False
    """A switch."""
    quiet: bool = True
    """A switch that is on."""
    seed: int | None = None
    """A number, or none."""


def read(*words: str, **settings: Any) -> Outer:
    usage = "triptych test PATH [OPTIONS]"
    return parse(Outer, words, usage=usage, basic=("count",), positional=("path",), **settings)


def test_flags_and_arguments_in_any_order() -> None:
    expected = Outer(Path("x"), Inner(-4, ("b", "c", "d"), 2.5), "red", True, False, 7)
    words = ["--words", "b", "c", "--loud", "x", "--seed=7", "--colour", "red", "--no-quiet"]
    assert read(*words, "--count", "-4", "--words=d", "--renamed", "2.5") == expected
    assert read("x") == Outer(Path("x"))
    assert read("--words", "--loud", "x").inner.words == ()
    assert read("x", "--words=-b", "--words", "c", append=True).inner.words == ("a", "-b", "c")
    assert read("x", default=Outer(Path("y"), seed=3)).seed == 3


def test_earlier_names_are_read() -> None:
    for words in (("--old-name", "2"), ("--old_name=2",), ("--renamed", "2")):
        assert read("x", *words).inner.renamed == 2.0


@pytest.mark.parametrize(
    ("recipe", "flag", "name"),
    [("clip", "--alike", "hard_negative_pool"), ("text-to-image", "--measured", "loss_space")],
)
def test_earlier_names_of_recipes_are_read(recipe: str, flag: str, name: str, capsys) -> None:
    assert run(["train", recipe, flag, "nonsense"]) == 2
    assert f"--{name.replace('_', '-')} " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["x", "--cuont", "3"], "there is no option --cuont. Did you mean '--count'?"),
        (["x", "--loud=yes"], "--loud takes no value"),
        (["x", "--count"], "--count needs a value"),
        (["x", "--count", "--loud"], "--count needs a value"),
        (["x", "--count", "many"], "--count takes a whole number, not 'many'"),
        (["x", "--count", "1.5"], "--count takes a whole number, not '1.5'"),
        (["x", "--seed", "many"], "--seed takes a whole number, not 'many'"),
        (["x", "--renamed", "much"], "--renamed takes a number, not 'much'"),
        (["x", "--count", "10"], "count is at most 9"),
        (["x", "--colour", "rod"], "--colour is one of red, green, not 'rod'. Did you mean 'red'?"),
        ([], "PATH is missing: triptych test PATH [OPTIONS]"),
        (["x", "y"], "unexpected argument 'y'"),
    ],
)
def test_usage_errors_are_one_sentence(words: list[str], sentence: str, capsys) -> None:
    with pytest.raises(UsageError) as error:
        read(*words)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")


def test_words_and_flags_keep_their_order() -> None:
    options = {option.flag: option for option in find_options(Outer)}
    words = ["--words", "a", "b", "--loud", "c", "--words=d", "--seed", "-1", "e", "--other", "f"]
    assert split_words(words, options) == (
        ["c", "e"],
        [("--words", ["a", "b"]), ("--loud", []), ("--words", ["d"]), ("--seed", ["-1"]),
         ("--other", ["f"])],
    )  # fmt: skip
    assert split_words(["--words", "a", "b"], options, append=True) == (["b"], [("--words", ["a"])])


def test_options_know_what_they_are() -> None:
    options: dict[str, Option] = {option.name: option for option in find_options(Outer)}
    assert [*options] == ["path", "count", "words", "renamed", "colour", "loud", "quiet", "seed"]
    assert options["words"].is_list and options["renamed"].earlier == "old_name"
    assert options["count"].text == "A number."

"""Command-line arguments: dataclasses as flags, help by topic, usage errors in one sentence.

tyro parses; the help page and the sentences are written here, from the dataclasses alone, so that
`--help` needs neither tyro nor torch.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from triptych.cli.main import UsageError
from triptych.config import nearest

Parsed = TypeVar("Parsed")
WIDTH = 96

Topics = dict[str, tuple[str, ...]]
TOPICS: Topics = {
    "what": (
        "model", "prompt", "negative", "label", "attributes", "vector", "image", "mask", "strength",
        "loras", "labels", "templates", "background", "text", "minus", "minus_image", "duplicates",
        "test", "split", "limit", "truth", "shots", "x", "y", "z", "from_parameters", "clip",
        "clip_prompt", "judge", "rerank",
    ),
    "sampling": (
        "size", "n", "seed", "steps", "sampler", "spacing", "guidance", "rescale", "eta",
        "truncation", "noise_source", "clip_skip", "variation_seed", "variation_strength", "tiling",
        "conventions", "clip_scale", "clip_cutouts",
    ),
    "settings": (),  # every field that is in no other topic
    "output": (
        "out", "format", "preview", "sheet", "report", "matrix", "index", "top", "json",
        "overwrite",
    ),
    "computing": ("device", "precision", "dtype", "batch", "quantize", "backend", "deterministic"),
}  # fmt: skip
"""What the options of a command are about. The topic without names has the remaining ones."""


@dataclass(frozen=True)
class Option:
    """One flag of a command."""

    name: str
    """Of the dataclass's field."""
    hint: Any
    default: Any
    """`dataclasses.MISSING` for an argument that must be given."""
    text: str
    """One or two sentences on what it does."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def parse(
    kind: type[Parsed],
    arguments: Sequence[str],
    *,
    usage: str,
    basic: Sequence[str],
    default: Parsed | None = None,
    description: str | None = None,
    topics: Topics = TOPICS,
    positional: bool = False,
    append: bool = False,
    unknown: bool = False,
) -> Parsed:
    """A dataclass from the flags of a command line; nested dataclasses lend their fields.

    `basic` are the fields that `--help` lists, and `--help-all` lists all of them. `positional`
    says that required fields are given without a flag, in their order. With `append` a flag may be
    given several times. With `unknown` other flags are left to a later call.

    Raises:
        UsageError: an unknown flag, a value of another type, or one that the dataclass refuses.
        SystemExit: help was asked for, and is printed.
    """
    asks = {"--help", "-h", "--help-all"} & set(arguments)
    if asks and not unknown:
        every = "--help-all" in asks
        options = list(find_options(kind, default))
        text = description or kind.__doc__ or ""
        print(render_help(options, usage, basic, text, topics, every))
        raise SystemExit(0)
    import tyro

    marks: list[Any] = [tyro.conf.OmitArgPrefixes]
    marks += [tyro.conf.PositionalRequiredArgs] if positional else []
    marks += [tyro.conf.UseAppendAction] if append else []
    words = _rename(list(arguments), kind)
    flags = {option.flag: option for option in find_options(kind, default)}
    read: Any = tyro.cli  # its overloads know no argument that decides what is returned
    with tyro._errors.on_parse_error(lambda event: _refuse(event, usage, flags, words)):
        parsed = read(
            kind,
            args=words,
            default=default,
            prog=usage.split(" [")[0],
            config=tuple(marks),
            return_unknown_args=unknown,
            add_help=False,
        )
    result: Parsed = parsed[0] if unknown else parsed
    return result


def find_options(kind: type, default: object = None) -> Iterator[Option]:
    """The options of a dataclass, those of nested dataclasses among them."""
    hints, texts = get_type_hints(kind, include_extras=False), field_texts(kind)
    for field in fields(kind):
        value = MISSING if default is None else getattr(default, field.name)
        if value is MISSING and field.default is not MISSING:
            value = field.default
        if value is MISSING and field.default_factory is not MISSING:
            value = field.default_factory()
        hint = hints[field.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from find_options(hint, None if value is MISSING else value)
            continue
        yield Option(field.name, hint, value, texts.get(field.name, ""))


def field_texts(kind: type) -> dict[str, str]:
    """The docstring below each field of a dataclass; none of a class that has no source."""
    if kind.__module__ == "types":  # of dataclasses.make_dataclass
        return {}
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            value = below.value if isinstance(below, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts[field.target.id] = " ".join(value.value.split())
    return texts


def render_help(
    options: Sequence[Option],
    usage: str,
    basic: Sequence[str],
    description: str,
    topics: Topics = TOPICS,
    every: bool = False,
) -> str:
    """The help page: usage, what the command does, and its options by topic."""
    lines = [f"usage: {usage}", "", *_paragraphs(description)]
    if arguments := [option for option in options if option.default is MISSING]:
        lines += ["", *(line for option in arguments for line in _describe(option))]
    options = [option for option in options if option.default is not MISSING]
    shown = options if every else [option for option in options if option.name in basic]
    known = {name for names in topics.values() for name in names}
    for topic, names in topics.items():
        own = [o for o in shown if o.name in names or (not names and o.name not in known)]
        if own:
            lines += ["", f"{topic}:"]
            lines += [line for option in own for line in _describe(option)]
    if len(shown) < len(options):
        lines += ["", f"--help-all lists {len(options) - len(shown)} further options"]
    return "\n".join(lines)


def _paragraphs(text: str) -> list[str]:
    parts = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(part.split()), WIDTH) for part in parts).splitlines()


def _describe(option: Option) -> list[str]:
    flag, value = option.flag, _metavar(option.hint)
    if option.default is MISSING:
        flag, value = option.name.upper(), "..." if value.endswith("...") else ""
    elif option.default is True:
        flag = f"--no-{flag.removeprefix('--')}"
    head = f"  {flag} {value}".rstrip()
    text = option.text + (" (this turns it off)" if option.default is True else _default(option))
    body = textwrap.wrap(text, WIDTH - 30)
    if len(head) > 28:
        return [head, *(" " * 30 + line for line in body)]
    return [f"{head:<30}{body[0]}", *(" " * 30 + line for line in body[1:])] if body else [head]


def _default(option: Option) -> str:
    value = option.default
    if value is MISSING or value is None or value in ("", ()) or option.hint is bool:
        return ""
    shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
    return f" (default: {shown})"


def _metavar(hint: Any) -> str:
    """What stands for the value of a flag."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is Literal:
        return "{" + ",".join(str(choice) or "''" for choice in get_args(hint)) + "}"
    if get_origin(hint) is tuple:
        return f"{_metavar(get_args(hint)[0])} ..."
    return {int: "N", float: "X", bool: ""}.get(hint, "TEXT" if hint is str else "PATH")


def _rename(arguments: list[str], kind: type) -> list[str]:
    """Flags under the names that their fields had in an earlier version, as those of today."""
    old = {
        "--" + was.replace("_", "-"): "--" + name.replace("_", "-")
        for was, name in _earlier_names(kind)
    }
    renamed = []
    for word in arguments:
        flag, equals, value = word.partition("=")
        renamed.append(old.get(flag, flag) + equals + value)
    return renamed


def _earlier_names(kind: type) -> Iterator[tuple[str, str]]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from _earlier_names(hints[field.name])
        elif "was" in field.metadata:
            yield field.metadata["was"], field.name


def _refuse(event: Any, usage: str, options: dict[str, Option], words: list[str]) -> NoReturn:
    """tyro's report of a mistake as one sentence of ours."""
    import tyro

    errors = tyro._errors
    command = usage.split(" [")[0]
    where = f" (`{command} --help`)"
    if isinstance(event, errors.UnrecognizedArgs):
        flags = [token for token in event.tokens if token.startswith("-")]
        if not flags:
            raise UsageError(f"{event.tokens[0]!r} is not an option of {command}{where}")
        flag = flags[0].split("=")[0]
        raise UsageError(f"there is no option {flag}.{nearest(flag, list(options))}{where}")
    if isinstance(event, errors.MissingArgs):
        names = ", ".join(each.arg.display_name() for each in event.missing_arguments)
        raise UsageError(f"{names} is missing: {usage}")
    flag = event.argument.display_name() if getattr(event, "argument", None) else ""
    if isinstance(event, errors.BadValue):
        raise UsageError(f"{flag} needs a value{where}")
    if isinstance(event, errors.InvalidChoice):
        near = nearest(event.value, list(event.choices))
        raise UsageError(f"{flag} is one of {', '.join(event.choices)}, not {event.value!r}.{near}")
    if flag in options:
        wanted = f"{flag} takes {_kind(options[flag].hint)}"
        raise UsageError(f"{wanted}, not {' '.join(_values(flag, words))!r}{where}")
    raise UsageError(getattr(event, "message", f"{event}"))


def _kind(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    if get_origin(hint) is tuple:
        return {int: "whole numbers", float: "numbers"}.get(get_args(hint)[0], "words")
    return {int: "a whole number", float: "a number"}.get(hint, "another value")


def _values(flag: str, words: list[str]) -> list[str]:
    """The words that were given for a flag."""
    given = [word.partition("=")[2] for word in words if word.startswith(f"{flag}=")]
    after = words[words.index(flag) + 1 :] if flag in words else []
    for word in after:
        if word.startswith("--"):
            break
        given.append(word)
    return given

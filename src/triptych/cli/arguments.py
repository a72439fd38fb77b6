"""Command-line arguments: dataclasses as flags, help by topic, usage errors in one sentence.

tyro parses; the help page and the sentences are written here, from the dataclasses alone, so that
`--help` needs neither tyro nor torch.
"""

import inspect
import itertools
import math
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from triptych.cli.output import UsageError
from triptych.fields import field_texts, nearest

Parsed = TypeVar("Parsed")
Given = list[tuple[str, list[str]]]
"""Flags with their values, in the order of the command line."""
NOTHING: Mapping[str, str] = {}
HELP_FLAGS = {"--help", "-h", "--help-all"}
WIDTH = 96

Topics = dict[str, tuple[str, ...]]
TOPICS: Topics = {
    "input": (
        "model", "data", "prompt", "negative", "label", "attributes", "vector", "image", "mask",
        "strength", "loras", "labels", "templates", "background", "text", "minus", "minus_image",
        "duplicates", "question", "task", "language", "message", "system", "turns", "raw",
        "transcript",
        "test", "split", "limit", "truth", "shots", "x", "y", "z", "from_parameters",
        "clip", "clip_prompt", "judge", "rerank",
    ),
    "sampling": (
        "size", "n", "seed", "steps", "sampler", "spacing", "guidance", "rescale", "eta",
        "truncation", "noise_source", "latents", "clip_skip", "variation_seed",
        "variation_strength", "max_tokens", "temperature", "top_k", "top_p", "repetition_penalty",
        "stop", "tiling", "conventions", "clip_scale", "clip_cutouts",
    ),
    "settings": (),  # every field that is in no other topic
    "output": (
        "out", "format", "preview", "sheet", "report", "matrix", "index", "top", "json",
        "overwrite",
    ),
    "computing": (
        "device", "precision", "dtype", "batch_size", "quantize", "backend", "deterministic",
    ),
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
    owner: type
    """The dataclass, whose source says what the option does."""
    earlier: str = ""
    """The name that the field had in an earlier version."""

    @property
    def text(self) -> str:
        """One or two sentences on what it does. Only a help page reads the source for it."""
        return field_texts(self.owner).get(self.name, "")

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_list(self) -> bool:
        return get_origin(self.hint) is tuple

    @property
    def is_number(self) -> bool:
        hint = _not_optional(self.hint)
        return hint is float or (self.is_list and get_args(hint)[0] is float)


def parse(
    kind: type[Parsed],
    arguments: Sequence[str],
    *,
    usage: str,
    basic: Sequence[str],
    default: Parsed | None = None,
    description: str | None = None,
    topics: Topics = TOPICS,
    positional: Sequence[str] = (),
    append: bool = False,
    fixed: Mapping[str, str] = NOTHING,
) -> Parsed:
    """A dataclass from the flags of a command line; nested dataclasses lend their fields.

    `basic` are the fields that `--help` lists, and `--help-all` lists all of them. `positional` are
    those given without a flag, in this order; a list takes all further words. With `append` a flag
    of a list takes one value and may be given again, instead of all words up to the next flag.
    `fixed` are fields with this value, which are no options.

    Raises:
        UsageError: an unknown flag, a value of another type, or one that the dataclass refuses.
        SystemExit: help was requested, and is printed.
    """
    options = {o.flag: o for o in find_options(kind, default) if o.name not in fixed}
    if asks := HELP_FLAGS & set(arguments):
        text = description or kind.__doc__ or ""
        every = "--help-all" in asks
        print(render_help(list(options.values()), usage, basic, text, topics, every))
        raise SystemExit(0)
    given = _assign(arguments, options, usage, positional, append)
    command = _command(usage)
    import tyro

    marks: list[Any] = [tyro.conf.OmitArgPrefixes]
    marks += [tyro.conf.UseAppendAction] if append else []
    read: Any = tyro.cli  # its overloads do not know a config that is computed
    with tyro._errors.on_parse_error(lambda event: _refuse(event, options, dict(given), command)):
        parsed: Parsed = read(
            kind,
            args=_to_words(given, options, append) + [_fix(n, v) for n, v in fixed.items()],
            default=default,
            config=tuple(marks),
            add_help=False,
        )
    return parsed


def _fix(name: str, value: str) -> str:
    """A fixed field as tyro reads it."""
    flag = name.replace("_", "-")
    return {"True": f"--{flag}", "False": f"--no-{flag}"}.get(value, f"--{flag}={value}")


def split_words(
    arguments: Sequence[str], options: Mapping[str, Option], append: bool = False
) -> tuple[list[str], Given]:
    """Words without a flag, and each flag with its values, in order."""
    bare: list[str] = []
    given: Given = []
    earlier = {"--" + o.earlier.replace("_", "-"): o.flag for o in options.values() if o.earlier}
    earlier = {flag: now for flag, now in earlier.items() if flag not in options}
    room = 0.0  # for values of the last flag
    for word in arguments:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            flag = flag.replace("_", "-")
            flag = earlier.get(flag, flag)
            given.append((flag, [value] if equals else []))
            option = _find(flag, options)
            room = math.inf if option and option.is_list and not append else 1
            room = 0 if equals or (option and option.hint is bool) else room
        elif room:
            given[-1][1].append(word)
            room -= 1
        else:
            bare.append(word)
    return bare, given


def refuse_others(
    given: Given, options: Mapping[str, Option], others: Mapping[str, Option], reason: str
) -> None:
    """Raises UsageError for a flag that belongs to another kind of model."""
    for flag, _ in given:
        if _find(flag, others) and not _find(flag, options):
            raise UsageError(f"{flag} cannot be used: {reason}")


def choose_command(arguments: Sequence[str], name: str, commands: Sequence[str], page: str) -> str:
    """The first word as the name of a subcommand; without one the help page is printed.

    Raises:
        UsageError: there is no such subcommand.
        SystemExit: help was requested, or nothing.
    """
    if not arguments or arguments[0] in HELP_FLAGS:
        print(page, file=sys.stdout if arguments else sys.stderr)
        raise SystemExit(0 if arguments else 2)
    if arguments[0] not in commands:
        near = nearest(arguments[0], list(commands))
        raise UsageError(f"no command '{name} {arguments[0]}'.{near} See `triptych {name} --help`")
    return arguments[0]


def _assign(
    arguments: Sequence[str],
    options: Mapping[str, Option],
    usage: str,
    positional: Sequence[str],
    append: bool,
) -> Given:
    """Every value with its flag, those of positional arguments first.

    Raises:
        UsageError: an unknown flag, or a missing value or argument.
    """
    command = _command(usage)
    bare, given = split_words(arguments, options, append)
    placed: Given = []
    for option in (options["--" + name.replace("_", "-")] for name in positional):
        count = len(bare) if option.is_list else 1
        if bare:
            placed.append((option.flag, bare[:count]))
        bare = bare[count:]
    if bare:
        raise UsageError(
            f"unexpected argument {bare[0]!r}; a text with spaces stands in quotes: {usage}"
        )
    for flag, values in given:
        found = _find(flag, options)
        if found is None:
            flags = [option.flag for option in options.values() if option.default is not MISSING]
            near = nearest(flag, flags)
            raise UsageError(f"there is no option {flag}.{near} (`{command} --help`)")
        if found.hint is bool and values:
            raise UsageError(f"{flag} takes no value (`{command} --help`)")
        if found.hint is not bool and not values and (append or not found.is_list):
            raise UsageError(f"{flag} needs a value (`{command} --help`)")
        if infinite := [v for v in values if found.is_number and not _is_finite(v)]:
            raise UsageError(f"{flag} takes a finite number, not {infinite[0]!r}")
    given = placed + given
    required = [option for option in options.values() if option.default is MISSING]
    if missing := [o.name.upper() for o in required if o.flag not in dict(given)]:
        verb = "is" if len(missing) == 1 else "are"
        raise UsageError(f"{' and '.join(missing)} {verb} missing: {usage}")
    return given


def _is_finite(text: str) -> bool:
    """Whether a text is not NaN or infinity; texts that are no numbers are for tyro to refuse."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return True


def _command(usage: str) -> str:
    """Of `triptych weights inspect PATH [OPTIONS]` the first three words."""
    return " ".join(itertools.takewhile(lambda word: word[0].islower(), usage.split()))


def _find(flag: str, options: Mapping[str, Option]) -> Option | None:
    """The option of a flag, also of one that turns it off."""
    if flag in options:
        return options[flag]
    option = options.get(flag.replace("--no-", "--", 1))
    return option if option and option.hint is bool else None


def _to_words(given: Given, options: Mapping[str, Option], append: bool) -> list[str]:
    """In the order and form that tyro reads reliably: values may begin with a dash."""
    words: list[str] = []
    lists: dict[str, list[str]] = {}
    for flag, values in given:
        if flag in options and options[flag].is_list and not append:
            lists.setdefault(flag, [flag]).extend(values)
        else:
            words += [f"{flag}={value}" for value in values] or [flag]
    return words + [word for part in lists.values() for word in part]


def find_options(kind: type, default: object = None) -> Iterator[Option]:
    """The options of a dataclass, those of nested dataclasses among them."""
    hints = get_type_hints(kind, include_extras=False)
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
        earlier = field.metadata.get("was", "")
        yield Option(field.name, hint, value, kind, earlier)


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
    lines += ["", "with any command: --threads N, --debug (`triptych --help`)"]
    return "\n".join(lines)


def _paragraphs(text: str) -> list[str]:
    parts = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(part.split()), WIDTH) for part in parts).splitlines()


def _describe(option: Option) -> list[str]:
    flag, value = option.flag, _metavar(option.hint)
    if option.default is MISSING:
        flag, value = option.name.upper(), "..." if value.endswith("...") else ""
    elif option.default is True:
        value = f"| --no-{flag.removeprefix('--')}"
    head = f"  {flag} {value}".rstrip()
    text = option.text + (" (default: on)" if option.default is True else _default(option))
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
    """The placeholder for the value of a flag."""
    hint = _not_optional(hint)
    if get_origin(hint) is Literal:
        return "{" + ",".join(choice for choice in get_args(hint) if choice) + "}"
    if get_origin(hint) is tuple:
        return f"{_metavar(get_args(hint)[0])} ..."
    return {int: "N", float: "X", bool: ""}.get(hint, "TEXT" if hint is str else "PATH")


def _refuse(
    event: Any, options: Mapping[str, Option], given: Mapping[str, list[str]], command: str
) -> NoReturn:
    """tyro's report of a value of the wrong type as one sentence of ours."""
    import tyro

    flag = event.argument.display_name() if getattr(event, "argument", None) else ""
    if flag not in options:  # an error of a dataclass
        raise UsageError(getattr(event, "message", f"{command}: these options cannot be used"))
    hint, text = _not_optional(options[flag].hint), " ".join(given.get(flag, ()))
    if isinstance(event, tyro._errors.InvalidChoice):
        choices = [choice for choice in get_args(hint) if choice]
        near = nearest(text, choices)
        raise UsageError(f"{flag} is one of {', '.join(choices)}, not {text!r}.{near}")
    raise UsageError(f"{flag} takes {_kind(hint)}, not {text!r} (`{command} --help`)")


def _not_optional(hint: Any) -> Any:
    if get_origin(hint) in (Union, UnionType):
        return next(part for part in get_args(hint) if part is not NoneType)
    return hint


def _kind(hint: Any) -> str:
    """What values of a type are called."""
    if get_origin(hint) is tuple:
        return {int: "whole numbers", float: "numbers"}.get(get_args(hint)[0], "words")
    return {int: "a whole number", float: "a number"}.get(hint, "another value")

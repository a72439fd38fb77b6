"""Read and write the text that AUTOMATIC1111 and other programs store in pictures.

```
a red cat, <lora:style:0.8>
Negative prompt: blurry
Steps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 1117431804, Size: 712x1024, Model: SD XL
```

The format is lossy: lines lose the spaces around them, a line of a prompt may look like a negative
prompt, and keys have at least two characters. The exact record of a picture is our JSON.
"""

import json
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

MAX_TEXT = 64 * 1024  # characters
NEGATIVE = "Negative prompt:"
QUOTED = re.compile(r'\s*+"(?:\\.|[^\\"])++"')
KEY_CHARACTER = re.compile(r"[\w \-/]")

STEPS = re.compile(r"(?<![\w\-/])Steps:\s*+\d++\s*+(?:,|$)")
TEMPLATE = re.compile(r"((?:Negative )?Template):\s*+(.*)")
"""What Dynamic Prompts drew the prompts from, on lines of its own behind the settings."""
LINE_KEY = re.compile(r"[A-Z][\w \-/]*+:")
KNOWN = re.compile(
    r"(?:Steps|Sampler|Schedule type|CFG scale|Seed|Size|Model|Model hash|VAE|Clip skip|RNG"
    r"|Version)\s*+:"
)
"""A line that begins like this has no prompt before its settings."""
JSON_KEYS = ("Civitai resources", "Civitai metadata", "Hashes")


@dataclass(frozen=True)
class Infotext:
    """A prompt, a negative prompt, and settings in their order."""

    prompt: str = ""
    negative: str = ""
    pairs: tuple[tuple[str, str], ...] = ()

    def get(self, key: str, default: str = "") -> str:
        """The value of a key, the last one where there are several."""
        return dict(self.pairs).get(key, default)


def parse_infotext(text: str) -> Infotext:
    """Read the text of any program that writes this format.

    The settings are the lines from the last one that begins with `Steps: NUMBER`, or the last line,
    if there are at least three; otherwise they belong to the prompt. They may be wrapped, or follow
    the prompts on one line. Lines behind them that begin with `Template:` are settings, too.

    Raises:
        ValueError: the text has more than 65,536 characters.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(
            f"{len(text):,} characters of parameters; at most {MAX_TEXT:,} are supported"
        )
    lines = [line.strip() for line in _storable(text).strip().split("\n")]
    lines, settings, templates = _split_settings(_break_single_line(lines))
    pairs = [*parse_pairs(settings), *templates]
    prompts: tuple[list[str], list[str]] = ([], [])
    negative = False
    for line in lines:
        if line.startswith(NEGATIVE):
            negative, line = True, line.removeprefix(NEGATIVE).strip()
        part = prompts[negative]
        if part or line:
            part.append(line)
    return Infotext("\n".join(prompts[0]), "\n".join(prompts[1]), tuple(pairs))


def _break_single_line(lines: list[str]) -> list[str]:
    """Lines of their own for the settings, and a negative prompt, that follow a prompt on the last
    line.
    """
    *others, last = lines
    begins = STEPS.search(last)
    if not begins or not begins.start() or KNOWN.match(last):
        return lines
    prompts, settings = last[: begins.start()], last[begins.start() :]
    if len(parse_pairs(settings)) < 3:
        return lines
    prompt, colon, negative = prompts.partition(NEGATIVE)
    avoided = [f"{NEGATIVE} {negative.strip()}"] if colon else []
    return [*others, prompt.strip(), *avoided, settings]


def _split_settings(lines: list[str]) -> tuple[list[str], str, list[tuple[str, str]]]:
    """The lines of the prompts, the settings in one line, and the templates behind them."""
    first = _first_of_settings(lines)
    end = next((i for i in range(first + 1, len(lines)) if TEMPLATE.match(lines[i])), len(lines))
    settings = _unwrap(lines[first:end])
    if len(parse_pairs(settings)) < 3:
        return lines, "", []
    templates: list[tuple[str, str]] = []
    for line in lines[end:]:
        if match := TEMPLATE.match(line):
            templates.append((match[1], match[2]))
        else:
            templates[-1] = templates[-1][0], f"{templates[-1][1]}\n{line}"
    return lines[:first], settings, [(key, value.strip()) for key, value in templates]


def _first_of_settings(lines: list[str]) -> int:
    """The line in which the settings begin, if there are any."""
    for number in range(len(lines) - 1, -1, -1):
        if STEPS.match(lines[number]):
            return number
        if lines[number].startswith(NEGATIVE):
            break
    before = (i for i in range(1, len(lines)) if _precedes_template(lines, i))
    return next(before, len(lines)) - 1


def _precedes_template(lines: list[str], end: int) -> bool:
    return bool(TEMPLATE.match(lines[end])) and len(parse_pairs(lines[end - 1])) >= 3


def _unwrap(lines: list[str]) -> str:
    """One line: a line that begins with a key follows a comma, another continues the last value."""
    joined = lines[:1]
    for before, line in pairwise(lines):
        joined.append(", " if LINE_KEY.match(line) and not before.endswith(",") else " ")
        joined.append(line)
    return "".join(joined)


def parse_pairs(line: str) -> list[tuple[str, str]]:
    """The `Key: value` pairs of a line, in linear time; other text is skipped.

    A key is at least two letters, digits, spaces, hyphens or slashes before a colon. A value ends
    at a comma, unless it is a complete JSON string, or the JSON of a key in `JSON_KEYS`.
    """
    pairs: list[tuple[str, str]] = []
    unread = set(JSON_KEYS)  # each is read once, so that broken JSON costs little
    start = 0
    while (colon := line.find(":", start)) >= 0:
        first = colon
        while first > start and KEY_CHARACTER.match(line[first - 1]):
            first -= 1
        key = line[first:colon].lstrip(" -/")
        start = colon + 1
        if len(key) < 2:
            continue
        end = _end_of_json(line, start) if key in unread else -1
        unread.discard(key)
        if end < 0 and (quoted := QUOTED.match(line, start)):
            end = quoted.end()
        if end < 0 or (end < len(line) and line[end] != ","):
            end = line.find(",", start)
            end = len(line) if end < 0 else end
        pairs.append((key, _unquote(line[start:end].strip())))
        start = end + 1
    return pairs


def _end_of_json(line: str, start: int) -> int:
    """Where a list or object that begins here ends; -1 if none does."""
    begin = start + len(line[start : start + 9]) - len(line[start : start + 9].lstrip())
    if line[begin : begin + 1] not in ("[", "{"):
        return -1
    try:
        return json.JSONDecoder().raw_decode(line, begin)[1]
    except (ValueError, RecursionError):
        return -1


def _unquote(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        parsed: Any = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return parsed if isinstance(parsed, str) else value


def write_infotext(info: Infotext) -> str:
    """The text for a picture's file, with settings in their order.

    Values that would otherwise be read as something else, such as those with a comma or colon, are
    written as JSON strings.
    """
    settings = ", ".join(f"{key}: {_quote(value)}" for key, value in info.pairs)
    negative = f"\n{NEGATIVE} {info.negative}" if info.negative else ""
    return _storable(f"{info.prompt}{negative}\n{settings}".strip())


def _storable(text: str) -> str:
    """Without zeros and lone surrogates, which no file can hold."""
    return text.replace("\0", " ").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _quote(value: str) -> str:
    plain = not re.search(r"[,\n:]", value) and not value.startswith('"') and value == value.strip()
    return value if plain else json.dumps(value, ensure_ascii=False)

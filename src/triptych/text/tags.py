"""Tags in prompts: AUTOMATIC1111 selects LoRAs by `<lora:NAME:WEIGHT>`."""

import re
from typing import NamedTuple

TAG = re.compile(r"(lora|lyco|hypernet):([^<>\n]*)")
UNKNOWN = re.compile(r"\w+:[^<>\n]+")
NUMBER = re.compile(r"\s*+[+-]?(?:\d++(?:\.\d*+)?|\.\d++)(?:[eE][+-]?\d++)?\s*+")
SHOWN = 60  # characters of a tag in a note


class Tagged(NamedTuple):
    """A prompt without its tags."""

    prompt: str
    loras: tuple[str, ...]
    """NAME:WEIGHT, or NAME:TEXT:UNET where the text towers have another weight than the U-Net."""
    notes: tuple[str, ...]
    """For the user: what of the tags is not followed."""


def read_tags(prompt: str) -> Tagged:
    """Take the tags out of a prompt, in linear time.

    `<lora:NAME>` has weight 1; `<lyco:...>` is the same, as in AUTOMATIC1111 since its version 1.5.
    A second number, or `unet=`, is the weight in the U-Net; further arguments, which extensions
    define, are ignored with a note, and so are hypernetworks. Other tags stay in the prompt.
    """
    done: list[str] = []  # text that is in no open bracket
    waiting: list[list[str]] = []  # text within each open bracket
    loras: list[str] = []
    notes: list[str] = []
    for token in re.split(r"([<>])", prompt):
        if token == "<":
            waiting.append([])
        elif token == ">" and waiting:
            inner = "".join(waiting.pop())
            if match := TAG.fullmatch(inner):
                _read_tag(match[1], match[2], loras, notes)
                continue
            if UNKNOWN.fullmatch(inner):
                notes.append(f"<{inner[:SHOWN]}> is read as words: there are no such tags")
            _end_all(done, waiting)
            done.append(f"<{inner}>")
        else:
            (waiting[-1] if waiting else done).append(token)
    _end_all(done, waiting)
    return Tagged("".join(done), tuple(loras), tuple(dict.fromkeys(notes)))


def _end_all(done: list[str], waiting: list[list[str]]) -> None:
    """Open brackets are plain text: no tag has a bracket in it."""
    for texts in waiting:
        done += ["<", *texts]
    waiting.clear()


def _read_tag(kind: str, inner: str, loras: list[str], notes: list[str]) -> None:
    written = f"<{kind}:{inner}>"[:SHOWN]
    if kind == "hypernet":
        notes.append(f"{written} is ignored: hypernetworks are not supported")
        return
    name, *arguments = (part.strip() for part in inner.split(":"))
    named = dict(part.split("=", 1) for part in arguments if "=" in part)
    numbers = [part for part in arguments if "=" not in part]
    text = named.pop("te", numbers[0] if numbers else "1") or "1"
    unet = named.pop("unet", numbers[1] if len(numbers) > 1 else text)
    more = [*numbers[2:], *(f"{key}={value}" for key, value in named.items())]
    if more:
        notes.append(f"{written}: {':'.join(more)[:SHOWN]} is ignored")
    loras.append(f"{name}:{text}" if unet == text else f"{name}:{text}:{unet}")

"""A request for pictures says what is wrong with it before anything is loaded."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import pytest

from triptych.fields import from_json, to_json
from triptych.given import Names
from triptych.requests import TextToImage
from triptych.systems import RECIPES, SYSTEMS
from triptych.systems.stable_diffusion.request import parse_lora, parse_size
from triptych.text.limits import MAX_PROMPT


def test_a_full_request_survives_json():
    request = TextToImage(
        "a cat", "blur", "x", "713x990", 20, "Euler a", "karras", 7.5, 0.7, 1, 2, "in.png", 0.6,
        "mask.png", ("a:0.8",), 2, 5, 0.3, True, "philox", "bfloat16", "int8", "torch", True,
    )  # fmt: skip
    assert from_json(TextToImage, to_json(request)) == request


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler": "Eulr a"}, "Did you mean 'euler a'"),
        ({"spacing": "karas"}, "no spacing 'karas'; there are: karras"),
        ({"size": "712"}, "size is WIDTHxHEIGHT, each 16 to 4096 pixels, such as 712x1024"),
        ({"size": "15x64"}, "16 to 4096"),
        ({"size": "64x4097"}, "16 to 4096"),
        ({"size": "9" * 5000 + "x64"}, "16 to 4096"),
        ({"steps": 1001}, "steps must be 1 to 1000"),
        ({"guidance": float("nan")}, "guidance must be 0 to 100"),
        ({"rescale": 1.1}, "rescale is a share"),
        ({"seed": -1}, "seed must be 0"),
        ({"n": 0}, "n must be 1"),
        ({"strength": 0.5}, "give an image"),
        ({"mask": "m.png"}, "give an image"),
        ({"image": "a.png", "strength": 0}, "strength is above 0"),
        ({"loras": ("a:b",)}, "a LoRA is FILE or FILE:WEIGHT"),
        ({"loras": ("a:nan",)}, "a LoRA is FILE or FILE:WEIGHT"),
        ({"loras": (":1",)}, "a LoRA is FILE or FILE:WEIGHT"),
        ({"clip_skip": 33}, "clip_skip is 1 to 32"),
        ({"variation_strength": 1.5}, "variation_strength is 0 to 1"),
        ({"variation_seed": 1}, "does nothing without a variation_strength"),
        ({"negative": "a" * 1_000_000}, "negative has 1,000,000 characters; at most 32,000"),
    ],
)
def test_what_is_wrong_is_said(changes, words):
    with pytest.raises(ValueError) as error:
        TextToImage(**({"prompt": "a cat"} | changes))
    assert words in str(error.value)


def test_the_ends_of_the_ranges():
    TextToImage("a" * MAX_PROMPT, size="64x4096", steps=1000, clip_skip=32, n=100_000)
    TextToImage("", image="a.png", strength=1, mask="m.png", guidance=0, rescale=1)


def test_sizes_and_updates_are_read():
    assert parse_size("") is None and parse_size("713x990") == (713, 990)
    for text, found in {
        "style.safetensors": ("style.safetensors", 1, 1),
        "style:0.8": ("style", 0.8, 0.8),
        "style:0.5:0.7": ("style", 0.5, 0.7),
        "a:b:0.123456789": ("a:b", 0.123456789, 0.123456789),
        "C:\\styles\\mine.safetensors": ("C:\\styles\\mine.safetensors", 1, 1),
        "C:/styles/mine:-2": ("C:/styles/mine", -2, -2),
        "C:/mine:1:-2": ("C:/mine", 1, -2),
    }.items():
        assert parse_lora(text) == found
        assert parse_lora(str(parse_lora(text))) == found
    assert str(parse_lora("style")) == "style:1"


def test_nothing_heavy_is_loaded():
    code = "import sys, triptych.requests; print(*{'torch', 'numpy', 'PIL'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def hints_of_texts(hint: Any) -> Iterator[Any]:
    """The texts of an annotation; a Literal has none."""
    if hint is str or hasattr(hint, "__metadata__"):
        yield hint
        return
    for inner in get_args(hint):
        yield from hints_of_texts(inner)


def unnamed_texts(kind: type) -> Iterator[str]:
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from unnamed_texts(hints[field.name])
        for text in hints_of_texts(hints[field.name]):
            if not any(isinstance(mark, Names) for mark in getattr(text, "__metadata__", ())):
                yield f"{kind.__name__}.{field.name}"


KINDS = {kind for system in SYSTEMS.values() for kind in system.requests.values()}
KINDS |= {type(next(iter(system.recipes[name].values()))) for name, system in RECIPES.items()}


@pytest.mark.parametrize("kind", sorted(KINDS, key=lambda kind: kind.__name__))
def test_every_text_says_what_it_names(kind: type) -> None:
    """A text that is a plain `str` could be a path: write `Words`, `ModelName`, `FileName`, ... of
    `triptych.given` in its place.
    """
    assert not list(unnamed_texts(kind))

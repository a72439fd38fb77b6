"""Prompts and latents as they are given to a request. No torch."""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from triptych.diffusion.settings import MOST_PICTURES
from triptych.given import FileName, Words, take_path, take_texts
from triptych.text.limits import MAX_PROMPT

if TYPE_CHECKING:
    from triptych.vision.given_pictures import Array

    Prompt = str | Sequence[str]
    Latents = str | os.PathLike[str] | Array | None
else:  # what the command line gives
    Prompt = Words
    Latents = FileName


def take_prompts(name: str, given: Any) -> str | tuple[str, ...]:
    """One text, or a list of them as a tuple.

    Raises:
        ValueError: something else, no text, or a text that is too long.
    """
    taken = given if isinstance(given, str) else take_texts(name, given, least=1)
    for text in (taken,) if isinstance(taken, str) else taken:
        if (length := len(text)) > MAX_PROMPT:
            raise ValueError(
                f"{name} has {length:,} characters; at most {MAX_PROMPT:,} are read: shorten it"
            )
    return taken


def take_latents(given: Any) -> str:
    """A path as a text, or a copy of latents in memory; empty for none.

    Raises:
        ValueError: it is neither an array of floats nor a tensor.
    """
    if (path := take_path(given)) is not None:
        return path
    place = "triptych.systems.stable_diffusion.inputs.given_latents"  # needs torch
    return cast(str, import_module(place).keep(given))


def pair_prompts(prompt: Prompt, negative: Prompt, each: int) -> tuple[tuple[str, str], ...]:
    """Each prompt with its negative prompt, which may be one for all. `each` is the number of
    pictures of a prompt.

    Raises:
        ValueError: there are more or fewer negative prompts, or too many pictures.
    """
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    negatives = (negative,) * len(prompts) if isinstance(negative, str) else tuple(negative)
    if len(negatives) != len(prompts):
        raise ValueError(
            f"negative is one text, or a list with one for each prompt: there are {len(prompts)} "
            f"prompts and {len(negatives)} negative ones"
        )
    if (total := each * len(prompts)) > MOST_PICTURES:
        raise ValueError(
            f"{total:,} pictures in one request, of {len(prompts):,} prompts; at most "
            f"{MOST_PICTURES:,}"
        )
    return tuple(zip(prompts, negatives, strict=True))

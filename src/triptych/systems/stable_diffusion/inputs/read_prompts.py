"""The prompts of a request: split into texts and LoRAs, encoded, and grouped into batches."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from triptych.systems.stable_diffusion.inputs.encode_steps import (
    EncodedSteps,
    batch_form,
    counted_steps,
    encode_steps,
)
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.systems.stable_diffusion.request import TextToImage
from triptych.text.prompt_schedule import is_composed
from triptych.text.tags import read_tags
from triptych.text.tokenizer import Tokenizer


class SplitPrompts(NamedTuple):
    """The prompts of a request without their tags."""

    pairs: tuple[tuple[str, ...], ...]
    """Each prompt and its negative prompt, where that has an effect."""
    loras: tuple[str, ...]
    """Those that all prompts name, as in `triptych.text.tags`."""
    notes: tuple[str, ...]
    """For the user: what of the tags is not followed."""


def split_prompts(request: TextToImage) -> SplitPrompts:
    """Take the tags out of the prompts of a request.

    Raises:
        ValueError: the prompts name different LoRAs, which are merged into the model for all.
    """
    read = [read_tags(prompt) for prompt, _ in request.pairs]
    if any(one.loras != read[0].loras for one in read):
        raise ValueError(
            "the prompts of one request name different LoRAs: name the same in all of them, or "
            "make a request of each"
        )
    pairs = []
    for one, (_, negative) in zip(read, request.pairs, strict=True):
        # without guidance the negative prompt has no effect on a single prompt
        composed = is_composed(one.prompt, lone_weight=request.conventions == "automatic1111")
        pairs.append((one.prompt, negative if request.guidance != 1 or composed else ""))
    notes = [note for one in read for note in one.notes]
    if any(read_tags(negative).prompt != negative for _, negative in pairs):
        notes.append(
            "negative: tags such as <lora:NAME:1> are read as words there, as in AUTOMATIC1111"
        )
    return SplitPrompts(tuple(pairs), read[0].loras, tuple(dict.fromkeys(notes)))


def encode_pairs(
    request: TextToImage,
    model: StableDiffusion,
    tokenizers: Sequence[Tokenizer],
    pairs: Sequence[tuple[str, ...]],
    size: tuple[int, int],
) -> list[EncodedSteps]:
    """What the U-Net reads of each prompt and its negative prompt, in every step, for pictures of
    this height and width.

    Raises:
        ValueError: as `encode_steps`.
    """
    theirs = request.conventions == "automatic1111"
    steps = counted_steps(request.sampler, request.steps, automatic1111=theirs)
    return [
        encode_steps(
            model, tokenizers, prompt, negative, size, steps,
            clip_skip=request.clip_skip, automatic1111=theirs,
        )
        for prompt, negative in pairs
    ]  # fmt: skip


def plan_batches(texts: Sequence[EncodedSteps], each: int, most: int) -> Iterator[range]:
    """The numbers of the pictures of each batch: at most `most` in a row, whose prompts can be read
    together. There are `each` pictures of a text.
    """
    forms = [batch_form(text) for text in texts for _ in range(each)]
    first = 0
    for number in range(1, len(forms) + 1):
        full = number - first == most
        if number == len(forms) or full or forms[number] != forms[first]:
            yield range(first, number)
            first = number

"""Prompts that change from step to step or are composed of several: what the U-Net reads when."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triptych.diffusion.denoiser import Conditioning
from triptych.diffusion.guidance import Composition
from triptych.diffusion.names import SAMPLERS
from triptych.diffusion.steps import Denoiser, Level
from triptych.systems.stable_diffusion.inputs.encode_prompts import (
    PromptEncoder,
    expand_batch,
    skipped_blocks,
)
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.text.prompt_schedule import (
    AND,
    SHOWN,
    PromptSchedule,
    Weighted,
    parse_schedule,
    split_composition,
)
from triptych.text.tokenizer import Tokenizer


class Reading(NamedTuple):
    """What the U-Net reads in a step, for one picture."""

    cond: Conditioning | Composition
    uncond: Conditioning


class EncodedSteps(NamedTuple):
    """What the U-Net reads in every step."""

    readings: tuple[Reading, ...]
    order: tuple[int, ...]
    """Which reading each step has, as its index."""
    notes: tuple[str, ...]
    """How the prompts were read, for the user."""


def encode_steps(
    model: StableDiffusion,
    tokenizers: Sequence[Tokenizer],
    prompt: str,
    negative: str,
    size: tuple[int, int],
    steps: int,
    *,
    clip_skip: int = 0,
    automatic1111: bool = False,
) -> EncodedSteps:
    """As `encode_prompts`, for prompts that may change within `steps`, or be composed of several.

    Each distinct text is encoded once. `automatic1111` also reads a weight behind a prompt that is
    not composed.

    Raises:
        ValueError: as `encode_prompts`; a weight or the nesting of schedules is out of range, or
            the texts of all steps have more than 4,096 windows.
    """
    skip, notes = skipped_blocks(model, clip_skip, automatic1111)
    encoder = PromptEncoder(model, tokenizers, size, skip, automatic1111)
    parts = split_composition(prompt, lone_weight=automatic1111)
    prompts = [(parse_schedule(text), weight) for text, weight in parts if weight]
    weights = [weight for _, weight in prompts]
    avoided = parse_schedule(negative)
    readings: dict[tuple[tuple[str, ...], str], Reading] = {}
    order = []
    for step in range(1, steps + 1):
        texts = tuple(one.at(step, steps) for one, _ in prompts), avoided.at(step, steps)
        if texts not in readings:
            conds, uncond = encoder.encode(*texts)
            composed = tuple(zip(conds, weights, strict=True))
            readings[texts] = Reading(conds[0] if weights == [1.0] else composed, uncond)
        order.append(texts)
    places = {texts: place for place, texts in enumerate(readings)}
    return EncodedSteps(
        tuple(readings.values()),
        tuple(places[texts] for texts in order),
        (
            *_syntax_notes(parts, prompts, avoided, steps),
            *_first(list(encoder.notes), len(readings)),
            *notes,
        ),
    )


def _syntax_notes(
    parts: Sequence[Weighted],
    prompts: Sequence[tuple[PromptSchedule, float]],
    avoided: PromptSchedule,
    steps: int,
) -> Iterator[str]:
    """How the prompt is composed, and what no step reads."""
    if len(parts) > 1 or parts[0].weight != 1:
        each = ", ".join(f"{text.strip()[:40]!r} x {weight:g}" for text, weight in parts)
        yield f"the prompt is composed of {each}"
    for one, _ in prompts:
        yield from (*one.notes, *one.unread(steps))
    yield from (f"negative: {note}" for note in (*avoided.notes, *avoided.unread(steps)))
    if any(isinstance(text, str) and AND.search(text) for text in avoided.texts):
        yield "negative: AND is read as a word, as in AUTOMATIC1111"


def _first(notes: Sequence[str], readings: int) -> tuple[str, ...]:
    """The notes on windows; of a prompt with many texts the first."""
    if readings == 1 or len(notes) <= SHOWN:
        return tuple(notes)
    return (*notes[:SHOWN], f"and {len(notes) - SHOWN} more texts are split into windows")


def expand_reading(reading: Reading, count: int, beside: Tensor | None = None) -> Reading:
    """What is read for a batch of `count`, with channels `beside` the latents where there are."""
    more = {} if beside is None else {"beside": beside}

    def expand(cond: Conditioning) -> Conditioning:
        return expand_batch(cond, count) | more

    cond = reading.cond
    return Reading(
        expand(cond) if isinstance(cond, dict) else tuple((expand(c), w) for c, w in cond),
        expand(reading.uncond),
    )


def batch_form(text: EncodedSteps) -> tuple[str, int]:
    """What the texts of one batch have in common: texts that never change their number of tokens,
    others that they are the same.
    """
    cond = text.readings[0].cond
    if len(text.readings) > 1 or not isinstance(cond, dict):
        return "the text", id(text)
    return "tokens", cond["context"].shape[1]


def join_prompts(texts: Sequence[EncodedSteps]) -> EncodedSteps:
    """What is read for pictures of these texts, all of one `batch_form`, as one batch."""
    first = texts[0]
    if all(text is first for text in texts):
        return first
    conds, unconds = [], []
    for text in texts:
        ((cond, uncond),) = text.readings
        assert isinstance(cond, dict)
        conds.append(cond)
        unconds.append(uncond)
    return first._replace(readings=(Reading(_concatenate(conds), _concatenate(unconds)),))


def _concatenate(rows: Sequence[Conditioning]) -> Conditioning:
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def counted_steps(sampler: str, steps: int, *, automatic1111: bool) -> int:
    """The steps by which a prompt changes: AUTOMATIC1111 counts calls of the network."""
    return steps * (SAMPLERS[sampler].calls if automatic1111 else 1)


class ChangingDenoiser:
    """The denoiser of what is read in the current step.

    Steps are counted from the first one that is taken, also where image-to-image leaves out some,
    as AUTOMATIC1111 does. With `by_calls` each call of the denoiser counts, and the first one twice
    (its pull request 9669 and issue 7279); otherwise `begin_step` says when a step begins.
    """

    def __init__(self, build: Callable[[int], Denoiser], order: Sequence[int], *, by_calls: bool):
        self.build, self.order, self.by_calls = build, order, by_calls
        self.calls = 0
        self.step = -1
        self.begins = True
        self.current: tuple[int, Denoiser] | None = None

    def begin_step(self, step: int | None = None) -> None:
        """The next call is in another step: the following one, or this one."""
        self.begins = True
        if step is not None:
            self.step = step - 1

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        if self.begins:  # moves to a noisier level do not call, and are no steps
            self.step, self.begins = self.step + 1, False
        step = max(0, self.calls - 1) if self.by_calls else self.step
        self.calls += 1
        place = self.order[min(step, len(self.order) - 1)]
        if self.current is None or self.current[0] != place:
            self.current = place, self.build(place)
        return self.current[1](x, level)

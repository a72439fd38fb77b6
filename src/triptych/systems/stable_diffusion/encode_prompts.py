"""Prompts as what a text-to-image model is told: words that count, windows, and sizes.

Dimensions: N windows, T tokens of a window, D width of the context, V numbers of the pooled vector.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.diffusion.denoiser import Conditioning
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.text.tokenizer import Tokenizer
from triptych.text.weighting import (
    PromptWindows,
    Unclosed,
    emphasise,
    emphasise_plainly,
    pad_windows,
    prompt_windows,
)

LIKED, DISLIKED = 6.0, 2.5
"""Aesthetic scores that SDXL's refiner is told of the prompt and of the negative one."""


class Told(NamedTuple):
    """What one picture is told; every tensor begins with 1."""

    cond: Conditioning
    uncond: Conditioning
    notes: tuple[str, ...]  # what someone should know of the prompts


def told(
    model: StableDiffusion,
    tokenizers: Sequence[Tokenizer],
    prompt: str,
    negative: str,
    size: tuple[int, int],
    *,
    clip_skip: int = 0,
    automatic1111: bool = False,
) -> Told:
    """A prompt and what to lead away from, both of the same number of windows.

    `size` is the picture's height and width. With `automatic1111` prompts are read as that program
    reads them: an unclosed bracket weighs what follows, states keep their mean, and clip skip
    means something to a single tower of OpenAI's CLIP that is read at its last block.

    Raises:
        ValueError: a prompt that is too long, or a clip skip of more blocks than there are.
    """
    read = [_windows(text, tokenizers, automatic1111) for text in (prompt, negative)]
    count = max(len(windows[0].tokens) for windows in read)
    read = [
        [pad_windows(w, count, t) for w, t in zip(windows, tokenizers, strict=True)]
        for windows in read
    ]
    skip, notes = _skip(model, clip_skip, automatic1111)
    cond, uncond = (_states(model, windows, skip, automatic1111) for windows in read)
    if not negative.strip() and model.config.sampling.zeros_for_empty:
        uncond = {name: torch.zeros_like(tensor) for name, tensor in uncond.items()}
    if model.config.sizes:
        for one, score in ((cond, LIKED), (uncond, DISLIKED)):
            one["sizes"] = _sizes(size, model.config.sizes, score).to(one["context"].device)
    spoken = [read[0][0].notes, tuple(f"negative: {line}" for line in read[1][0].notes)]
    return Told(cond, uncond, (*spoken[0], *spoken[1], *notes))


def repeated(cond: Conditioning, count: int) -> Conditioning:
    """The same for so many pictures."""
    return {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in cond.items()}


def _windows(
    text: str, tokenizers: Sequence[Tokenizer], automatic1111: bool
) -> list[PromptWindows]:
    unclosed: Unclosed = "weighs" if automatic1111 else "literal"
    return [prompt_windows(text, tokenizer, unclosed=unclosed) for tokenizer in tokenizers]


def _skip(
    model: StableDiffusion, clip_skip: int, automatic1111: bool
) -> tuple[int | None, tuple[str, ...]]:
    """How many of the last blocks are not read, None for what the model was trained with."""
    if not clip_skip:
        return None, ()
    towers = model.config.text
    first = towers[0]
    openai = first.text.activation == "quick_gelu"  # open_clip's towers have another one
    if automatic1111 and (len(towers) > 1 or first.skip or not openai):
        return None, ("clip_skip changes nothing here, as in AUTOMATIC1111 for such a model",)
    fewest = min(tower.text.layers for tower in towers)
    if clip_skip > fewest:
        raise ValueError(
            f"clip_skip counts the {fewest} blocks of the text tower from the last: it is 1 to "
            f"{fewest}, not {clip_skip}"
        )
    return clip_skip - 1, ()


def _states(
    model: StableDiffusion,
    windows: Sequence[PromptWindows],
    skip: int | None,
    keeps_mean: bool,
) -> Conditioning:
    """States of all windows in a row; the pooled vector is that of the first."""
    device = next(model.parameters()).device
    states, vector = model.encode_text([one.tokens.to(device) for one in windows], skip=skip)
    widths = [tower.text.width for tower in model.config.text]
    # plainly unless asked: where states have a mean near 0, keeping it scales them by chance
    weigh = emphasise if keeps_mean else emphasise_plainly
    parts = [  # each tower by itself: its states have a mean of their own
        weigh(part, one.weights.to(device))
        for part, one in zip(states.split(widths, dim=-1), windows, strict=True)
    ]
    context: Float[Tensor, "N T D"] = torch.cat(parts, dim=-1)
    cond = {"context": context.reshape(1, -1, context.shape[-1])}  # (1, N T, D)
    if vector is not None:
        cond["vector"] = vector[:1]
    return cond


def _sizes(size: tuple[int, int], count: int, score: float) -> Float[Tensor, "1 _"]:
    """What SDXL is told beside the text: the size before cropping, the corner of the crop, and the
    size wanted (arXiv:2307.01952, section 2.2); its refiner a score in place of the last.
    """
    known = [*size, 0, 0, *size] if count == 6 else [*size, 0, 0, score]
    if len(known) != count:
        raise ValueError(
            f"this model is told {count} sizes; 6 (SDXL) and 5 (its refiner) are known"
        )
    return torch.tensor([known], dtype=torch.float32)

"""From prompts to the conditioning of the U-Net: weighted words, several windows, sizes.

Dimensions: B pictures, N windows, T tokens of a window, D width of the context, V size of the
pooled vector, S numbers of the size conditioning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Num
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

GOOD_SCORE, BAD_SCORE = 6.0, 2.5
"""Aesthetic scores that SDXL's refiner reads with the prompt and with the negative prompt."""


MAX_WINDOWS = 4096
"""Windows of all texts of a prompt that changes: 2.6 GB for SDXL."""


class EncodedPrompts(NamedTuple):
    """Conditioning of one picture; the first dimension of every tensor is 1."""

    cond: Conditioning
    uncond: Conditioning
    notes: tuple[str, ...]
    """How the prompts were read, for the user."""


def encode_prompts(
    model: StableDiffusion,
    tokenizers: Sequence[Tokenizer],
    prompt: str,
    negative: str,
    size: tuple[int, int],
    *,
    clip_skip: int = 0,
    automatic1111: bool = False,
) -> EncodedPrompts:
    """Encode a prompt and a negative prompt, padded to the same number of windows.

    `size` is the height and width of the picture. `automatic1111` follows that program: an unclosed
    bracket weights what follows it, weighted states keep their mean, and `clip_skip` is ignored
    unless the model has a single OpenAI CLIP tower that is read at its last block.

    Raises:
        ValueError: the prompt is too long, or `clip_skip` is larger than the number of blocks.
    """
    skip, notes = skipped_blocks(model, clip_skip, automatic1111)
    encoder = PromptEncoder(model, tokenizers, size, skip, automatic1111)
    (cond,), uncond = encoder.encode([prompt], negative)
    return EncodedPrompts(cond, uncond, (*encoder.notes, *notes))


@dataclass
class PromptEncoder:
    """Encodes texts, each once."""

    model: StableDiffusion
    tokenizers: Sequence[Tokenizer]
    size: tuple[int, int]
    skip: int | None
    automatic1111: bool
    notes: dict[str, None] = field(default_factory=dict)
    split: dict[str, list[PromptWindows]] = field(default_factory=dict)
    encoded: dict[tuple[str, int], Conditioning] = field(default_factory=dict)
    windows: int = 0

    def encode(
        self, texts: Sequence[str], negative: str
    ) -> tuple[list[Conditioning], Conditioning]:
        """The conditioning of each text and of the negative one, all with as many windows."""
        split = [self._split(text) for text in texts]
        avoided = self._split(negative, "negative: ")
        count = max(len(windows[0].tokens) for windows in (*split, avoided))
        conds = [self._states(text, count) for text in texts]
        uncond = self._states(negative, count)
        if not negative.strip() and self.model.config.sampling.zeros_for_empty:
            uncond = {name: torch.zeros_like(tensor) for name, tensor in uncond.items()}
        if numbers := self.model.config.sizes:
            for part, score in (*((cond, GOOD_SCORE) for cond in conds), (uncond, BAD_SCORE)):
                sizes = size_conditioning(numbers, uncropped(self.size), score)
                part["sizes"] = sizes.to(part["context"].device)
        return conds, uncond

    def _split(self, text: str, label: str = "") -> list[PromptWindows]:
        if text not in self.split:
            unclosed: Unclosed = "weighs" if self.automatic1111 else "literal"
            self.split[text] = [
                prompt_windows(text, tokenizer, unclosed=unclosed) for tokenizer in self.tokenizers
            ]
        windows = self.split[text]
        self.notes |= dict.fromkeys(label + note for note in windows[0].notes)
        return windows

    def _states(self, text: str, count: int) -> Conditioning:
        """States and vector of a text, filled up with empty windows to `count`."""
        if (text, count) not in self.encoded:
            self.windows += count
            if self.windows > MAX_WINDOWS:
                raise ValueError(
                    f"the texts of all steps have more than {MAX_WINDOWS:,} windows of tokens: "
                    "shorten the prompt, or let it change in fewer steps"
                )
            padded = [
                pad_windows(windows, count, tokenizer)
                for windows, tokenizer in zip(self.split[text], self.tokenizers, strict=True)
            ]
            self.encoded[text, count] = _encode(self.model, padded, self.skip, self.automatic1111)
        return dict(self.encoded[text, count])


def expand_batch(cond: Conditioning, count: int) -> Conditioning:
    """The conditioning of one picture, expanded to a batch of `count`."""
    return {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in cond.items()}


def uncropped(size: tuple[int, int]) -> Float[Tensor, "1 6"]:
    """The crop, as in `size_conditioning`, of an uncropped picture of this height and width."""
    return torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32)


def size_conditioning(
    count: int, crop: Num[Tensor, "B 6"], score: float = GOOD_SCORE
) -> Num[Tensor, "B S"]:
    """SDXL's conditioning on sizes in pixels, `count` numbers (arXiv:2307.01952, section 2.2).

    `crop` has the original height and width, top and left of the crop, and the height and width
    after it. SDXL reads these six; its refiner reads five, an aesthetic score in place of the last
    two.

    Raises:
        ValueError: `count` is neither 5 nor 6.
    """
    if count == 6:
        return crop
    if count == 5:
        return torch.cat(
            [crop[:, :4], crop.new_full((len(crop), 1), score, dtype=torch.float32)], 1
        )
    raise ValueError(
        f"the U-Net reads {count} sizes; only 6 (SDXL) and 5 (its refiner) are supported"
    )


def skipped_blocks(
    model: StableDiffusion, clip_skip: int, automatic1111: bool
) -> tuple[int | None, tuple[str, ...]]:
    """How many of the last blocks are skipped (None: as in training), and notes."""
    if not clip_skip:
        return None, ()
    towers = model.config.text
    first = towers[0]
    openai = first.text.activation == "quick_gelu"  # open_clip's towers use gelu
    if automatic1111 and (len(towers) > 1 or first.skip or not openai):
        return None, ("clip_skip is ignored for this model, as in AUTOMATIC1111",)
    fewest = min(tower.text.layers for tower in towers)
    if clip_skip > fewest:
        raise ValueError(
            f"clip_skip must be 1 to {fewest}, the number of blocks of the text tower, not "
            f"{clip_skip}"
        )
    return clip_skip - 1, ()


def _encode(
    model: StableDiffusion,
    windows: Sequence[PromptWindows],
    skip: int | None,
    keep_mean: bool,
) -> Conditioning:
    """The states of all windows in a row, weighted, and the pooled vector of the first window."""
    device = next(model.parameters()).device
    states, vector = model.encode_text([one.tokens.to(device) for one in windows], skip=skip)
    widths = [tower.text.width for tower in model.config.text]
    # Where states have a mean near 0, restoring it would scale them by an arbitrary factor.
    weigh = emphasise if keep_mean else emphasise_plainly
    parts = [  # tower by tower, because each keeps its mean
        weigh(part, one.weights.to(device))
        for part, one in zip(states.split(widths, dim=-1), windows, strict=True)
    ]
    context: Float[Tensor, "N T D"] = torch.cat(parts, dim=-1)
    cond = {"context": context.reshape(1, -1, context.shape[-1])}  # (1, N T, D)
    if vector is not None:
        cond["vector"] = vector[:1]
    return cond

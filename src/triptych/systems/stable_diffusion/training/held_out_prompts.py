"""What a text-to-image model draws for held-out prompts, and whether it is what they say.

Dimensions: N prompts.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from torch import nn

from triptych.data.captions import sentences
from triptych.data.order.batches import take_first
from triptych.data.scene_source import SceneSource
from triptych.data.source import Source
from triptych.diffusion.denoiser import Conditioning
from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.spacing import Kind
from triptych.systems.stable_diffusion.encode_prompts import (
    BAD_SCORE,
    GOOD_SCORE,
    size_conditioning,
    uncropped,
)
from triptych.systems.stable_diffusion.model import StableDiffusion, sample
from triptych.systems.stable_diffusion.report import judged as by_judge
from triptych.text.tokenizer import Tokenizer
from triptych.vision.grids import contact_sheet
from triptych.vision.images import to_pictures

SHOWN = 15  # prompts of a run's sheet
JUDGED = 200  # prompts that the exact judge looks at during training
CHUNK, PIXELS = 50, 1 << 22  # pictures, and pixels, that are drawn at once

Tokenizers = Sequence[Tokenizer]


def tell(
    model: StableDiffusion,
    tokenizers: Tokenizers,
    texts: Sequence[str],
    score: float = GOOD_SCORE,
) -> Conditioning:
    """The conditioning of plain texts: states, and where the U-Net reads them, the pooled vector
    and sizes. `score` is the aesthetic score for SDXL's refiner.

    A text that is longer than the window loses its end.
    """
    device = next(model.parameters()).device
    tokens = [tokenizer.encode(list(texts)).tokens.to(device) for tokenizer in tokenizers]
    context, vector = model.encode_text(tokens)
    cond = {"context": context}
    if vector is not None:
        cond["vector"] = vector
    if count := model.config.sizes:
        size = model.config.sampling.height, model.config.sampling.width
        sizes = size_conditioning(count, uncropped(size), score).to(device)
        cond["sizes"] = sizes.expand(len(texts), -1)
    return cond


def prompts_of(test: Source, count: int, templates: Sequence[str]) -> list[str]:
    """Captions of the first held-out pictures, or sentences of their class names."""
    batch = take_first(test, count)
    if "caption" in batch:
        return list(batch["caption"])
    labels = batch["label"].tolist()
    return sentences(test.info.classes, labels, templates, range(len(labels)))


def drawn(
    model: StableDiffusion,
    tokenizers: Tokenizers,
    prompts: Sequence[str],
    *,
    guidance: float | None = None,
    sampler: str = "",
    steps: int = 0,
    spacing: Kind | None = None,
    first_seed: int = 0,
) -> UInt8[np.ndarray, "N _H _W _C"]:
    """One picture a prompt; picture i has seed i. What is not given is the configuration's."""
    size = model.config.sampling.height, model.config.sampling.width
    found = []
    together = max(1, min(CHUNK, PIXELS // (size[0] * size[1])))
    for start in range(0, len(prompts), together):
        texts = prompts[start : start + together]
        seeds = [first_seed + start + i for i in range(len(texts))]
        with torch.inference_mode():
            cond = tell(model, tokenizers, texts)
            uncond = tell(model, tokenizers, [""] * len(texts), BAD_SCORE)
            *_, last = sample(
                model,
                cond,
                uncond,
                PictureNoise(seeds),
                sampler=sampler,
                steps=steps,
                spacing=spacing,
                guidance=guidance,
            )
            found.append(to_pictures(model.autoencoder.decode(last.x, size).float().cpu()))
    return np.concatenate(found)


def prompt_sheet(
    test: Source, tokenizers: Tokenizers, templates: Sequence[str], count: int = SHOWN
) -> Callable[[nn.Module], np.ndarray]:
    """A function of the model: its pictures of the first held-out prompts, each above its own."""
    prompts = prompts_of(test, count, templates)

    def draw(module: nn.Module) -> np.ndarray:
        assert isinstance(module, StableDiffusion)
        return contact_sheet(list(drawn(module, tokenizers, prompts)), prompts)

    return draw


def judged(
    model: StableDiffusion,
    tokenizers: Tokenizers,
    prompts: Sequence[str],
    *,
    guidance: float | None = None,
) -> dict[str, float]:
    """The share of pictures of the built-in world that are what their prompt says, as a whole and
    attribute by attribute, by the exact judge; and `nearest`, how far off the objects are, half of
    them at most.
    """
    pictures = drawn(model, tokenizers, prompts, guidance=guidance)
    shares, nearest = by_judge(pictures, prompts)
    row = {name: share.value for name, share in shares["all"].items()}
    if nearest["all"].distances:
        row["nearest"] = nearest["all"].distances[1]
    return row


def held_out_judge(
    test: Source, tokenizers: Tokenizers
) -> Callable[[StableDiffusion], dict[str, float]] | None:
    """`judged` on the first prompts of the built-in world; None for other sources."""
    if not isinstance(test, SceneSource):
        return None
    prompts = prompts_of(test, JUDGED, ())
    return lambda model: judged(model, tokenizers, prompts)

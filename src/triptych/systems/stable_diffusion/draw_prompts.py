"""Pictures of plain prompts, in memory: for a model that is being trained or judged.

Dimensions: N prompts.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import UInt8

from triptych.diffusion.denoiser import Conditioning
from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.spacing import Kind
from triptych.systems.stable_diffusion.inputs.encode_prompts import (
    BAD_SCORE,
    GOOD_SCORE,
    size_conditioning,
    uncropped,
)
from triptych.systems.stable_diffusion.model import StableDiffusion, sample
from triptych.text.tokenizer import Tokenizer
from triptych.vision.images import to_pictures

CHUNK, PIXELS = 50, 1 << 22  # most pictures, and most pixels, of a batch

Tokenizers = Sequence[Tokenizer]


def encode_texts(
    model: StableDiffusion,
    tokenizers: Tokenizers,
    texts: Sequence[str],
    score: float = GOOD_SCORE,
) -> Conditioning:
    """The conditioning of texts without weighted words: states, and where the U-Net reads them, the
    pooled vector and sizes. `score` is the aesthetic score for SDXL's refiner.

    The end of a text that is longer than the window is cut.
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


def draw_prompts(
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
    """One picture per prompt, picture i from seed `first_seed + i`; None, an empty string or 0 mean
    the model's own setting.
    """
    size = model.config.sampling.height, model.config.sampling.width
    pictures = []
    batch = max(1, min(CHUNK, PIXELS // (size[0] * size[1])))
    for start in range(0, len(prompts), batch):
        texts = prompts[start : start + batch]
        seeds = [first_seed + start + i for i in range(len(texts))]
        with torch.inference_mode():
            cond = encode_texts(model, tokenizers, texts)
            uncond = encode_texts(model, tokenizers, [""] * len(texts), BAD_SCORE)
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
            pictures.append(to_pictures(model.autoencoder.decode(last.x, size).float().cpu()))
    return np.concatenate(pictures)

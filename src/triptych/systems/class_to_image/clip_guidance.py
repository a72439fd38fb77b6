"""CLIP guidance of class-conditional diffusion: a differentiable score of a prompt.

Dimensions: B pictures, C channels, H height, W width, S side, N cutouts.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from triptych import runtime
from triptych.diffusion.clip_guidance import Score, guide_by_score
from triptych.diffusion.steps import Denoiser
from triptych.systems.class_to_image.request import ClassToImage
from triptych.vision.transforms import ImageTransform
from triptych.weights.loaded import TWO_TOWERS, Loaded

SMALLEST = 0.4  # side of a cutout, as a share of the picture's
MOST = 0.25  # largest change of x0 per step: more adds noise that only CLIP scores high


def prompt_score(loaded: Loaded, prompt: str, cutouts: int = 0, seed: int = 0) -> Score:
    """A score of pictures x0: the logit of the prompt under a CLIP or SigLIP.

    With `cutouts`, the mean logit of as many random squares of the picture, which suppresses
    patterns that fool the model at one place and size. Squares are drawn anew at each call, the
    same for every picture of the batch, in an order that `seed` determines.

    Raises:
        ValueError: the model is no CLIP or SigLIP with a fixed picture size.
    """
    transform = loaded.transform
    if loaded.card.model not in TWO_TOWERS or not isinstance(transform, ImageTransform):
        raise ValueError(
            f"{loaded.name} cannot guide: give a CLIP or SigLIP with a fixed picture size"
        )
    model, weight = loaded.model, next(loaded.model.get_submodule("image").parameters())
    text = loaded.embed_text([prompt]).clone().to(weight.device)
    generator = runtime.generator(runtime.key(seed, "cutouts"))

    def score(x0: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        views = [x0] if not cutouts else [_random_cutout(x0, generator) for _ in range(cutouts)]
        pixels = torch.cat([resize_to_square(view, transform.size) for view in views])
        with torch.autocast(x0.device.type, enabled=False):  # the precision of the CLIP
            image = model.embed_image(transform.normalise(pixels).to(weight.dtype))  # type: ignore[operator]
            logits: Tensor = model.logits(image, text)  # type: ignore[operator]
        return logits.float().view(len(views), len(x0)).mean(0)

    return score


def guide_with_clip(request: ClassToImage, loaded: Loaded, denoise: Denoiser) -> Denoiser:
    """A denoiser that also follows the gradient of the request's CLIP prompt."""
    seed = request.seed or 0
    score = prompt_score(loaded, request.clip_prompt, request.clip_cutouts, seed)
    return guide_by_score(denoise, score, request.clip_scale, most=MOST)


def resize_to_square(images: Float[Tensor, "B C H W"], side: int) -> Float[Tensor, "B 3 S S"]:
    """Differentiable resizing without a crop, so that all parts are guided; grey becomes RGB."""
    images = images.float().clamp(-1, 1).expand(-1, 3, -1, -1)  # as when saved
    return F.interpolate(
        images, (side, side), mode="bicubic", antialias=True, align_corners=False
    ).clamp(-1, 1)


def _random_cutout(
    images: Float[Tensor, "B C H W"], generator: torch.Generator
) -> Float[Tensor, "B C S S"]:
    height, width = images.shape[2:]
    share, down, across = torch.rand(3, generator=generator).tolist()
    side = max(1, round(min(height, width) * (SMALLEST + (1 - SMALLEST) * share)))
    top, left = round(down * (height - side)), round(across * (width - side))
    return images[:, :, top : top + side, left : left + side]

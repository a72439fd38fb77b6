"""What a CLIP or SigLIP says of pictures while they are drawn: a score that gradients go through.

Dimensions: B pictures, C channels, H height, W width, S side, N cutouts.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from triptych import runtime
from triptych.diffusion.clip_guidance import Score, clip_guided
from triptych.diffusion.samplers import Denoiser
from triptych.systems.class_to_image.request import ClassToImage
from triptych.vision.transforms import ImageTransform
from triptych.weights.loaded import TWO_TOWERS, Loaded

SMALLEST = 0.4  # of a cutout's side, as a share of the picture's
MOST = 0.25  # x0 is moved by at most this at each step: more makes noise that only CLIP likes


def prompt_score(loaded: Loaded, prompt: str, cutouts: int = 0, seed: int = 0) -> Score:
    """The logit of a prompt: CLIP's cosine times its learned scale, SigLIP's with its bias.

    `cutouts` shows so many random squares instead of the whole picture, and takes the mean: what
    only fools the model at one place and size does not pay. Squares are drawn anew at each call
    from the seed, the same ones for every picture.

    Raises:
        ValueError: the model is no CLIP or SigLIP, or takes no pictures of one fixed size.
    """
    transform = loaded.transform
    if loaded.card.model not in TWO_TOWERS or not isinstance(transform, ImageTransform):
        raise ValueError(
            f"{loaded.name} cannot guide: that takes a CLIP or SigLIP that reads pictures of one "
            "size"
        )
    model, weight = loaded.model, next(loaded.model.get_submodule("image").parameters())
    text = loaded.embed_text([prompt]).clone().to(weight.device)
    generator = runtime.generator(runtime.key(seed, "cutouts"))

    def score(x0: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
        views = [x0] if not cutouts else [_cutout(x0, generator) for _ in range(cutouts)]
        pixels = torch.cat([resized(view, transform.size) for view in views])
        with torch.autocast(x0.device.type, enabled=False):  # the model has its own precision
            image = model.embed_image(transform.normalise(pixels).to(weight.dtype))  # type: ignore[operator]
            logits: Tensor = model.logits(image, text)  # type: ignore[operator]
        return logits.float().view(len(views), len(x0)).mean(0)

    return score


def guided_by(request: ClassToImage, loaded: Loaded, denoise: Denoiser) -> Denoiser:
    """A denoiser that also listens to the request's CLIP."""
    seed = request.seed or 0
    score = prompt_score(loaded, request.clip_prompt, request.clip_cutouts, seed)
    return clip_guided(denoise, score, request.clip_scale, most=MOST)


def resized(images: Float[Tensor, "B C H W"], side: int) -> Float[Tensor, "B 3 S S"]:
    """Squashed to a square, differentiably; grey becomes three equal channels.

    A picture that guidance is for is square in nearly all cases, and where it is not, cutting its
    sides off would leave them unguided.
    """
    images = images.float().clamp(-1, 1).expand(-1, 3, -1, -1)  # as they are saved
    return F.interpolate(
        images, (side, side), mode="bicubic", antialias=True, align_corners=False
    ).clamp(-1, 1)


def _cutout(
    images: Float[Tensor, "B C H W"], generator: torch.Generator
) -> Float[Tensor, "B C S S"]:
    height, width = images.shape[2:]
    share, down, across = torch.rand(3, generator=generator).tolist()
    side = max(1, round(min(height, width) * (SMALLEST + (1 - SMALLEST) * share)))
    top, left = round(down * (height - side)), round(across * (width - side))
    return images[:, :, top : top + side, left : left + side]

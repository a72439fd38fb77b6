"""From texts or image embeddings to pictures: prior, decoder, upsamplers, one after the other.

A picture's noise is drawn from one stream in this order: the prior's start and steps, the
decoder's, those of each upsampler.

Dimensions: B pictures, E width of embeddings, T tokens, C channels, H height, W width.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from triptych import runtime
from triptych.backends.bfloat16 import bfloat16_weights
from triptych.diffusion.denoiser import Conditioning
from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.steps import Step
from triptych.systems.unclip import autoregressive, decoder, prior, upsampler
from triptych.systems.unclip.model import Unclip
from triptych.systems.unclip.request import UnclipPictures
from triptych.text.tokenizer import Tokenizer

Item = TypeVar("Item")


def encode(model: Unclip, tokenizer: Tokenizer, texts: Sequence[str]) -> Conditioning:
    """Embedding, states and mask of texts; the end of one that is too long is cut."""
    return model.encode_texts(*tokenise(tokenizer, texts, model.decoder.null_image.device))


def tokenise(
    tokenizer: Tokenizer, texts: Sequence[str], device: torch.device
) -> tuple[Int64[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Tokens of texts, and which of them are no padding."""
    encoded = tokenizer.encode(list(texts))
    inside = torch.arange(encoded.tokens.shape[1]) < encoded.lengths[:, None]
    return encoded.tokens.to(device), inside.to(device)


@contextmanager
def in_precision(network: nn.Module, request: UnclipPictures) -> Iterator[Callable[[], Any]]:
    """Weights in the precision of a request; yields what makes the context of one computation."""
    device = next(network.parameters()).device
    half = runtime.precision(request.precision, device) == "bfloat16"
    with bfloat16_weights(network, half):
        yield partial(torch.autocast, device.type, torch.bfloat16, half)


def compute_in_precision(
    network: nn.Module, steps: Iterator[Item], request: UnclipPictures
) -> Iterator[Item]:
    """The steps of a sampler by a network, in the precision of a request. The mode is entered anew
    for each: left open over a yield it would apply to the caller.
    """
    with in_precision(network, request) as mode:
        while True:
            with mode():
                step = next(steps, None)
            if step is None:
                return
            yield step


def draw_embeddings(
    model: Unclip,
    cond: Conditioning,
    uncond: Conditioning,
    noise: PictureNoise,
    request: UnclipPictures,
) -> Generator[float, None, Float[Tensor, "B E"]]:
    """Image embeddings of texts by the prior that the request names; yields the share of its work.

    Of several candidates the one nearest to the text is taken, by their dot product. Those after
    the first have streams of their own, so that pictures of one candidate keep their noise.

    Raises:
        ValueError: the model has no prior.
    """
    text = cond["text"]
    if request.prior == "none":
        return text
    if request.prior == "autoregressive":
        return (yield from _draw_codes(model, cond, uncond, noise, request))
    if model.prior is None:
        raise ValueError(
            "this model has no prior, which draws from prompts: its pictures are variations of "
            "others (image), or use the text embedding (prior none)"
        )
    best, count = torch.zeros_like(text), model.prior.config.candidates
    for number in range(count):
        if number:
            seeds = [runtime.key(stream.seed, "candidate", number) for stream in noise.streams]
            noise = PictureNoise(seeds)
        steps = prior.sample(
            model.prior,
            cond,
            uncond,
            noise,
            steps=request.prior_steps,
            guidance=request.prior_guidance,
        )
        total = request.prior_steps or model.prior.config.steps
        x = text
        for taken, step in enumerate(compute_in_precision(model.prior, steps, request), 1):
            x = step.x
            yield (number + taken / total) / count
        drawn = model.finish(prior.finish(model.prior, x))
        nearer = (drawn * text).sum(1) > (best * text).sum(1)
        best = torch.where(nearer[:, None], drawn, best) if number else drawn
    return best


def _draw_codes(
    model: Unclip,
    cond: Conditioning,
    uncond: Conditioning,
    noise: PictureNoise,
    request: UnclipPictures,
) -> Generator[float, None, Float[Tensor, "B E"]]:
    """Image embeddings by the autoregressive prior, whose codes have generators of their own."""
    if model.autoregressive is None:
        raise ValueError(
            "this model has no autoregressive prior: choose another prior, or train one into the "
            "run's folder, `triptych train unclip-autoregressive --run RUN/autoregressive`"
        )
    seeds, codes = [stream.seed for stream in noise.streams], None
    total = model.autoregressive.config.components
    steps = autoregressive.sample(
        model.autoregressive, cond, uncond, seeds, guidance=request.prior_guidance
    )
    for codes in compute_in_precision(model.autoregressive, steps, request):
        yield codes.shape[1] / total
    assert codes is not None
    return model.finish(model.autoregressive.coder.decode(codes.to(cond["text"].device)))


def draw_pictures(
    model: Unclip,
    image: Float[Tensor, "B E"],
    cond: Conditioning,
    uncond: Conditioning,
    noise: PictureNoise,
    request: UnclipPictures,
    start: Float[Tensor, "B C h w"] | None = None,
    *,
    upsample: bool = True,
) -> Iterator[tuple[float, Float[Tensor, "B C H W"]]]:
    """Pictures of image embeddings and captions, by the decoder and every upsampler: the share of
    the work that is done, and the pictures so far in [-1, 1].

    From the noise of a picture that is given (`start`) DDIM draws it again, by default without
    guidance, since it was found without. Without `upsample` the decoder's pictures are the last.
    """
    networks = [model.decoder, *(model.upsamplers if upsample else ())]
    guidance = request.guidance
    if start is not None and guidance is None:
        guidance = 1.0
    shown, hidden = decoder.cut_padding(
        model.decoder.encode_condition(image, **cond),
        model.decoder.encode_condition(None, **uncond),
    )
    steps: Iterator[Step] = decoder.sample(
        model.decoder,
        shown,
        hidden,
        noise,
        steps=request.steps,
        guidance=guidance,
        sampler="" if start is None else "ddim",
        eta=None if start is None else request.eta or 0.0,
        start=start,
    )
    total, x = request.steps or model.decoder.config.steps, image
    for number, network in enumerate(networks):
        for taken, step in enumerate(compute_in_precision(network, steps, request), 1):
            x = step.x
            yield (number + taken / total) / len(networks), x
        if number + 1 < len(networks):
            following: upsampler.Upsampler = model.upsamplers[number]  # type: ignore[assignment]
            steps = upsampler.sample(
                following, x.clamp(-1, 1), noise, steps=request.upsampler_steps
            )
            total = request.upsampler_steps or following.config.steps


def without_gradients(work: Iterator[Item]) -> Iterator[Item]:
    """The same items. The mode is entered anew for each: left open over a yield it would apply to
    the caller.
    """
    while True:
        with torch.inference_mode():
            item = next(work, None)
        if item is None:
            return
        yield item

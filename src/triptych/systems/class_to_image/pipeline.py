"""ClassToImage: pictures of a class, or that complete one, from a conditional VAE, GAN or pixel
diffusion model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych import config, runtime
from triptych.diffusion.names import SAMPLERS, parse_sampler
from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.samplers import Step
from triptych.diffusion.sampling import shares
from triptych.diffusion.spacing import Kind
from triptych.systems.class_to_image.clip_guidance import guide_with_clip
from triptych.systems.class_to_image.request import ClassToImage
from triptych.systems.cvae import model as cvae
from triptych.systems.pixel_diffusion import model as pixel_diffusion
from triptych.systems.wgan import model as wgan
from triptych.vision.images import open_picture, resize_crop, to_pictures
from triptych.vision.quadrants import partial_view, quadrant_mask
from triptych.weights.loaded import Card, Load, Loaded

CHUNK = 64  # pictures that go through the network at once

SAMPLE: dict[str, Callable[..., Tensor]] = {"cvae": cvae.sample, "wgan": wgan.sample}
DIFFUSION = "pixel-diffusion"
OF_DIFFUSION = (
    "guidance", "rescale", "steps", "sampler", "spacing", "eta", "noise_source", "precision",
    "clip_prompt",
)  # fmt: skip
"""Fields of a request that only a diffusion model can use."""


@dataclass(frozen=True)
class Pictures:
    """Pictures so far; the last one that is yielded holds all that were asked for."""

    request: ClassToImage
    """As asked, with the seed that was used."""
    pictures: np.ndarray  # uint8 (N, H, W, C)
    names: tuple[str, ...]
    """What each picture shows: its class or attributes, or the file that it completes."""
    by_class: bool
    """Whether the names are classes."""
    done: float = 1.0
    """The share of the work that is done, for a bar: a diffusion model works in steps."""


def run(request: ClassToImage, load: Load) -> Iterator[Pictures]:
    """Draw the pictures, some at a time.

    Raises:
        ValueError: the model is none of these, or cannot use a condition that the request gives;
            or there is no sound picture to complete.
    """
    loaded = load(request.model, runtime.device())
    _check(request, loaded)
    if request.seed is None:
        request = replace(request, seed=runtime.drawn_seed())
    assert request.seed is not None
    device = runtime.device()  # the judge computes as precisely as what it guides
    precise = runtime.precision(request.precision, device)
    judge = load(request.clip, device, precise) if request.clip else None
    conditions, names = chosen(request, loaded.card)
    config = loaded.card.config
    by_class = config.get("condition") == "label"
    done = np.empty((0, config["height"], config["width"], config["channels"]), np.uint8)
    sampler = SAMPLERS.get(_sampler(request, loaded))
    alone = request.deterministic or (sampler is not None and not sampler.batched)
    chunk = 1 if alone else CHUNK
    for start in range(0, request.n, chunk):
        rows = range(start, min(start + chunk, request.n))
        seeds = [request.seed + i for i in rows]
        condition = None if conditions is None else conditions[rows.start : rows.stop]
        if loaded.card.model == DIFFUSION:
            for share, step in diffused(request, loaded, condition, seeds, judge):
                images = step.x
                whole = (start + share * len(rows)) / request.n
                yield Pictures(request, done, names[:start], by_class, whole)
        else:
            noise = runtime.noise((loaded.config.latent,), seeds)
            if request.truncation:
                noise = wgan.truncate(noise, request.truncation)
            images = draw(loaded, condition, noise)
        done = np.concatenate([done, to_pictures(images.float().cpu())])
        yield Pictures(request, done, names[: rows.stop], by_class, rows.stop / request.n)


def _sampler(request: ClassToImage, loaded: Loaded) -> str:
    """Our name of the sampler, where the model has one."""
    if request.sampler:
        return parse_sampler(request.sampler)[0]
    return getattr(loaded.config, "sampler", "")


def _check(request: ClassToImage, loaded: Loaded) -> None:
    """That the model makes pictures, and can use all that is asked of it."""
    model = loaded.card.model
    if model not in SAMPLE and model != DIFFUSION:
        known = " or ".join([*SAMPLE, DIFFUSION])
        raise ValueError(f"{loaded.name} is a {model}; pictures come from a {known}")
    plain = ClassToImage()
    unusable = ("truncation",) if model == DIFFUSION else OF_DIFFUSION
    for name in unusable:
        if getattr(request, name) != getattr(plain, name):
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} cannot be used: {loaded.name} is a {model}")
    if request.guidance is not None and loaded.card.config.get("condition") == "none":
        raise ValueError("--guidance cannot be used: this model is conditioned on nothing")


def diffused(
    request: ClassToImage,
    loaded: Loaded,
    condition: Tensor | None,
    seeds: Sequence[int],
    judge: Loaded | None = None,
) -> Iterator[tuple[float, Step]]:
    """The steps of a sampler, each with the share of the way that is done. `judge` is the CLIP that
    reads the request's clip_prompt.
    """
    device = next(loaded.model.parameters()).device
    bfloat16 = runtime.precision(request.precision, device) == "bfloat16"
    model: pixel_diffusion.PixelDiffusion = loaded.model  # type: ignore[assignment]
    sampler, behind = parse_sampler(request.sampler) if request.sampler else ("", "")
    spacing: Kind | None = request.spacing or behind or None  # type: ignore[assignment]
    steps = pixel_diffusion.sample(
        model,
        None if condition is None else condition.to(device),
        PictureNoise(seeds, request.noise_source),
        sampler=sampler,
        steps=request.steps,
        spacing=spacing,
        guidance=request.guidance,
        rescale=request.rescale,
        eta=request.eta,
        steer=partial(guide_with_clip, request, judge) if judge else None,
    )
    walked = pixel_diffusion.sampling_levels(model, request.steps, spacing, sampler, request.eta)
    drawn = shares(sampler or model.config.sampler, steps, walked)
    while True:
        # entered anew for each step: a mode that is left open over a yield would be the caller's
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, bfloat16):
            step = next(drawn, None)
        if step is None:
            return
        yield step


def draw(loaded: Loaded, condition: Tensor | None, noise: Tensor) -> Tensor:
    """Pictures in [-1, 1], on the CPU, from a condition and standard normal noise (B, latent)."""
    device = next(loaded.model.parameters()).device
    condition = None if condition is None else condition.to(device)
    with torch.inference_mode():
        return SAMPLE[loaded.card.model](loaded.model, condition, noise.to(device)).float().cpu()


def chosen(request: ClassToImage, card: Card) -> tuple[Tensor | None, tuple[str, ...]]:
    """The condition of every picture, and its name."""
    kind = card.config.get("condition", "none")
    given = {"label": bool(request.label), "attributes": bool(request.attributes)}
    given |= {"vector": bool(request.vector), "image": bool(request.image)}
    for flag, used in given.items():
        if used and flag != kind:
            what = {"none": "nothing", "image": "an image to complete"}.get(kind, kind)
            raise ValueError(f"--{flag} cannot be used: this model is conditioned on {what}")
    if kind == "label":
        labels = class_labels(request, card)
        return torch.tensor(labels), tuple(card.classes[i] for i in labels)
    if kind == "attributes":
        row = [0.0] * len(card.attributes)
        for name in request.attributes:
            row[_index(name, card.attributes, "attribute")] = 1.0
        title = " ".join(request.attributes) or "no attributes"
        return torch.tensor(row).repeat(request.n, 1), (title,) * request.n
    if kind == "vector":
        if len(request.vector) != len(card.vector):
            raise ValueError(f"--vector needs {len(card.vector)} numbers: {', '.join(card.vector)}")
        title = " ".join(f"{n} {v:g}" for n, v in zip(card.vector, request.vector, strict=True))
        mean, std = torch.tensor(card.vector_mean), torch.tensor(card.vector_std)
        return ((torch.tensor(request.vector) - mean) / std).repeat(request.n, 1), (
            title,
        ) * request.n
    if kind == "image":
        view = visible(request.image, card)
        return view.expand(request.n, *view.shape[1:]), (Path(request.image).name,) * request.n
    if kind == "none":
        return None, ("",) * request.n
    raise ValueError(f"this model is conditioned on {kind}, which `generate` cannot give it")


def visible(image: str, card: Card) -> Tensor:
    """What a model that completes pictures sees of a picture file, (1, C + 1, H, W).

    Raises:
        ValueError: no file was named, it is no sound picture, or it cannot be brought to the
            model's size.
    """
    if not image:
        raise ValueError("this model completes pictures: give it one with --image FILE")
    if not card.quadrants:
        raise ValueError(
            "this model's config.json does not say which part of a picture it was shown in "
            'training: add "quadrants": 1, 2 or 3 to it, as in run.json'
        )
    height, width, channels = (card.config[name] for name in ("height", "width", "channels"))
    try:
        picture = open_picture(Path(image), channels=channels, near=max(height, width))
    except ValueError as error:
        raise ValueError(f"--image {image}: {error}") from error
    if height == width:
        picture = resize_crop(picture, height)
    elif picture.shape[:2] != (height, width):
        given = f"{picture.shape[0]} x {picture.shape[1]}"
        raise ValueError(f"--image {image} must be {height} x {width} pixels, not {given}")
    pixels = torch.tensor(picture).permute(2, 0, 1)[None] / 127.5 - 1
    return partial_view(pixels, quadrant_mask(height, width, card.quadrants))


def class_labels(request: ClassToImage, card: Card) -> list[int]:
    """The class of every picture: the one asked for, or all in turn."""
    if request.label:
        return [_index(request.label, card.classes, "class")] * request.n
    return [i % len(card.classes) for i in range(request.n)]


def _index(name: str, names: Sequence[str], what: str) -> int:
    if name in names:
        return list(names).index(name)
    if what == "class" and name.isdecimal() and int(name) < len(names):
        return int(name)
    there: Any = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise ValueError(f"no {what} {name!r}.{config.nearest(name, list(names))} There are: {there}")

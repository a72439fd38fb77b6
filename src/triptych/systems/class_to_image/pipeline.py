"""Pipeline of ClassToImage: pictures of a class, with attributes, or completed from a part, by a
conditional VAE, GAN or pixel diffusion model.

Dimensions: B pictures of a batch, N pictures of the request, C channels, H height, W width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from triptych import fields, runtime
from triptych.backends.bfloat16 import bfloat16_weights
from triptych.diffusion.names import SAMPLERS, parse_sampler
from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.sampling import track_progress
from triptych.diffusion.spacing import Kind
from triptych.diffusion.steps import Step
from triptych.systems.class_to_image.clip_guidance import guide_with_clip
from triptych.systems.class_to_image.request import ClassToImage
from triptych.systems.cvae import model as cvae
from triptych.systems.pixel_diffusion import model as pixel_diffusion
from triptych.systems.wgan import model as wgan
from triptych.vision.given_pictures import Picture, picture_name
from triptych.vision.images import resize_crop, to_pictures
from triptych.vision.pixels import read_picture, to_pil
from triptych.vision.quadrants import partial_view, quadrant_mask
from triptych.weights.loaded import Card, Load, Loaded

BATCH = 64  # pictures of one forward pass

SAMPLE: dict[str, Callable[..., Tensor]] = {"cvae": cvae.sample, "wgan": wgan.sample}
DIFFUSION = "pixel-diffusion"
DIFFUSION_FIELDS = (
    "guidance", "rescale", "steps", "sampler", "spacing", "eta", "noise_source", "precision",
    "clip_prompt",
)  # fmt: skip
"""Fields of a request that only a diffusion model uses."""


@dataclass(frozen=True)
class Pictures:
    """The pictures so far; the last item has all of them."""

    request: ClassToImage
    """With the seed that was used."""
    pictures: np.ndarray  # uint8 (N, H, W, C)
    names: tuple[str, ...]
    """Class or attributes of each picture, or the file it completes."""
    by_class: bool
    """Whether the names are classes."""
    done: float = 1.0
    """The share of the work that is done, for a progress bar."""
    guess: Float[Tensor, "B C H W"] | None = None
    """Diffusion: the model's current estimate of the pictures of the batch, for previews."""

    @property
    def images(self) -> list[Image]:
        """The pictures as PIL's."""
        return to_pil(self.pictures)


def run(request: ClassToImage, load: Load) -> Iterator[Pictures]:
    """Draws the pictures in batches, and yields after each batch or step of a diffusion model.

    Raises:
        ValueError: the model is not one of these kinds or cannot use a field of the request, or the
            picture to complete cannot be read.
    """
    loaded = load(request.model, runtime.device())
    _check_request(request, loaded)
    if request.seed is None:
        request = replace(request, seed=runtime.drawn_seed())
    assert request.seed is not None
    device = next(loaded.model.parameters()).device
    precision = runtime.precision(request.precision, device)  # the same for both models
    clip = load(request.clip, device, precision) if request.clip else None
    conditions, names = choose_conditions(request, loaded.card)
    config = loaded.card.config
    by_class = config.get("condition") == "label"
    done = np.empty((0, config["height"], config["width"], config["channels"]), np.uint8)
    sampler = SAMPLERS.get(_sampler_name(request, loaded))
    one_by_one = request.deterministic or (sampler is not None and not sampler.batched)
    size = 1 if one_by_one else BATCH
    for start in range(0, request.n, size):
        rows = range(start, min(start + size, request.n))
        seeds = [request.seed + i for i in rows]
        condition = None if conditions is None else conditions[rows.start : rows.stop]
        if loaded.card.model == DIFFUSION:
            for share, step in sample_diffusion(request, loaded, condition, seeds, clip):
                images = step.x
                progress = (start + share * len(rows)) / request.n
                yield Pictures(request, done, names[:start], by_class, progress, step.x0)
        else:
            noise = runtime.noise((loaded.config.latent,), seeds)
            if request.truncation:
                noise = wgan.truncate(noise, request.truncation)
            images = sample_from_noise(loaded, condition, noise)
        done = np.concatenate([done, to_pictures(images.float().cpu())])
        yield Pictures(request, done, names[: rows.stop], by_class, rows.stop / request.n)


def _sampler_name(request: ClassToImage, loaded: Loaded) -> str:
    """Our name of the sampler; empty for models without one."""
    if request.sampler:
        return parse_sampler(request.sampler)[0]
    return getattr(loaded.config, "sampler", "")


def _check_request(request: ClassToImage, loaded: Loaded) -> None:
    """ValueError unless the model draws pictures and uses all fields that are set."""
    model = loaded.card.model
    if model not in SAMPLE and model != DIFFUSION:
        kinds = " or ".join([*SAMPLE, DIFFUSION])
        raise ValueError(f"{loaded.name} is a {model}; pictures come from a {kinds}")
    default = ClassToImage()
    unusable = ("truncation",) if model == DIFFUSION else DIFFUSION_FIELDS
    for name in unusable:
        if getattr(request, name) != getattr(default, name):
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} cannot be used: {loaded.name} is a {model}")
    if request.guidance is not None and loaded.card.config.get("condition") == "none":
        raise ValueError("--guidance cannot be used: this model is unconditional")


def sample_diffusion(
    request: ClassToImage,
    loaded: Loaded,
    condition: Tensor | None,
    seeds: Sequence[int],
    clip: Loaded | None = None,
) -> Iterator[tuple[float, Step]]:
    """The steps of a diffusion sampler, each with the share of the work that is done.

    `clip` is the model of the request's clip_prompt.
    """
    device = next(loaded.model.parameters()).device
    bfloat16 = runtime.precision(request.precision, device) == "bfloat16"
    model: pixel_diffusion.PixelDiffusion = loaded.model  # type: ignore[assignment]
    sampler, suffix = parse_sampler(request.sampler) if request.sampler else ("", "")
    spacing: Kind | None = request.spacing or suffix or None  # type: ignore[assignment]
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
        steer=partial(guide_with_clip, request, clip) if clip else None,
    )
    levels = pixel_diffusion.sampling_levels(model, request.steps, spacing, sampler, request.eta)
    steps_with_shares = track_progress(sampler or model.config.sampler, steps, levels)
    with bfloat16_weights(model.unet, bfloat16):
        while True:
            # entered anew for each step: left open over a yield, the modes would apply to the
            # caller
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, bfloat16):
                step = next(steps_with_shares, None)
            if step is None:
                return
            yield step


def sample_from_noise(
    loaded: Loaded, condition: Tensor | None, noise: Float[Tensor, "B _"]
) -> Float[Tensor, "B C H W"]:
    """Pictures of a VAE or GAN in [-1, 1], on the CPU; the noise is standard normal."""
    device = next(loaded.model.parameters()).device
    condition = None if condition is None else condition.to(device)
    with torch.inference_mode():
        return SAMPLE[loaded.card.model](loaded.model, condition, noise.to(device)).float().cpu()


def choose_conditions(request: ClassToImage, card: Card) -> tuple[Tensor | None, tuple[str, ...]]:
    """The condition of each picture, and its name."""
    kind = card.config.get("condition", "none")
    for flag in ("label", "attributes", "vector", "image"):
        if getattr(request, flag) and flag != kind:
            what = {"none": "nothing", "image": "an image to complete"}.get(kind, kind)
            raise ValueError(f"--{flag} cannot be used: this model is conditioned on {what}")
    if kind == "label":
        labels = choose_labels(request, card)
        return torch.tensor(labels), tuple(card.classes[i] for i in labels)
    if kind == "attributes":
        holds = [0.0] * len(card.attributes)
        for name in request.attributes:
            holds[_find_index(name, card.attributes, "attribute")] = 1.0
        title = " ".join(request.attributes) or "no attributes"
        return torch.tensor(holds).repeat(request.n, 1), (title,) * request.n
    if kind == "vector":
        if len(request.vector) != len(card.vector):
            raise ValueError(f"--vector needs {len(card.vector)} numbers: {', '.join(card.vector)}")
        title = " ".join(f"{n} {v:g}" for n, v in zip(card.vector, request.vector, strict=True))
        mean, std = torch.tensor(card.vector_mean), torch.tensor(card.vector_std)
        row = (torch.tensor(request.vector) - mean) / std
        return row.repeat(request.n, 1), (title,) * request.n
    if kind == "image":
        view = load_partial_view(request.image, card)
        return view.expand(request.n, *view.shape[1:]), (picture_name(request.image),) * request.n
    if kind == "none":
        return None, ("",) * request.n
    raise ValueError(f"this model is conditioned on {kind}, which `generate` does not support")


def load_partial_view(image: Picture, card: Card) -> Float[Tensor, "1 C+1 H W"]:
    """The visible part of a picture file, for a model that completes pictures.

    Raises:
        ValueError: there is no file name, the file is not a sound picture, or it cannot be resized
            to the model's size.
    """
    if not image:
        raise ValueError("this model completes pictures: give it one with --image FILE")
    if not card.quadrants:
        raise ValueError(
            "this model's config.json lacks the number of visible quadrants in training: add "
            '"quadrants": 1, 2 or 3 to it, as in run.json'
        )
    height, width, channels = (card.config[name] for name in ("height", "width", "channels"))
    try:
        picture = read_picture("image", image, channels=channels, near=max(height, width))
    except ValueError as error:
        raise ValueError(f"--image {image}: {error}") from error
    if height == width:
        picture = resize_crop(picture, height)
    elif picture.shape[:2] != (height, width):
        size = f"{picture.shape[0]} x {picture.shape[1]}"
        raise ValueError(f"--image {image} must be {height} x {width} pixels, not {size}")
    pixels = torch.tensor(picture).permute(2, 0, 1)[None] / 127.5 - 1
    return partial_view(pixels, quadrant_mask(height, width, card.quadrants))


def choose_labels(request: ClassToImage, card: Card) -> list[int]:
    """The class of each picture: the requested one, or all in turn."""
    if request.label:
        return [_find_index(str(request.label), card.classes, "class")] * request.n
    return [i % len(card.classes) for i in range(request.n)]


def _find_index(name: str, names: Sequence[str], what: str) -> int:
    if name in names:
        return list(names).index(name)
    if what == "class" and name.isdecimal() and int(name) < len(names):
        return int(name)
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise ValueError(f"no {what} {name!r}.{fields.nearest(name, list(names))} There are: {listed}")

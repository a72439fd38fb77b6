"""TextToImage: pictures from a prompt, alone, from a picture, or within one.

Dimensions: B pictures, Z latent channels, h w latent sides, N pictures in all, H height, W width,
C channels.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych import runtime
from triptych.diffusion.conventions import automatic1111, automatic1111_walk
from triptych.diffusion.editing import inpainting, start_at
from triptych.diffusion.names import SAMPLERS, parse_sampler
from triptych.diffusion.noise import PictureNoise, Stream
from triptych.diffusion.samplers import Level, Step
from triptych.diffusion.sampling import sample as walk
from triptych.diffusion.sampling import shares
from triptych.diffusion.spacing import Kind
from triptych.nn.circular import circular
from triptych.nn.int8 import int8
from triptych.systems.stable_diffusion.adapters.learned_words import learned_words
from triptych.systems.stable_diffusion.adapters.loras import merged_loras
from triptych.systems.stable_diffusion.encode_prompts import (
    EncodedPrompts,
    encode_prompts,
    expand_batch,
)
from triptych.systems.stable_diffusion.model import StableDiffusion, sampling_levels
from triptych.systems.stable_diffusion.openvino import (
    describe_conversion,
    in_openvino,
    unet_conversion,
)
from triptych.systems.stable_diffusion.request import TextToImage, parse_size
from triptych.systems.stable_diffusion.starting_picture import (
    Original,
    Start,
    open_original,
    prepare_start,
    tile_side,
)
from triptych.text.weighting import loras_in
from triptych.vision.images import to_pictures
from triptych.weights.loaded import Load, Loaded
from triptych.weights.openvino import require_openvino

MODEL = "stable-diffusion"
AT_ONCE = 1024 * 1024  # pixels of all pictures that go through the networks together
MOST = 64  # pictures


@dataclass(frozen=True)
class Drawing:
    """Pictures so far; the last one that is yielded holds all that were asked for."""

    request: TextToImage
    """As asked, with everything filled in that it left open: it draws the same again."""
    pictures: UInt8[np.ndarray, "N H W C"]
    done: float = 1.0
    """The share of the work that is done, for a bar."""
    guess: Float[Tensor, "B Z h w"] | None = None
    """Latents of the pictures that are being drawn, as the model expects them to end."""
    notes: tuple[str, ...] = ()
    """What someone should know: how a long prompt was read, what a LoRA changed."""

    def seeds(self, number: int) -> tuple[int, int | None]:
        """The seed and the variation seed of picture `number`, which alone draw it."""
        return _seeds(self.request, number)


def run(request: TextToImage, load: Load) -> Iterator[Drawing]:
    """Draw the pictures; an item after every step of the sampler, and one before the first where
    the U-Net must be converted for OpenVINO, which takes a while.

    LoRAs are in the model's weights from the first item to the last, and out of them again when
    the iterator ends or is closed; so is OpenVINO's U-Net in its place.

    Raises:
        ValueError: another kind of model, or something that it cannot do; a file that is no
            picture or LoRA for it.
    """
    loaded = load_model(request, load)
    model = drawing_model(loaded)
    dtype = _precision(request, model)
    original = _original(request, model)
    request = filled(request, model, original)
    _check_tiling(request, model)
    prompt, marks = loras_in(request.prompt)
    away = request.negative if request.guidance != 1 else ""  # which is then not asked
    with (
        merged_loras(model, request.loras, marks, loaded.name) as changes,
        int8(model.unet, request.quantize == "int8"),
    ):
        with (
            _computing(model, dtype),
            learned_words(model, loaded.tokenizers, (prompt, away)) as (tokenizers, words),
        ):
            text = encode_prompts(
                model, tokenizers, prompt, away, _size(request),
                clip_skip=request.clip_skip, automatic1111=_a1111(request),
            )  # fmt: skip
        notes = (*(original.notes if original else ()), *changes, *words, *text.notes)
        conversion = None
        if request.backend == "openvino":
            conversion = unet_conversion(model, request.tiling)
            if not conversion.there:
                notes += describe_conversion(conversion, model, lora=bool(changes))
                yield Drawing(request, _none_yet(request, model), 0.0, None, notes)
        with in_openvino(model, conversion, dtype, request.tiling):
            yield from _pictures(request, model, text, original, dtype, notes)


def _none_yet(request: TextToImage, model: StableDiffusion) -> UInt8[np.ndarray, "0 H W C"]:
    return np.empty((0, *_size(request), model.config.channels), np.uint8)


def _pictures(
    request: TextToImage,
    model: StableDiffusion,
    text: EncodedPrompts,
    original: Original | None,
    dtype: torch.dtype,
    notes: tuple[str, ...],
) -> Iterator[Drawing]:
    """All pictures of a filled request, as many at once as fit."""
    height, width = _size(request)
    done = _none_yet(request, model)
    alone = request.deterministic or not SAMPLERS[request.sampler].batched
    chunk = 1 if alone else max(1, min(AT_ONCE // (height * width), MOST))
    for first in range(0, request.n, chunk):
        rows = range(first, min(first + chunk, request.n))
        drawn = None
        for share, drawn in _drawn(request, model, text, original, rows, dtype):
            whole = (first + share * len(rows)) / request.n
            yield Drawing(request, done, min(whole, 0.999), drawn.x0, notes)
        assert drawn is not None
        pictures = _decoded(request, model, drawn.x, dtype)
        if original is not None and original.paint is not None:
            pictures = np.where(original.paint[:, :, None], pictures, original.picture)
        done = np.concatenate([done, pictures])
        yield Drawing(request, done, rows.stop / request.n, None, notes)


def load_model(request: TextToImage, load: Load) -> Loaded:
    """The model that a request names, its weights read in the precision that it computes in: there
    is never a larger copy of them, and nothing to convert at a step.

    Raises:
        ValueError: there is no such model, or it draws no prompts; OpenVINO is not installed.
    """
    by_openvino = request.backend == "openvino"
    if by_openvino:
        require_openvino()  # before anything takes its time
    device = runtime.device("cpu" if by_openvino else "auto")
    loaded = load(request.model, device, runtime.precision(request.precision, device))
    drawing_model(loaded)
    return loaded


def drawing_model(loaded: Loaded) -> StableDiffusion:
    """The model, if it draws from prompts and has what that takes.

    Raises:
        ValueError: it does not; says what it is.
    """
    model = loaded.model
    if not isinstance(model, StableDiffusion):
        raise ValueError(
            f"{loaded.name} is a {loaded.card.model}; pictures of a prompt come from {MODEL}"
        )
    if len(loaded.tokenizers) != len(model.text):
        raise ValueError(
            f"{loaded.name} has {len(loaded.tokenizers)} vocabularies for {len(model.text)} text "
            "towers: put the tokenizer.json of its publisher beside it"
        )
    latents, reads = model.config.unet.out_channels, model.config.unet.in_channels
    if reads not in (latents, 2 * latents + 1):
        raise ValueError(
            f"{loaded.name} draws no pictures of a prompt alone: its U-Net reads {reads} channels, "
            f"not {latents} (latents) or {2 * latents + 1} (inpainting)"
        )
    return model


def filled(
    request: TextToImage, model: StableDiffusion, original: Original | None = None
) -> TextToImage:
    """The request with what it left to the model, to the picture and to chance."""
    config = model.config.sampling
    sampler, behind = parse_sampler(request.sampler or config.sampler)
    spacing = request.spacing or behind
    if not spacing:
        spacing = automatic1111(sampler).spacing if _a1111(request) else config.spacing
    size = parse_size(request.size) or (config.width, config.height)
    strength = request.strength
    if original is not None:
        height, width = original.picture.shape[:2]
        size = width, height
        default = 1.0 if original.paint is not None else 0.75
        strength = default if strength is None else strength
    varied = request.variation_strength > 0 and request.variation_seed is None
    return replace(
        request,
        sampler=sampler,
        spacing=spacing,
        steps=request.steps or config.steps,
        guidance=config.guidance if request.guidance is None else request.guidance,
        rescale=request.rescale or config.rescale,
        size=f"{size[0]}x{size[1]}",
        strength=strength,
        seed=runtime.drawn_seed() if request.seed is None else request.seed,
        variation_seed=runtime.drawn_seed() if varied else request.variation_seed,
    )


def walk_of(request: TextToImage, model: StableDiffusion) -> tuple[list[Level], float]:
    """The levels that a filled request walks, and what noise is multiplied with at the first."""
    kind = cast(Kind, request.spacing)
    if _a1111(request):
        xl = model.config.unet.added > 0
        walked, scale = automatic1111_walk(
            model.schedule, request.sampler, request.steps, kind, xl=xl
        )
    else:
        walked, scale = sampling_levels(model, request.sampler, request.steps, kind)
    return (start_at(walked, request.strength) if request.strength else walked), scale


def _drawn(
    request: TextToImage,
    model: StableDiffusion,
    text: EncodedPrompts,
    original: Original | None,
    rows: range,
    dtype: torch.dtype,
) -> Iterator[tuple[float, Step]]:
    """The steps of a sampler, each with the share of the way that is done."""
    assert request.guidance is not None
    walked, scale = walk_of(request, model)
    seeds = [_seeds(request, number) for number in rows]
    noise = PictureNoise([seed for seed, _ in seeds], request.noise_source)
    vary = None
    if request.variation_strength:
        streams = [Stream(other or 0, request.noise_source) for _, other in seeds]
        vary = streams, request.variation_strength
    whole = request.strength in (None, 1.0)
    with _computing(model, dtype, request.tiling):
        start = prepare_start(
            model, noise, walked[0], scale, _size(request),
            original=original, from_noise=whole, vary=vary,
        )  # fmt: skip
    cond, uncond = (expand_batch(one, len(rows)) for one in (text.cond, text.uncond))
    if start.beside is not None:
        cond, uncond = ({**one, "beside": start.beside} for one in (cond, uncond))
    denoise = model.denoiser(cond, uncond, request.guidance, request.rescale)
    if start.known is not None and start.paint is not None:
        denoise = inpainting(denoise, start.known, start.paint, start.noise, walked[0])
    steps = walk(request.sampler, denoise, start.x.float(), walked, noise)
    steps_done = shares(request.sampler, steps, walked)
    while True:
        # entered anew for each step: a mode that is left open over a yield would be the caller's
        with _computing(model, dtype, request.tiling):
            drawn = next(steps_done, None)
        if drawn is None:
            return
        share, step = drawn
        if share == 1:
            step = step._replace(x=_with_known(step.x, start))
        yield share, step


def _with_known(x: Tensor, start: Start) -> Tensor:
    """Samplers that end at the least noise leave it in what is known, too."""
    if start.known is None or start.paint is None:
        return x
    return x.where(start.paint, start.known.to(x.dtype))


def _decoded(
    request: TextToImage, model: StableDiffusion, latents: Tensor, dtype: torch.dtype
) -> UInt8[np.ndarray, "B H W C"]:
    size = _size(request)
    # a tile's edges are not the picture's, so what is to meet itself is decoded whole
    tile = None if request.tiling else tile_side(*size)
    with _computing(model, dtype, request.tiling):
        return to_pictures(model.autoencoder.decode(latents, size, tile=tile).float().cpu())


@contextmanager
def _computing(model: StableDiffusion, dtype: torch.dtype, tiling: bool = False) -> Iterator[None]:
    device = next(model.parameters()).device
    half = dtype == torch.bfloat16
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, half),
        circular(model, tiling),
    ):
        yield


def _precision(request: TextToImage, model: StableDiffusion) -> torch.dtype:
    weight = next(model.unet.parameters())
    if request.backend == "openvino" and weight.device.type != "cpu":
        raise ValueError(
            f"OpenVINO computes on the CPU here, and the model that was handed in is on "
            f"{weight.device}: hand in what `ready` gives, or take the backend torch"
        )
    chosen = runtime.precision(request.precision, weight.device)
    dtype = torch.bfloat16 if chosen == "bfloat16" else torch.float32
    if weight.dtype not in (torch.float32, dtype):
        raise ValueError(
            f"the model that was handed in has weights in {weight.dtype}, which do not compute in "
            f"{chosen}: hand in float32, or what `ready` gives"
        )
    return dtype


def _original(request: TextToImage, model: StableDiffusion) -> Original | None:
    paints = model.config.unet.in_channels > model.config.unet.out_channels
    if paints and not (request.image and request.mask):
        raise ValueError(
            "this is a model for inpainting: give it a picture with --image and where to paint "
            "with --mask"
        )
    if not request.image:
        return None
    size = parse_size(request.size)
    found = open_original(
        request.image, request.mask, size and (size[1], size[0]), model.config.channels
    )
    height, width = found.picture.shape[:2]
    parse_size(f"{width}x{height}")  # of a picture the limits are the same
    return found


def _check_tiling(request: TextToImage, model: StableDiffusion) -> None:
    factor = model.config.factor
    if request.tiling and any(side % factor for side in _size(request)):
        raise ValueError(
            f"pictures that meet when they are laid side by side have sides of a multiple of "
            f"{factor} pixels here, not {request.size}"
        )


def _a1111(request: TextToImage) -> bool:
    return request.conventions == "automatic1111"


def _size(request: TextToImage) -> tuple[int, int]:
    """Height and width of a filled request."""
    size = parse_size(request.size)
    assert size is not None
    return size[1], size[0]


def _seeds(request: TextToImage, number: int) -> tuple[int, int | None]:
    """Of varied pictures the seed stays and the variation seed counts, as in AUTOMATIC1111."""
    assert request.seed is not None
    if request.variation_strength:
        assert request.variation_seed is not None
        return request.seed, request.variation_seed + number
    return request.seed + number, None

"""Text to image, image to image and inpainting.

Dimensions: B pictures, Z latent channels, h w latent sides, N pictures in all, H height, W width,
C channels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL.Image import Image
from torch import Tensor

from triptych import runtime
from triptych.backends.bfloat16 import bfloat16_weights
from triptych.backends.int8 import int8
from triptych.backends.openvino import find_conversion, require_openvino
from triptych.diffusion.editing import inpainting, start_at
from triptych.diffusion.names import SAMPLERS, parse_sampler
from triptych.diffusion.noise import PictureNoise, Stream
from triptych.diffusion.samplers.conventions import automatic1111, automatic1111_levels
from triptych.diffusion.sampling import run_sampler, track_progress
from triptych.diffusion.spacing import Kind
from triptych.diffusion.steps import Denoiser, Level, Step
from triptych.nn.circular import circular
from triptych.systems.stable_diffusion.adapters.learned_words import learned_words
from triptych.systems.stable_diffusion.adapters.loras import merged_loras
from triptych.systems.stable_diffusion.inputs.encode_steps import (
    ChangingDenoiser,
    EncodedSteps,
    expand_reading,
    join_prompts,
)
from triptych.systems.stable_diffusion.inputs.given_latents import keep, open_latents, read_latents
from triptych.systems.stable_diffusion.inputs.read_prompts import (
    encode_pairs,
    plan_batches,
    split_prompts,
)
from triptych.systems.stable_diffusion.inputs.starting_picture import (
    Original,
    open_original,
    prepare_start,
    tile_side,
)
from triptych.systems.stable_diffusion.model import (
    StableDiffusion,
    default_spacing,
    run_as_diffusers,
    sampling_levels,
)
from triptych.systems.stable_diffusion.openvino import describe_conversion, in_openvino
from triptych.systems.stable_diffusion.request import TextToImage, parse_size
from triptych.text.known_words import describe_unknown
from triptych.vision.images import to_pictures
from triptych.vision.pixels import to_pil
from triptych.weights.loaded import Load, Loaded

MODEL = "stable-diffusion"
BATCH_PIXELS = 1024 * 1024  # pixels of a batch
MAX_BATCH = 64


@dataclass(frozen=True)
class Drawing:
    """The state of sampling; the last item has all pictures."""

    request: TextToImage
    """The request with all defaults filled in, which draws the same pictures again."""
    pictures: UInt8[np.ndarray, "N H W C"]
    done: float = 1.0
    """Progress from 0 to 1."""
    guess: Float[Tensor, "B Z h w"] | None = None
    """The model's current estimate of the latents of the batch, for previews."""
    notes: tuple[str, ...] = ()
    """For the user: how a long prompt was split, which layers a LoRA changed."""
    latents: Float[Tensor, "N Z h w"] | None = None
    """What the pictures were decoded from: without noise, scaled as the autoencoder's `decode`
    takes them, float32 on the CPU; None before the first picture.
    """

    @property
    def images(self) -> list[Image]:
        """The pictures as PIL's."""
        return to_pil(self.pictures)

    def request_of(self, number: int) -> TextToImage:
        """The request that draws picture `number` alone: its prompt, its seeds, its latents."""
        request, pairs = self.request, self.request.pairs
        total = request.n * len(pairs)
        if not 0 <= number < total:
            raise ValueError(f"there is no picture {number}: the request draws {total}, from 0")
        prompt, negative = pairs[number // request.n]
        seed, variation = _seeds(request, number)
        latents = request.latents
        if latents and total > 1:
            latents = keep(open_latents(latents)[number])
        return replace(
            request,
            prompt=prompt,
            negative=negative,
            seed=seed,
            variation_seed=variation,
            n=1,
            latents=latents,
        )


class Inputs(NamedTuple):
    """What a request is turned into before sampling."""

    texts: Sequence[EncodedSteps]
    original: Original | None
    latents: Float[Tensor, "N Z h w"] | None
    """The noise to start from, where it is given."""
    notes: tuple[str, ...]


def run(request: TextToImage, load: Load) -> Iterator[Drawing]:
    """Sample the pictures. Yields after every step, and before the first one if the U-Net is to be
    converted for OpenVINO, which takes a while.

    LoRAs and OpenVINO's U-Net are in the model while the iterator runs, and removed when it ends
    or is closed.

    Raises:
        ValueError: the model is of another kind or does not support the request; a file is not a
            picture, or not a LoRA for this model.
    """
    loaded = load_model(request, load)
    model = drawing_model(loaded)
    dtype = _compute_dtype(request, model)
    original = _open_original(request, model)
    request = fill_defaults(request, model, original)
    _check_tiling(request, model)
    latents = None
    if request.latents:
        shape = model.config.latent_shape(*_size(request))
        latents = read_latents(request.latents, request.n * len(request.pairs), shape)
    split = split_prompts(request)
    with (
        merged_loras(model, request.loras, split.loras, loaded.name) as changes,
        int8(model.unet, request.quantize == "int8"),
    ):
        with (
            _inference(model, dtype),
            learned_words(model, loaded.tokenizers, sum(split.pairs, ())) as (tokenizers, words),
        ):
            texts = encode_pairs(request, model, tokenizers, split.pairs, _size(request))
            prompts = [prompt for prompt, *_ in split.pairs]
            unknown = describe_unknown(loaded.words, prompts, tokenizers[0].learned)
        remarks = dict.fromkeys(note for text in texts for note in text.notes)
        notes = (
            *(original.notes if original else ()), *split.notes, *changes, *words, *remarks,
            *unknown,
        )  # fmt: skip
        conversion = None
        if request.backend == "openvino":
            unet = model.unet
            conversion = find_conversion(unet, unet.config, "unet", tiling=request.tiling)
            if not conversion.exists:
                notes += describe_conversion(conversion, model, lora=bool(changes))
                yield Drawing(request, _no_pictures(request, model), 0.0, None, notes)
        half = dtype == torch.bfloat16 and not (conversion or request.quantize)
        with (
            in_openvino(model, conversion, dtype, request.tiling),
            bfloat16_weights(model.unet, half),
        ):
            inputs = Inputs(texts, original, latents, notes)
            yield from _sample_all(request, model, inputs, dtype)


def _no_pictures(request: TextToImage, model: StableDiffusion) -> UInt8[np.ndarray, "0 H W C"]:
    return np.empty((0, *_size(request), model.config.channels), np.uint8)


def _sample_all(
    request: TextToImage, model: StableDiffusion, inputs: Inputs, dtype: torch.dtype
) -> Iterator[Drawing]:
    """Sample all pictures of a request with defaults filled in, in batches."""
    height, width = _size(request)
    original, total = inputs.original, request.n * len(inputs.texts)
    so_far = Drawing(request, _no_pictures(request, model), 0.0, None, inputs.notes)
    single = request.deterministic or not SAMPLERS[request.sampler].batched
    batch = 1 if single else max(1, min(BATCH_PIXELS // (height * width), MAX_BATCH))
    for rows in plan_batches(inputs.texts, request.n, batch):
        step = None
        for share, step in _sample_batch(request, model, inputs, rows, dtype):
            progress = (rows.start + share * len(rows)) / total
            yield replace(so_far, done=min(progress, 0.999), guess=step.x0)
        assert step is not None
        pictures = _decode(request, model, step.x, dtype)
        if original is not None and original.paint is not None:
            pictures = np.where(original.paint[:, :, None], pictures, original.picture)
        latents = step.x.float().cpu()
        so_far = replace(
            so_far,
            pictures=np.concatenate([so_far.pictures, pictures]),
            done=rows.stop / total,
            latents=latents if so_far.latents is None else torch.cat([so_far.latents, latents]),
        )
        yield so_far


def load_model(request: TextToImage, load: Load) -> Loaded:
    """Load the model of a request, with weights in the precision that it computes in.

    Raises:
        ValueError: the model does not exist or is of another kind; OpenVINO is not installed.
    """
    by_openvino = request.backend == "openvino"
    if by_openvino:
        require_openvino()  # before loading, which takes long
    device = runtime.device("cpu" if by_openvino else "auto")
    loaded = load(request.model, device, runtime.precision(request.precision, device))
    drawing_model(loaded)
    return loaded


def drawing_model(loaded: Loaded) -> StableDiffusion:
    """The text-to-image model of `loaded`.

    Raises:
        ValueError: it is another kind of model, lacks tokenizers, or its U-Net has unsupported
            inputs.
    """
    model = loaded.model
    if not isinstance(model, StableDiffusion):
        raise ValueError(f"{loaded.name} is a {loaded.card.model}; a prompt needs a {MODEL}")
    if len(loaded.tokenizers) != len(model.text):
        raise ValueError(
            f"{loaded.name} has {len(loaded.tokenizers)} tokenizers for {len(model.text)} text "
            "towers: put the tokenizer.json of its publisher beside it"
        )
    latents, inputs = model.config.unet.out_channels, model.config.unet.in_channels
    if inputs not in (latents, 2 * latents + 1):
        raise ValueError(
            f"{loaded.name} is not supported: its U-Net reads {inputs} channels, not {latents} "
            f"(latents) or {2 * latents + 1} (inpainting)"
        )
    return model


def fill_defaults(
    request: TextToImage, model: StableDiffusion, original: Original | None = None
) -> TextToImage:
    """The request with defaults of the model, the size of the picture, and random seeds."""
    config = model.config.sampling
    sampler, suffix = parse_sampler(request.sampler or config.sampler)
    spacing = request.spacing or suffix
    if not spacing:
        theirs = _is_automatic1111(request)
        spacing = automatic1111(sampler).spacing if theirs else default_spacing(model, sampler)
    size = parse_size(request.size) or (config.width, config.height)
    if request.latents and not request.size:
        height, width = open_latents(request.latents).shape[2:]
        size = width * model.config.factor, height * model.config.factor
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


def noise_levels(request: TextToImage, model: StableDiffusion) -> tuple[list[Level], float]:
    """The noise levels of a request with defaults filled in, and the scale of the first noise."""
    kind = cast(Kind, request.spacing)
    if _is_automatic1111(request):
        xl = model.config.unet.added > 0
        levels, scale = automatic1111_levels(
            model.schedule, request.sampler, request.steps, kind, xl=xl
        )
    else:
        levels, scale = sampling_levels(model, request.sampler, request.steps, kind)
    return (start_at(levels, request.strength) if request.strength else levels), scale


def _sample_batch(
    request: TextToImage,
    model: StableDiffusion,
    inputs: Inputs,
    rows: range,
    dtype: torch.dtype,
) -> Iterator[tuple[float, Step]]:
    """Run the sampler on one batch; yields each step with the progress from 0 to 1."""
    levels, scale = noise_levels(request, model)
    seeds = [_seeds(request, number) for number in rows]
    noise = PictureNoise([seed for seed, _ in seeds], request.noise_source)
    vary = None
    if request.variation_strength:
        streams = [Stream(other or 0, request.noise_source) for _, other in seeds]
        vary = streams, request.variation_strength
    from_noise = request.strength in (None, 1.0)
    with _inference(model, dtype, request.tiling):
        start = prepare_start(
            model, noise, levels[0], scale, _size(request),
            original=inputs.original, from_noise=from_noise, vary=vary,
            latents=None if inputs.latents is None else inputs.latents[rows.start : rows.stop],
        )  # fmt: skip
    text = join_prompts([inputs.texts[row // request.n] for row in rows])
    changing = _changing_denoiser(request, model, text, len(rows), start.beside)
    denoise: Denoiser = changing
    if start.known is not None and start.paint is not None:
        denoise = inpainting(denoise, start.known, start.paint, start.noise, levels[0])
    take_steps = run_sampler if _is_automatic1111(request) else partial(run_as_diffusers, model)
    steps = take_steps(request.sampler, denoise, start.x.float(), levels, noise)
    with_progress = track_progress(request.sampler, steps, levels)
    share = 0.0
    while True:
        adapts = not SAMPLERS[request.sampler].batched
        changing.begin_step(int(share * request.steps) if adapts else None)
        # entered again for each step: a mode left open over a yield would apply to the caller
        with _inference(model, dtype, request.tiling):
            item = next(with_progress, None)
        if item is None:
            return
        share, step = item
        if share == 1 and start.known is not None and start.paint is not None:
            # samplers that end at the smallest noise leave it outside the mask, too
            step = step._replace(x=step.x.where(start.paint, start.known.to(step.x.dtype)))
        yield share, step


def _changing_denoiser(
    request: TextToImage,
    model: StableDiffusion,
    text: EncodedSteps,
    count: int,
    beside: Tensor | None,
) -> ChangingDenoiser:
    """The denoiser of a batch of `count` pictures."""

    def build(place: int) -> Denoiser:
        assert request.guidance is not None
        cond, uncond = expand_reading(text.readings[place], count, beside)
        return model.denoiser(cond, uncond, request.guidance, request.rescale)

    return ChangingDenoiser(build, text.order, by_calls=_is_automatic1111(request))


def _decode(
    request: TextToImage, model: StableDiffusion, latents: Tensor, dtype: torch.dtype
) -> UInt8[np.ndarray, "B H W C"]:
    size = _size(request)
    # with circular padding a tile's edges would wrap around instead of the picture's
    tile = None if request.tiling else tile_side(*size)
    with _inference(model, dtype, request.tiling):
        return to_pictures(model.autoencoder.decode(latents, size, tile=tile).float().cpu())


@contextmanager
def _inference(model: StableDiffusion, dtype: torch.dtype, tiling: bool = False) -> Iterator[None]:
    device = next(model.parameters()).device
    half = dtype == torch.bfloat16
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, half),
        circular(model, tiling),
    ):
        yield


def _compute_dtype(request: TextToImage, model: StableDiffusion) -> torch.dtype:
    weight = next(model.unet.parameters())
    if request.backend == "openvino" and weight.device.type != "cpu":
        raise ValueError(
            f"OpenVINO runs on the CPU, but the model is on {weight.device}: load it with "
            "`load_model`, or use the backend torch"
        )
    precision = runtime.precision(request.precision, weight.device)
    if request.precision == "auto" and weight.dtype == torch.bfloat16:
        precision = "bfloat16"  # as the model was loaded
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    if weight.dtype not in (torch.float32, dtype):
        raise ValueError(
            f"the model has weights in {weight.dtype}, which do not compute in {precision}: load "
            "it in float32, or with `load_model`"
        )
    return dtype


def _open_original(request: TextToImage, model: StableDiffusion) -> Original | None:
    inpaints = model.config.unet.in_channels > model.config.unet.out_channels
    if inpaints and not (request.image and request.mask):
        raise ValueError(
            "this is a model for inpainting: give a picture with --image and a mask with --mask"
        )
    if not request.image:
        return None
    size = parse_size(request.size)
    original = open_original(
        request.image, request.mask, size and (size[1], size[0]), model.config.channels
    )
    height, width = original.picture.shape[:2]
    if not all(16 <= side <= 4096 for side in (width, height)):
        raise ValueError(f"image has {width}x{height} pixels: each side must be 16 to 4096")
    return original


def _check_tiling(request: TextToImage, model: StableDiffusion) -> None:
    factor = model.config.factor
    if request.tiling and any(side % factor for side in _size(request)):
        raise ValueError(
            f"with tiling, sides must be a multiple of {factor} pixels for this model, not "
            f"{request.size}"
        )


def _is_automatic1111(request: TextToImage) -> bool:
    return request.conventions == "automatic1111"


def _size(request: TextToImage) -> tuple[int, int]:
    """Height and width of a request with defaults filled in."""
    size = parse_size(request.size)
    assert size is not None
    return size[1], size[0]


def _seeds(request: TextToImage, number: int) -> tuple[int, int | None]:
    """The seeds of a picture: with a variation, only the variation seed counts up, as in
    AUTOMATIC1111.
    """
    assert request.seed is not None
    if request.variation_strength:
        assert request.variation_seed is not None
        return request.seed, request.variation_seed + number
    return request.seed + number, None

"""Training of an upsampler on crops of pictures and their degraded small ones."""

from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from triptych import runtime
from triptych.data.order.batches import take_first
from triptych.data.source import Source
from triptych.data.sources import open_train_and_test
from triptych.diffusion.noise import PictureNoise
from triptych.fields import to_json
from triptych.nn.loss import Loss
from triptych.systems.unclip.degradation import degrade
from triptych.systems.unclip.request import TrainUnclipUpsampler
from triptych.systems.unclip.training.prior_recipe import update
from triptych.systems.unclip.upsampler import (
    Upsampler,
    UpsamplerConfig,
    enlarge,
    objective,
    psnr,
    sample,
    shrink,
)
from triptych.train import checkpoint
from triptych.train.distributed import World
from triptych.train.recipe import Batch, Recipe, batches_for, data_notes
from triptych.vision.grids import labelled_tensors
from triptych.weights.loaded import Card, Load

HELD_OUT = 8  # test pictures that are enlarged during training


def build(request: TrainUnclipUpsampler, world: World, load: Load) -> Recipe:
    """An upsampler and its data, ready to train."""
    training = request.training
    device = runtime.device(training.device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    config = _config(request, source)
    factor = config.size // config.small
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = Upsampler(config).to(device)

    def minimise(batch: Batch, step: int) -> Loss:
        picture = random_crops(batch["image"], request.crop, factor)
        with torch.autocast(device.type, enabled=False):  # bfloat16 would degrade them further
            small = degrade(shrink(picture, factor), request.degradation)
            enlarged = enlarge(small, request.crop)
        return objective(model, picture, enlarged)

    @cache
    def held_out() -> Tensor:
        picture: Tensor = take_first(test, HELD_OUT)["image"]
        return picture.to(device)

    card = Card("unclip-upsampler", to_json(config), triptych=version("triptych"))
    return Recipe(
        model=model,
        exported=model,
        updates=[update(model, minimise, request)],
        batches=batches_for(source, training, world),
        export=partial(checkpoint.export, card=to_json(card)),
        chance="before learning: an mse of about 1",
        sample=lambda module: _grid(module, held_out()),
        evaluate=lambda module: _decibels(module, held_out),
        notes=data_notes(source, training),
    )


def _config(request: TrainUnclipUpsampler, source: Source) -> UpsamplerConfig:
    height, width, channels = source.info.shape
    if height != width or height % request.small:
        raise ValueError(
            f"pictures of {width} x {height} pixels are no whole multiple of small ones of "
            f"{request.small}: choose another --size or --small"
        )
    factor = height // request.small
    if request.crop > height or request.crop % factor:
        raise ValueError(
            f"crop must be a multiple of {factor}, the factor of the sides, and at most {height}, "
            f"not {request.crop}"
        )
    return UpsamplerConfig(
        request.small,
        height,
        channels,
        request.widths,
        request.blocks,
        request.time_width,
        conditioning="scale_shift",
        resampling="convolution",
        patch=request.patch,
        groups=request.groups,
        schedule=request.noise_schedule,
        predicts=request.predicts,
        draws=request.draws,
        steps=request.sampling_steps,
        sampler="ddim",
    )


def random_crops(
    picture: Float[Tensor, "B C H W"], side: int, step: int
) -> Float[Tensor, "B C S S"]:
    """A random square of each picture, at multiples of `step` pixels, so that small pixels stay
    whole; from torch's default generator.
    """
    most = (picture.shape[2] - side) // step + 1
    places = (torch.randint(most, (len(picture), 2)) * step).tolist()
    rows = zip(picture, places, strict=True)
    return torch.stack([one[:, y : y + side, x : x + side] for one, (y, x) in rows])


def _decibels(module: Upsampler, held_out: Callable[[], Tensor]) -> dict[str, float]:
    """Peak signal-to-noise ratio of enlarged test pictures, and of bicubic enlargement."""
    picture = held_out()
    drawn, plain = _enlarge(module, picture)
    found = {"test_psnr": psnr(drawn, picture), "bicubic_psnr": psnr(plain, picture)}
    return {name: float(values.mean()) for name, values in found.items()}


@torch.inference_mode()
def _enlarge(module: Upsampler, picture: Tensor) -> tuple[Tensor, Tensor]:
    small = shrink(picture, module.config.size // module.config.small)
    *_, last = sample(module, small, PictureNoise(range(len(small))))
    return last.x, enlarge(small, module.config.size).clamp(-1, 1)


def _grid(module: Upsampler, picture: Tensor) -> np.ndarray:
    drawn, plain = _enlarge(module, picture)
    rows = torch.stack([each.float().cpu() for each in (plain, drawn, picture)])
    return labelled_tensors(rows, ("bicubic", "upsampled", "test picture"))

"""Training of class-conditional diffusion on pixels."""

from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from triptych import runtime
from triptych.config import to_json
from triptych.data.order.batches import take_first
from triptych.data.source import Source
from triptych.data.sources import open_train_and_test
from triptych.diffusion.names import parse_sampler
from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.sampling import check_draws_batches, run_sampler
from triptych.diffusion.schedule import Levels
from triptych.nn.loss import Loss
from triptych.systems.pixel_diffusion.model import (
    PixelDiffusion,
    PixelDiffusionConfig,
    objective,
    sampling_levels,
)
from triptych.systems.pixel_diffusion.request import TrainPixelDiffusion
from triptych.train import checkpoint
from triptych.train.conditioning import Condition, build_card, choose_condition, prepare_grid
from triptych.train.distributed import World
from triptych.train.optimizer import adam
from triptych.train.recipe import Batch, Recipe, Update, batches_for
from triptych.weights.loaded import Load

HELD_OUT = 512  # test pictures for the loss during training
BATCH = 128  # pictures of one forward pass


def build(request: TrainPixelDiffusion, world: World, load: Load) -> Recipe:
    """A pixel diffusion model and its data, ready to train."""
    training = request.training
    device = runtime.device(training.device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    given = choose_condition(request.condition, source)
    config = _config(request, source, given)
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = PixelDiffusion(config).to(device)

    def minimise(batch: Batch, step: int) -> Loss:
        return objective(
            model,
            batch["image"],
            given.of(batch),
            drop=request.drop,
            min_snr=request.min_snr or None,
            offset=request.offset,
        )

    shape = (config.channels, config.height, config.width)
    grid = prepare_grid(given, test, shape, training.seed, device)

    def draw(module: nn.Module) -> np.ndarray:
        assert isinstance(module, PixelDiffusion)
        return grid(lambda condition, noise: sample_preview(module, condition, noise))

    held_out = take_first(test, HELD_OUT)

    def evaluate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, PixelDiffusion)
        return {"test_mse": held_out_loss(module, held_out, given, device)}

    betas = (0.9, request.beta2)
    decay = request.weight_decay
    optimizer = adam(model, request.learning_rate, betas=betas, weight_decay=decay)
    card = to_json(build_card("pixel-diffusion", asdict(config), source, given))
    return Recipe(
        model=model,
        exported=model,
        updates=[Update("", model, optimizer, minimise, max_norm=request.max_norm)],
        batches=batches_for(source, training, world),
        export=partial(checkpoint.export, card=card),
        chance=f"before learning: mse {_chance(request.predicts)} of the network's own prediction",
        sample=draw,
        evaluate=evaluate,
    )


def _config(request: TrainPixelDiffusion, source: Source, given: Condition) -> PixelDiffusionConfig:
    height, width, channels = source.info.shape
    sampler, spacing = parse_sampler(request.sampler)
    check_draws_batches(sampler)
    return PixelDiffusionConfig(
        height,
        width,
        channels,
        request.condition,
        given.size,
        request.widths,
        request.blocks,
        request.attention,
        request.head_width,
        request.time_width,
        request.conditioning,
        request.patch,
        request.groups,
        request.dropout,
        request.noise_schedule,
        request.zero_terminal_snr,
        request.shift,
        request.predicts,
        sampler,
        request.sampling_steps,
        request.guidance if request.drop else 1.0,
        spacing or request.spacing,  # type: ignore[arg-type]
        request.drop,
    )


def _chance(predicts: str) -> str:
    """The loss of a network that outputs 0, for pictures of mean square about 1."""
    return {"flow": "about 1 to 2", "sample": "the pictures' mean square"}.get(predicts, "about 1")


def sample_preview(model: PixelDiffusion, condition: Tensor | None, start: Tensor) -> Tensor:
    """Pictures for the sample grid, from this noise by the configuration's sampler."""
    levels = sampling_levels(model)
    denoise = model.denoiser(condition, len(start), model.config.guidance)
    noise = PictureNoise(range(len(start)))
    with torch.inference_mode():
        *_, last = run_sampler(
            model.config.sampler, denoise, levels[0].sigma * start, levels, noise
        )
    return last.x.float().cpu()


@torch.inference_mode()
def held_out_loss(
    model: PixelDiffusion, held_out: Batch, given: Condition, device: torch.device
) -> float:
    """The loss on held-out pictures at evenly spaced levels; levels and noise are fixed."""
    image, condition = held_out["image"], given.of(held_out)
    count = len(image)
    noise = runtime.noise(tuple(image.shape[1:]), range(count))
    order = torch.randperm(count, generator=runtime.generator(0))
    at = model.schedule.draw(((order + 0.5) / count).to(device))
    total = 0.0
    for start in range(0, count, BATCH):
        rows = slice(start, start + BATCH)
        part = None if condition is None else condition[rows].to(device)
        levels = Levels(*(column[rows] for column in at))
        loss = objective(
            model, image[rows].to(device), part, drop=0.0, noise=noise[rows].to(device), at=levels
        )
        total += float(loss.total)
    return total / count

"""Training of class-conditional diffusion on pixels."""

from functools import partial

import torch
from torch import Tensor

from triptych import runtime
from triptych.data.order.batches import take_first, to_device
from triptych.data.source import Source
from triptych.data.sources import open_train_and_test
from triptych.diffusion.names import parse_sampler
from triptych.diffusion.noise import PictureNoise
from triptych.diffusion.sampling import check_draws_batches, run_sampler
from triptych.diffusion.schedule import Levels
from triptych.fields import copy_fields
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
from triptych.train.recipe import Batch, Recipe, Update, batches_for, data_notes
from triptych.weights.loaded import Load

HELD_OUT = 512  # test pictures for the loss during training
BATCH = 128  # pictures of one forward pass


def build(request: TrainPixelDiffusion, world: World, load: Load) -> Recipe:
    """A pixel diffusion model and its data, ready to train."""
    training = request.training
    device = runtime.device(training.device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    condition = choose_condition(request.condition, source)
    config = _config(request, source, condition)
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = PixelDiffusion(config).to(device)

    def minimise(batch: Batch, step: int) -> Loss:
        return objective(
            model,
            batch["image"],
            condition.of(batch),
            drop=request.drop,
            min_snr=request.min_snr or None,
            offset=request.offset,
        )

    shape = (config.channels, config.height, config.width)
    grid = prepare_grid(condition, test, shape, training.seed, device)
    held_out = to_device(take_first(test, HELD_OUT), device)
    betas = (0.9, request.beta2)
    decay = request.weight_decay
    optimizer = adam(model, request.learning_rate, betas=betas, weight_decay=decay)
    card = build_card("pixel-diffusion", config, source, condition)
    return Recipe(
        model=model,
        exported=model,
        updates=[Update("", model, optimizer, minimise, max_norm=request.max_norm)],
        batches=batches_for(source, training, world),
        export=partial(checkpoint.export, card=card),
        chance=f"before learning: mse {_chance(request.predicts)} of the network's own prediction",
        sample=lambda module: grid(partial(sample_preview, module)),
        evaluate=lambda module: {"test_mse": held_out_loss(module, held_out, condition)},
        notes=data_notes(source, training),
    )


def _config(
    request: TrainPixelDiffusion, source: Source, condition: Condition
) -> PixelDiffusionConfig:
    sampler, spacing = parse_sampler(request.sampler)
    check_draws_batches(sampler)
    return copy_fields(
        PixelDiffusionConfig,
        request,
        **source.info.sides,
        condition_size=condition.size,
        schedule=request.noise_schedule,
        sampler=sampler,
        steps=request.sampling_steps,
        guidance=request.guidance if request.drop else 1.0,
        spacing=spacing or request.spacing,
        dropped=request.drop,
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
def held_out_loss(model: PixelDiffusion, held_out: Batch, condition: Condition) -> float:
    """The loss on held-out pictures at evenly spaced levels; levels and noise are fixed."""
    image, labels = held_out["image"], condition.of(held_out)
    count = len(image)
    noise = runtime.noise(tuple(image.shape[1:]), range(count)).to(image.device)
    order = torch.randperm(count, generator=runtime.generator(0))
    at = model.schedule.draw(((order + 0.5) / count).to(image.device))
    total = 0.0
    for start in range(0, count, BATCH):
        rows = slice(start, start + BATCH)
        part = None if labels is None else labels[rows]
        levels = Levels(*(column[rows] for column in at))
        loss = objective(model, image[rows], part, drop=0.0, noise=noise[rows], at=levels)
        total += float(loss.total)
    return total / count

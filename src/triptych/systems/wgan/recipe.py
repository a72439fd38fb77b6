"""Training of a conditional WGAN-GP: critic updates, then one generator update."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from triptych import runtime
from triptych.config import to_json
from triptych.data.order.batches import take_first
from triptych.data.source import Source
from triptych.data.sources import open_train_and_test
from triptych.nn.loss import Loss
from triptych.systems.wgan.model import (
    COLLAPSED,
    Generator,
    Wgan,
    WganConfig,
    class_spread,
    critic_objective,
    generator_objective,
    gradient_penalty,
    sample,
)
from triptych.systems.wgan.request import TrainWgan
from triptych.train import checkpoint
from triptych.train.conditioning import Condition, build_card, choose_condition, prepare_grid
from triptych.train.distributed import World
from triptych.train.optimizer import adam
from triptych.train.recipe import Batch, Recipe, Update, batches_for
from triptych.weights.loaded import Load

HELD_OUT = 500  # test pictures for the diagnostics


def build(request: TrainWgan, world: World, load: Load) -> Recipe:
    """A conditional WGAN-GP and its data, ready to train."""
    training = request.training
    device = runtime.device(training.device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    if request.condition == "vector":
        raise ValueError(
            "a WGAN-GP is conditioned on a label or attributes, not on a vector of numbers"
        )
    given = choose_condition(request.condition, source)
    height, width, channels = source.info.shape
    config = WganConfig(
        height,
        width,
        channels,
        request.condition,
        given.size,
        request.latent,
        request.generator_widths,
        request.critic_widths,
        request.critic,
        request.generator_hidden,
        request.critic_hidden,
        request.generator,
    )
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = Wgan(config).to(device)
    grid = prepare_grid(given, test, (request.latent,), training.seed, device)

    def draw(module: nn.Module) -> np.ndarray:
        assert isinstance(module, Generator)
        return grid(partial(sample, module))

    card = to_json(build_card("wgan", asdict(config), source, given))
    return Recipe(
        model=model,
        exported=model.generator,
        updates=_updates(request, model, given),
        batches=batches_for(source, training, world),
        export=partial(checkpoint.export, card=card),
        chance="-c_wass_loss is the critic's gap: it rises, then falls as the generator catches up",
        sample=draw,
        evaluate=_diagnosis(model, given, test, device),
        warn=_warn,
    )


def _updates(request: TrainWgan, model: Wgan, given: Condition) -> Sequence[Update]:
    """Critic updates, then one generator update on the conditions of the last critic batch."""

    def noise(image: Tensor) -> Tensor:
        return torch.randn(len(image), request.latent, device=image.device)

    def criticise(batch: Batch, step: int) -> Loss:
        image = batch["image"]
        return critic_objective(
            model,
            image,
            given.of(batch),
            noise(image),
            gp_weight=request.gp_weight,
            factor=request.gp_factor,
        )

    def generate(batch: Batch, step: int) -> Loss:
        return generator_objective(model, given.of(batch), noise(batch["image"]))

    betas = (request.beta1, request.beta2)
    critic = Update(
        "c",
        model.critic,
        adam(model.critic, request.critic_learning_rate, betas=betas),
        criticise,
        repeat=request.critic_steps,
        data="each" if request.critic_data == "fresh" else "once",
        max_norm=None,
    )
    generator = Update(
        "g",
        model.generator,
        adam(model.generator, request.learning_rate, betas=betas),
        generate,
        data="reuse",
        max_norm=None,
    )
    return [critic, generator]


def _diagnosis(
    model: Wgan, given: Condition, test: Source, device: torch.device
) -> Callable[[nn.Module], dict[str, Any]]:
    """A function for the spread of each class and the gradient norms of the critic."""
    held_out = take_first(test, HELD_OUT)
    labels = held_out["label"] if given.kind == "label" else None
    real = None if labels is None else class_spread(held_out["image"], labels, given.size)
    latent = model.config.latent

    @torch.no_grad()
    def evaluate(module: nn.Module) -> dict[str, Any]:
        assert isinstance(module, Generator)
        image = held_out["image"].to(device)
        condition = given.of(held_out)
        condition = None if condition is None else condition.to(device)
        z = runtime.noise((latent,), range(len(image))).to(device)
        fake = sample(module, condition, z)
        with torch.enable_grad():
            norms = gradient_penalty(model.critic, image, fake, condition).norms.cpu()
        row: dict[str, Any] = {"gradient_norms": torch.histc(norms, 20, 0, 2).tolist()}
        if real is None or condition is None:
            return row
        ratio = class_spread(fake.cpu(), condition.cpu(), given.size) / real
        row["spread"] = ratio.nanmean().item()
        return row | {"collapsed_classes": int((ratio < COLLAPSED).sum())}

    return evaluate


def _warn(row: dict[str, Any]) -> str:
    lost = row.get("collapsed_classes", 0)
    return f"{lost} classes have lost variety: mode collapse?" if lost else ""

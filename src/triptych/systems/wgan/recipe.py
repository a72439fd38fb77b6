"""Training of a conditional WGAN-GP: critic updates, then one generator update."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from triptych import runtime
from triptych.data.order.batches import take_first, to_device
from triptych.data.sources import open_train_and_test
from triptych.fields import copy_fields
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
from triptych.train.recipe import Batch, Recipe, Update, batches_for, data_notes
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
    condition = choose_condition(request.condition, source)
    config = copy_fields(WganConfig, request, **source.info.sides, condition_size=condition.size)
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = Wgan(config).to(device)
    grid = prepare_grid(condition, test, (request.latent,), training.seed, device)
    card = build_card("wgan", config, source, condition)
    return Recipe(
        model=model,
        exported=model.generator,
        updates=_updates(request, model, condition),
        batches=batches_for(source, training, world),
        export=partial(checkpoint.export, card=card),
        chance="-c_wass_loss is the critic's gap: it rises, then falls as the generator catches up",
        sample=lambda module: grid(partial(sample, module)),
        evaluate=_diagnosis(model, condition, to_device(take_first(test, HELD_OUT), device)),
        warn=_warn,
        notes=data_notes(source, training),
    )


def _updates(request: TrainWgan, model: Wgan, condition: Condition) -> Sequence[Update]:
    """Critic updates, then one generator update on the conditions of the last critic batch."""

    def noise(image: Tensor) -> Tensor:
        return torch.randn(len(image), request.latent, device=image.device)

    def criticise(batch: Batch, step: int) -> Loss:
        image = batch["image"]
        return critic_objective(
            model,
            image,
            condition.of(batch),
            noise(image),
            gp_weight=request.gp_weight,
            factor=request.gp_factor,
        )

    def generate(batch: Batch, step: int) -> Loss:
        return generator_objective(model, condition.of(batch), noise(batch["image"]))

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
    model: Wgan, condition: Condition, held_out: Batch
) -> Callable[[Generator], dict[str, Any]]:
    """A function for the spread of each class and the gradient norms of the critic."""
    image, labels = held_out["image"], condition.of(held_out)
    real = None
    if condition.kind == "label":
        real = class_spread(image.cpu(), held_out["label"].cpu(), condition.size)

    @torch.no_grad()
    def evaluate(module: Generator) -> dict[str, Any]:
        z = runtime.noise((model.config.latent,), range(len(image))).to(image.device)
        fake = sample(module, labels, z)
        with torch.enable_grad():
            norms = gradient_penalty(model.critic, image, fake, labels).norms.cpu()
        row: dict[str, Any] = {"gradient_norms": torch.histc(norms, 20, 0, 2).tolist()}
        if real is None or labels is None:
            return row
        ratio = class_spread(fake.cpu(), labels.cpu(), condition.size) / real
        row["spread"] = ratio.nanmean().item()
        return row | {"collapsed_classes": int((ratio < COLLAPSED).sum())}

    return evaluate


def _warn(row: dict[str, Any]) -> str:
    lost = row.get("collapsed_classes", 0)
    return f"{lost} classes have lost variety: mode collapse?" if lost else ""

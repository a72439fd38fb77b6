"""Training of a conditional VAE."""

from functools import partial

import numpy as np
import torch

from triptych import runtime
from triptych.data.order.batches import take_first, to_device
from triptych.data.sources import open_train_and_test
from triptych.fields import copy_fields
from triptych.nn.loss import Loss
from triptych.systems.cvae.model import Cvae, CvaeConfig, objective, sample
from triptych.systems.cvae.request import TrainCvae
from triptych.train import checkpoint
from triptych.train.conditioning import build_card, choose_condition, prepare_grid
from triptych.train.distributed import World
from triptych.train.optimizer import adam
from triptych.train.recipe import Batch, Recipe, Update, batches_for, data_notes
from triptych.weights.loaded import Load

HELD_OUT = 512  # test pictures for the bound during training


def build(request: TrainCvae, world: World, load: Load) -> Recipe:
    """A conditional VAE and its data, ready to train."""
    training = request.training
    device = runtime.device(training.device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    condition = choose_condition(request.condition, source, quadrants=request.quadrants)
    config = copy_fields(
        CvaeConfig,
        request,
        **source.info.sides,
        condition="image" if request.condition == "quadrants" else request.condition,
        condition_size=condition.size,
    )
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = Cvae(config).to(device)

    def minimise(batch: Batch, step: int) -> Loss:
        warmup = min(1.0, step / request.kl_warmup) if request.kl_warmup else 1.0
        beta = request.beta * warmup
        return objective(
            model, batch["image"], condition.of(batch), beta=beta, free_bits=request.free_bits
        )

    grid = prepare_grid(condition, test, (request.latent,), training.seed, device)
    held_out = to_device(take_first(test, HELD_OUT), device)

    @torch.no_grad()
    def evaluate(module: Cvae) -> dict[str, float]:
        image = held_out["image"]
        z = runtime.noise((request.latent,), range(len(image))).to(device)
        loss = objective(module, image, condition.of(held_out), noise=z)
        return {f"test_{name}": value.item() for name, value in loss.terms.items()}

    optimizer = adam(model, request.learning_rate, weight_decay=request.weight_decay)
    card = build_card("cvae", config, source, condition)
    return Recipe(
        model=model,
        exported=model,
        updates=[Update("", model, optimizer, minimise, max_norm=request.max_norm)],
        batches=batches_for(source, training, world),
        export=partial(checkpoint.export, card=card),
        chance=_chance(config),
        sample=lambda module: grid(partial(sample, module)),
        evaluate=evaluate,
        notes=data_notes(source, training),
    )


def _chance(config: CvaeConfig) -> str:
    """The loss before training, as a message."""
    pixels = config.height * config.width * config.channels
    if config.likelihood == "gaussian":
        return f"before learning: about {pixels * 1.5:.0f} nats a picture"
    return f"before learning: {pixels * np.log(2):.0f} nats a picture, grey everywhere"

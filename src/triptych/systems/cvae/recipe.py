"""Training of a conditional VAE."""

from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from torch import nn

from triptych import runtime
from triptych.config import to_json
from triptych.data.order.batches import take_first
from triptych.data.sources import open_train_and_test
from triptych.nn.loss import Loss
from triptych.systems.cvae.model import Cvae, CvaeConfig, objective, sample
from triptych.systems.cvae.request import TrainCvae
from triptych.train import checkpoint
from triptych.train.conditioning import build_card, choose_condition, prepare_grid
from triptych.train.distributed import World
from triptych.train.optimizer import adam
from triptych.train.recipe import Batch, Recipe, Update, batches_for
from triptych.weights.loaded import Load

HELD_OUT = 512  # test pictures for the bound during training


def build(request: TrainCvae, world: World, load: Load) -> Recipe:
    """A conditional VAE and its data, ready to train."""
    training = request.training
    device = runtime.device(training.device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    given = choose_condition(request.condition, source, quadrants=request.quadrants)
    height, width, channels = source.info.shape
    config = CvaeConfig(
        height,
        width,
        channels,
        "image" if request.condition == "quadrants" else request.condition,
        given.size,
        request.latent,
        request.network,
        request.widths,
        request.likelihood,
        request.learned_prior,
    )
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = Cvae(config).to(device)

    def minimise(batch: Batch, step: int) -> Loss:
        warmup = min(1.0, step / request.kl_warmup) if request.kl_warmup else 1.0
        beta = request.beta * warmup
        return objective(
            model, batch["image"], given.of(batch), beta=beta, free_bits=request.free_bits
        )

    grid = prepare_grid(given, test, (request.latent,), training.seed, device)

    def draw(module: nn.Module) -> np.ndarray:
        assert isinstance(module, Cvae)
        return grid(partial(sample, module))

    held_out = take_first(test, HELD_OUT)

    @torch.no_grad()
    def evaluate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, Cvae)
        image, condition = held_out["image"].to(device), given.of(held_out)
        z = runtime.noise((request.latent,), range(len(image))).to(device)
        loss = objective(
            module, image, None if condition is None else condition.to(device), noise=z
        )
        return {f"test_{name}": value.item() for name, value in loss.terms.items()}

    optimizer = adam(model, request.learning_rate, weight_decay=request.weight_decay)
    card = to_json(build_card("cvae", asdict(config), source, given))
    return Recipe(
        model=model,
        exported=model,
        updates=[Update("", model, optimizer, minimise, max_norm=request.max_norm)],
        batches=batches_for(source, training, world),
        export=partial(checkpoint.export, card=card),
        chance=_chance(config),
        sample=draw,
        evaluate=evaluate,
    )


def _chance(config: CvaeConfig) -> str:
    """The loss before training, as a message."""
    pixels = config.height * config.width * config.channels
    if config.likelihood == "gaussian":
        return f"before learning: about {pixels * 1.5:.0f} nats a picture"
    return f"before learning: {pixels * np.log(2):.0f} nats a picture, grey everywhere"

"""Recipe: conditional WGAN-GP, critic updates and then one generator update."""

from dataclasses import asdict
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from triptych import runtime
from triptych.config import to_json
from triptych.data.batches import batches, take
from triptych.data.source import Source
from triptych.data.sources import open_source
from triptych.models.wgan import (
    COLLAPSED,
    Generator,
    Wgan,
    WganConfig,
    class_spread,
    critic_objective,
    generator_objective,
    sample,
)
from triptych.nn.loss import Loss
from triptych.train.conditioning import card, condition_grid, conditioning
from triptych.train.optimizer import adam
from triptych.train.recipe import Batch, Recipe, Update
from triptych.train.recipes.requests import TrainWgan

SPREAD = 32  # pictures a class for the collapse diagnostic


def build(request: TrainWgan) -> Recipe:
    """A conditional WGAN-GP with its data."""
    training = request.training
    on = runtime.device(training.device)
    source = open_source(training.data, split="train", size=training.size or None)
    test = open_source(training.data, split="test", size=training.size or None)
    if request.condition == "vector":
        raise ValueError("the critic takes a label or attributes, not a vector of numbers")
    given = conditioning(request.condition, source)
    height, width, channels = source.shape
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
    )
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = Wgan(config).to(on)

    def criticise(batch: Batch, step: int) -> Loss:
        image = batch["image"]
        noise = torch.randn(len(image), request.latent, device=image.device)
        return critic_objective(
            model,
            image,
            given.of(batch),
            noise,
            gp_weight=request.gp_weight,
            factor=request.gp_factor,
        )

    def generate(batch: Batch, step: int) -> Loss:
        image = batch["image"]
        noise = torch.randn(len(image), request.latent, device=image.device)
        return generator_objective(model, given.of(batch), noise)

    grid = condition_grid(given, test, request.latent, training.seed, on)

    def draw(module: nn.Module) -> np.ndarray:
        assert isinstance(module, Generator)
        return grid(partial(sample, module))

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
        data="kept",
        max_norm=None,
    )
    real = _spread_of_real(test, given.size) if given.kind == "label" else None

    @torch.no_grad()
    def evaluate(module: nn.Module) -> dict[str, float]:
        """How much the pictures of a class differ, against real ones: the first sign of mode
        collapse.
        """
        assert isinstance(module, Generator)
        if real is None:
            return {}
        labels = torch.arange(given.size).repeat_interleave(SPREAD)
        z = runtime.noise((request.latent,), range(len(labels)))
        images = sample(module, labels.to(on), z.to(on)).cpu()
        ratio = class_spread(images, labels, given.size) / real
        collapsed = int((ratio < COLLAPSED).sum())
        return {"spread": ratio.nanmean().item(), "collapsed_classes": float(collapsed)}

    return Recipe(
        model=model,
        exported=model.generator,
        updates=[critic, generator],
        batches=lambda start: batches(
            source,
            training.batch_size,
            seed=training.seed,
            start=start,
            workers=training.workers,
        ),
        card=to_json(card("wgan", asdict(config), source, given)),
        chance="-c_wass_loss is the critic's gap: it rises, then falls as the generator catches up",
        sample=draw,
        evaluate=evaluate,
    )


def _spread_of_real(test: Source, classes: int) -> Tensor:
    batch = take(test, range(min(test.length or 2000, 2000)))
    return class_spread(batch["image"], batch["label"], classes)

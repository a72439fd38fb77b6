"""Training of the KL autoencoder, with an optional patch discriminator."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from triptych import runtime
from triptych.data.order.batches import take_first
from triptych.data.scene_source import SceneSource
from triptych.data.source import Source
from triptych.data.sources import open_train_and_test
from triptych.fields import to_json
from triptych.nn.loss import Loss
from triptych.scenes.judge import report, satisfies
from triptych.scenes.reader import read
from triptych.systems.autoencoder.latent_channels import standardise_channels
from triptych.systems.autoencoder.model import Autoencoder, AutoencoderConfig
from triptych.systems.autoencoder.objective import (
    Distance,
    LossWeights,
    Reconstruction,
    discriminator_objective,
    generator_objective,
)
from triptych.systems.autoencoder.perceptual import (
    PatchDiscriminator,
    PerceptualDistance,
    classifier_maps,
    clip_maps,
)
from triptych.systems.autoencoder.request import TrainAutoencoder
from triptych.systems.classifier.model import Classifier
from triptych.systems.clip.model import Clip, VisionTransformer
from triptych.train import checkpoint
from triptych.train.distributed import World
from triptych.train.optimizer import adam, build_optimizer
from triptych.train.recipe import Batch, Recipe, Update, batches_for, data_notes
from triptych.vision.grids import labelled_grid
from triptych.vision.images import to_pictures
from triptych.vision.transforms import ImageTransform
from triptych.weights.loaded import Card, Load

HELD_OUT = 200  # test pictures for evaluation
SHOWN = 10
CHUNK = 50


class Trained(nn.Module):
    """All that is trained and saved in checkpoints."""

    def __init__(self, reconstruction: Reconstruction, discriminator: PatchDiscriminator | None):
        super().__init__()
        self.reconstruction = reconstruction
        self.discriminator = discriminator


def build(request: TrainAutoencoder, world: World, load: Load) -> Recipe:
    """A new autoencoder with its data."""
    training = request.training
    device = runtime.device(training.device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    config = AutoencoderConfig(
        source.info.shape[2],
        request.latent_channels,
        request.widths,
        request.blocks,
        request.groups,
        request.attention,
        request.quant_conv,
        scale=1.0,  # the channels are standardised after training
    )
    torch.manual_seed(runtime.key(training.seed, "weights"))
    autoencoder = Autoencoder(config)
    discriminator = None
    if request.adversarial:
        widths = request.discriminator_widths
        discriminator = PatchDiscriminator(source.info.shape[2], widths, request.groups)
    model = Trained(
        Reconstruction(autoencoder, request.likelihood, request.deviation), discriminator
    ).to(device)
    held_out = take_first(test, HELD_OUT)
    image, captions = held_out["image"], held_out.get("caption")
    deviation = float((image - image.mean()).abs().mean())

    def evaluate(module: Autoencoder) -> dict[str, float]:
        return measure_fidelity(module, image, captions, test)

    def export(run: Path, module: Autoencoder) -> None:
        standardised = standardise_channels(module, image.split(CHUNK))
        card = Card("autoencoder", to_json(standardised.config), triptych=version("triptych"))
        checkpoint.export(run, standardised, to_json(card))

    def draw(module: Autoencoder) -> np.ndarray:
        shown = image[:SHOWN]
        rows = [to_pictures(shown), to_pictures(reconstruct_all(module, shown))]
        return labelled_grid(np.stack(rows), ["given", "back"])

    return Recipe(
        model=model,
        exported=autoencoder,
        updates=_updates(
            request,
            model,
            _perceptual_distance(request.perceptual, source.info.shape[2], device, load),
            world,
        ),
        batches=batches_for(source, training, world),
        export=export,
        chance=f"a grey picture: absolute {deviation:.3f}",
        sample=draw,
        evaluate=evaluate,
        notes=data_notes(source, training),
    )


def _updates(
    request: TrainAutoencoder, model: Trained, perceptual: Distance | None, world: World
) -> Sequence[Update]:
    """Update the autoencoder, then the discriminator on the same pictures."""
    weights = LossWeights(
        request.kl, request.perceptual_weight, request.adversarial, request.latent_noise
    )
    config = model.reconstruction.autoencoder.config

    def noise(image: Tensor) -> Tensor:
        shape = config.latent_shape(*image.shape[2:])
        return torch.randn(len(image), *shape, device=image.device)

    def reconstruct(batch: Batch, step: int) -> Loss:
        discriminator = model.discriminator if step > request.adversarial_from else None
        image = batch["image"]
        return generator_objective(
            model.reconstruction,
            image,
            noise(image),
            weights,
            perceptual=perceptual,
            discriminator=discriminator,
            add_up=world.add_up,
        )

    adversarial = model.discriminator is not None
    betas = (0.5, 0.9) if adversarial else (0.9, 0.99)
    encoder = model.reconstruction.autoencoder.encoder
    decoder = model.reconstruction.autoencoder.decoder
    inner = [encoder.down, encoder.middle, decoder.middle, decoder.up]
    generator = Update(
        "g" if adversarial else "",
        model.reconstruction,
        build_optimizer(request, model.reconstruction, inner, betas=betas),
        reconstruct,
        max_norm=request.max_norm,
    )
    discriminator = model.discriminator
    if discriminator is None:
        return [generator]

    def criticise(batch: Batch, step: int) -> Loss:
        image = batch["image"]
        return discriminator_objective(model.reconstruction, discriminator, image, noise(image))

    critic = Update(
        "d",
        discriminator,
        adam(discriminator, request.discriminator_learning_rate, betas=(0.5, 0.9)),
        criticise,
        data="reuse",
        max_norm=None,
    )
    return [generator, critic]


def _perceptual_distance(
    name: str, channels: int, device: torch.device, load: Load
) -> Distance | None:
    """The perceptual distance in the features of a classifier or CLIP."""
    if not name:
        return None
    loaded = load(name, device, dtype="float32")
    if isinstance(loaded.model, Classifier):
        if loaded.config.channels != channels:
            raise ValueError(
                f"{name} needs {loaded.config.channels} channels, the data has {channels}"
            )
        return PerceptualDistance(classifier_maps(loaded.model))
    tower = loaded.model.image if isinstance(loaded.model, Clip) else None
    if isinstance(tower, VisionTransformer) and isinstance(loaded.transform, ImageTransform):
        layers = range(0, len(tower.transformer.blocks), 2)
        return PerceptualDistance(
            clip_maps(tower, layers, loaded.transform.mean, loaded.transform.std)
        )
    raise ValueError(
        f"{name} is a {loaded.card.model}; a perceptual distance needs a classifier or a CLIP with "
        "a vision transformer"
    )


@torch.inference_mode()
def reconstruct_all(autoencoder: Autoencoder, image: Tensor) -> Tensor:
    """Encode by the mode of the posterior and decode, in batches; on the CPU."""
    device = next(autoencoder.parameters()).device
    parts = [autoencoder.reconstruct(part.to(device)).float().cpu() for part in image.split(CHUNK)]
    return torch.cat(parts)


def measure_fidelity(
    autoencoder: Autoencoder, image: Tensor, captions: list[str] | None, source: Source
) -> dict[str, float]:
    """PSNR in decibels of 8-bit pictures; for the built-in world also how often the exact judge
    finds captions true of reconstructions and of the originals.
    """
    originals, decoded = to_pictures(image), to_pictures(reconstruct_all(autoencoder, image))
    errors = np.square(originals.astype(np.float64) - decoded).mean(axis=(1, 2, 3))
    row = {"psnr": float((10 * np.log10(255**2 / np.maximum(errors, 1e-12))).mean())}
    if isinstance(source, SceneSource) and captions is not None:
        for name, pictures in (("true", decoded), ("true_of_originals", originals)):
            verdicts = [satisfies(read(p), c) for p, c in zip(pictures, captions, strict=True)]
            row[name] = report(verdicts)["whole"].value
    return row

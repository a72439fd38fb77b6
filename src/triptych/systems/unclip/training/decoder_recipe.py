"""Training of the decoder on pictures with their embeddings, and pictures of held-out ones."""

from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from triptych import runtime
from triptych.data.captions import batch_texts
from triptych.data.order.batches import take_first
from triptych.data.source import Source
from triptych.data.sources import open_train_and_test
from triptych.diffusion.denoiser import Conditioning
from triptych.diffusion.noise import PictureNoise
from triptych.nn.loss import Loss
from triptych.systems.unclip.decoder import Decoder, DecoderConfig, objective, sample
from triptych.systems.unclip.prior import drop_rows
from triptych.systems.unclip.request import TrainUnclipDecoder
from triptych.systems.unclip.training.frozen_clip import FrozenClip
from triptych.systems.unclip.training.prior_recipe import build_card, update
from triptych.text.templates import template_set
from triptych.train import checkpoint
from triptych.train.distributed import World
from triptych.train.recipe import Batch, Recipe, batches_for, data_notes
from triptych.vision.grids import labelled_tensors
from triptych.weights.loaded import Load

HELD_OUT, SHOWN = 128, 8  # test pictures of the loss, and of the grid


def build(request: TrainUnclipDecoder, world: World, load: Load) -> Recipe:
    """A decoder, its CLIP and its data, ready to train."""
    training = request.training
    device = runtime.device(training.device)
    clip = FrozenClip(request.clip, load, device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    texts = batch_texts(source, template_set(request.templates))
    config = _config(request, source, clip)
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = Decoder(config).to(device)

    def minimise(batch: Batch, step: int) -> Loss:
        image, count = batch["image"], len(batch["image"])
        cond = clip.encode_texts(texts(batch))
        cond = drop_rows(cond, clip.empty, torch.rand(count, device=device) < request.drop_text)
        dropped = torch.rand(count, device=device) < request.drop
        embedded = clip.embed_images(image)
        encoded = model.encode_condition(embedded, **cond, dropped=dropped)
        return objective(model, image, encoded, noisiest=request.noisiest)

    @cache
    def held_out() -> tuple[Tensor, Tensor, Conditioning]:
        torch.manual_seed(0)  # of the templates
        batch = take_first(test, HELD_OUT)
        image = batch["image"].to(device)
        return image, clip.embed_images(image), clip.encode_texts(texts(batch))

    @torch.inference_mode()
    def evaluate(module: Decoder) -> dict[str, float]:
        image, embedded, cond = held_out()
        count = len(image)
        time = torch.arange(count, device=device) * (999 / max(1, count - 1))
        noise = runtime.noise(tuple(image.shape[1:]), range(count)).to(device)
        encoded = module.encode_condition(embedded, **cond)
        loss = objective(module, image, encoded, noise=noise, time=time.round())
        return {f"test_{name}": float(value) for name, value in loss.terms.items()}

    return Recipe(
        model=model,
        exported=model,
        updates=[update(model, minimise, request)],
        batches=batches_for(source, training, world),
        export=partial(checkpoint.export, card=build_card("unclip-decoder", config, clip)),
        chance="before learning: an mse of about 1",
        sample=partial(_grid, held_out, clip),
        evaluate=evaluate,
        notes=data_notes(source, training),
    )


def _config(request: TrainUnclipDecoder, source: Source, clip: FrozenClip) -> DecoderConfig:
    height, width, channels = source.info.shape
    if height != width:
        raise ValueError(f"pictures of {width} x {height} pixels: choose a square --size")
    return DecoderConfig(
        clip.dim,
        clip.text.width,
        height,
        channels,
        request.tokens,
        request.context,
        request.widths,
        request.blocks,
        request.attention,
        request.head_width,
        request.time_width,
        resampling="convolution",
        patch=request.patch,
        groups=request.groups,
        dropout=request.dropout,
        predicts=request.predicts,
        embedding_scale=clip.dim**0.5,
        steps=request.sampling_steps,
        guidance=request.guidance if request.drop else 1.0,
    )


@torch.inference_mode()
def _grid(
    held_out: Callable[[], tuple[Tensor, Tensor, Conditioning]], clip: FrozenClip, module: Decoder
) -> np.ndarray:
    """Test pictures, and pictures drawn from their embeddings without a caption."""
    image, embedded, _ = held_out()
    count = min(SHOWN, len(image))
    empty = {name: value.expand(count, *value.shape[1:]) for name, value in clip.empty.items()}
    *_, last = sample(
        module,
        module.encode_condition(embedded[:count], **empty),
        module.encode_condition(None, **empty),
        PictureNoise(range(count)),
    )
    rows = torch.stack([image[:count].float().cpu(), last.x.float().cpu()])
    return labelled_tensors(rows, ("test picture", "from its embedding"))

"""Training of the autoregressive prior on cached embeddings."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from triptych import runtime
from triptych.data.captions import batch_texts
from triptych.data.order.batches import choose_captions
from triptych.diffusion.denoiser import Conditioning
from triptych.nn.loss import Loss
from triptych.systems.unclip.autoregressive import (
    AutoregressiveConfig,
    AutoregressivePrior,
    objective,
    sample,
)
from triptych.systems.unclip.embeddings import principal_components
from triptych.systems.unclip.request import TrainUnclipAutoregressive
from triptych.systems.unclip.training.embedding_cache import CachedEmbeddings, EmbeddingCache
from triptych.systems.unclip.training.frozen_clip import FrozenClip
from triptych.systems.unclip.training.prior_recipe import (
    build_card,
    held_out_cosines,
    open_pictures,
    update,
    warn_if_unrelated,
)
from triptych.text.templates import template_set
from triptych.train import checkpoint
from triptych.train.distributed import World
from triptych.train.recipe import Batch, Recipe, batches_for, data_notes
from triptych.weights.loaded import Load

FITTED = 20_000  # pictures whose texts are encoded to know how near they are
TOGETHER = 256


def build(request: TrainUnclipAutoregressive, world: World, load: Load) -> Recipe:
    """A prior and its CLIP. The embeddings are computed here, since the number of codes depends on
    them.
    """
    training = request.training
    device = runtime.device(training.device)
    clip = FrozenClip(request.clip, load, device)
    source, test = open_pictures(training, request.pictures, clip)
    content = EmbeddingCache(request.cache, source, clip).content
    texts = batch_texts(source, template_set(request.templates))
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = AutoregressivePrior(_config(request, clip, content)).to(device)
    _fit(model, clip, content, texts_of=texts)

    def minimise(batch: Batch, step: int) -> Loss:
        cond = clip.encode_texts(texts(batch))
        dropped = torch.rand(len(batch["vector"]), device=device) < request.drop
        return objective(model, batch["vector"], cond, clip.empty, dropped)

    def draw(module: AutoregressivePrior, cond: Conditioning, uncond: Conditioning) -> Tensor:
        *_, codes = sample(module, cond, uncond, range(len(cond["text"])))
        return module.coder.decode(codes.to(device))

    chance = math.log(request.buckets)
    return Recipe(
        model=model,
        exported=model,
        updates=[update(model, minimise, request)],
        batches=batches_for(content, training, world),
        export=partial(checkpoint.export, card=build_card(KIND, model.config, clip)),
        chance=f"before learning: ln({request.buckets}) = {chance:.3f} nats for each of "
        f"{model.config.components} codes",
        evaluate=held_out_cosines(test, clip, texts, draw),
        warn=warn_if_unrelated,
        notes=data_notes(source, training),
    )


KIND = "unclip-autoregressive"


def _config(
    request: TrainUnclipAutoregressive, clip: FrozenClip, content: CachedEmbeddings
) -> AutoregressiveConfig:
    components = principal_components(content.embeddings, request.explained)
    return AutoregressiveConfig(
        clip.dim,
        clip.text.width,
        clip.tokenizer.config.length,
        len(components.directions),
        request.buckets,
        request.nearness,
        request.width,
        request.layers,
        request.heads,
        4 * request.width,
        guidance=request.guidance if request.drop else 1.0,
    )


def _fit(
    model: AutoregressivePrior,
    clip: FrozenClip,
    content: CachedEmbeddings,
    texts_of: Callable[[Batch], list[str]],
) -> None:
    """Codes of all embeddings, and how near the first of them are to their texts."""
    count = min(FITTED, len(content.embeddings))

    def embed() -> Iterator[Tensor]:
        for start in range(0, count, TOGETHER):
            rows = range(start, min(start + TOGETHER, count))
            columns = content.read(list(rows))
            batch: Batch = {}
            if "caption" in columns:
                batch["caption"] = choose_captions(columns["caption"], [0] * len(rows))
            if "label" in columns:
                batch["label"] = torch.from_numpy(columns["label"])
            yield clip.encode_texts(texts_of(batch))["text"].cpu()

    text = torch.cat(list(embed()))
    model.coder.fit(content.embeddings)
    model.fit_nearness(content.embeddings[:count], text)

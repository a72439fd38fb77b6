"""Training of the diffusion prior on cached embeddings, and how near its embeddings are."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych import runtime
from triptych.data.captions import batch_texts
from triptych.data.disk.table import first_pictures
from triptych.data.order.batches import take_first
from triptych.data.source import Source
from triptych.data.sources import open_train_and_test
from triptych.diffusion.denoiser import Conditioning
from triptych.diffusion.noise import PictureNoise
from triptych.fields import to_json
from triptych.nn.loss import Loss
from triptych.systems.unclip.prior import DiffusionPrior, PriorConfig, finish, objective, sample
from triptych.systems.unclip.request import TrainUnclipPrior
from triptych.systems.unclip.training.embedding_cache import CachedEmbeddings, EmbeddingCache
from triptych.systems.unclip.training.frozen_clip import FrozenClip
from triptych.text.templates import template_set
from triptych.train import checkpoint
from triptych.train.distributed import World
from triptych.train.optimizer import adam
from triptych.train.recipe import (
    Batch,
    Objective,
    Progress,
    Recipe,
    Update,
    batches_for,
    data_notes,
)
from triptych.train.settings import Training
from triptych.weights.loaded import Card, Load

HELD_OUT = 256  # test pictures whose embeddings are predicted during training
LEAST = 0.1  # how much nearer than to another's a predicted embedding should be to its own


def build(request: TrainUnclipPrior, world: World, load: Load) -> Recipe:
    """A prior, its CLIP, and the embeddings of its data, computed before the first step."""
    training = request.training
    device = runtime.device(training.device)
    clip = FrozenClip(request.clip, load, device)
    source, test = open_pictures(training, request.pictures, clip)
    embeddings = EmbeddingCache(request.cache, source, clip)
    texts = batch_texts(source, template_set(request.templates))
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = DiffusionPrior(_config(request, clip)).to(device)

    def minimise(batch: Batch, step: int) -> Loss:
        cond = clip.encode_texts(texts(batch))
        return objective(model, batch["vector"], cond, clip.empty, drop=request.drop)

    def prepare() -> Iterator[Progress]:
        yield from embeddings.fill()
        set_statistics(model, embeddings.content, request.normalise)

    def start_at(position: int) -> Iterator[Batch]:
        set_statistics(model, embeddings.content, request.normalise)
        return batches_for(embeddings.content, training, world)(position)

    return Recipe(
        model=model,
        exported=model,
        updates=[update(model, minimise, request)],
        batches=start_at,
        export=partial(checkpoint.export, card=build_card("unclip-prior", model.config, clip)),
        chance="before learning: an mse of 1, which is that of the mean embedding",
        evaluate=held_out_cosines(test, clip, texts, draw),
        prepare=prepare,
        warn=warn_if_unrelated,
        notes=data_notes(source, training),
    )


def draw(model: DiffusionPrior, cond: Conditioning, uncond: Conditioning) -> Tensor:
    """An image embedding of each text, from seeds 0, 1, ..."""
    *_, last = sample(model, cond, uncond, PictureNoise(range(len(cond["text"]))))
    return finish(model, last.x)


def update(model: nn.Module, minimise: Objective, request: Any) -> Update:
    """An optimizer step by AdamW with the settings that the requests of all parts share."""
    optimizer = adam(
        model,
        request.learning_rate,
        betas=(0.9, request.beta2),
        weight_decay=request.weight_decay,
    )
    return Update("", model, optimizer, minimise, max_norm=request.max_norm)


def open_pictures(training: Training, count: int, clip: FrozenClip) -> tuple[Source, Source]:
    """Training and test pictures as the CLIP reads them; the first `count`, or all."""
    source, test = open_train_and_test(training.data, size=clip.transform.size)
    length = source.info.length
    if count and (length is None or count < length):
        source = first_pictures(source, count)
    return source, test


def _config(request: TrainUnclipPrior, clip: FrozenClip) -> PriorConfig:
    width = request.width
    return PriorConfig(
        clip.dim,
        clip.text.width,
        clip.tokenizer.config.length,
        width,
        request.layers,
        request.heads,
        4 * width,
        steps=request.sampling_steps,
        guidance=request.guidance if request.drop else 1.0,
        candidates=request.candidates,
    )


def build_card(kind: str, config: object, clip: FrozenClip) -> dict[str, Any]:
    """The config.json of a part, with the digest of its CLIP."""
    return to_json(Card(kind, to_json(config), triptych=version("triptych"), clip=clip.digest))


def set_statistics(model: DiffusionPrior, content: CachedEmbeddings, kind: str) -> None:
    """Mean and deviation by which embeddings are normalised: of each number, or one scale.

    Raises:
        ValueError: the embeddings are all the same.
    """
    embeddings = content.embeddings
    if kind == "scale":
        mean = torch.zeros(embeddings.shape[1])
        std = embeddings.square().mean().sqrt().expand(embeddings.shape[1])
    else:
        mean, std = embeddings.mean(0), embeddings.std(0, correction=0)
    if not bool((std > 0).all()):
        raise ValueError(
            f"the embeddings of {content.info.name!r} do not differ: more pictures are needed"
        )
    model.mean.copy_(mean)
    model.std.copy_(std)


def held_out_cosines(
    test: Source,
    clip: FrozenClip,
    texts: Callable[[Batch], list[str]],
    draw: Callable[[Any, Conditioning, Conditioning], Tensor],
) -> Callable[[Any], dict[str, float]]:
    """Cosines of predicted embeddings of test texts to the true ones, to those of other pictures,
    to their texts; and, of true embeddings of other pictures, `cosine_unrelated`.
    """

    @cache
    def held_out() -> tuple[Conditioning, Tensor]:
        torch.manual_seed(0)  # of the templates
        batch = take_first(test, HELD_OUT)
        return clip.encode_texts(texts(batch)), clip.embed_images(batch["image"].to(clip.device))

    @torch.inference_mode()
    def evaluate(model: Any) -> dict[str, float]:
        cond, image = held_out()
        count = len(image)
        uncond = {name: value.expand(count, *value.shape[1:]) for name, value in clip.empty.items()}
        return compare(draw(model, cond, uncond), image, cond["text"])

    return evaluate


def compare(drawn: Tensor, image: Tensor, text: Tensor) -> dict[str, float]:
    """Mean cosines of embeddings that were drawn (N, E) to the true ones and to others."""
    drawn, other = F.normalize(drawn, dim=-1), image.roll(1, 0)
    return {
        "cosine_true": float((drawn * image).sum(1).mean()),
        "cosine_shuffled": float((drawn * other).sum(1).mean()),
        "cosine_text": float((drawn * text).sum(1).mean()),
        "cosine_unrelated": float((image * other).sum(1).mean()),
    }


def warn_if_unrelated(row: dict[str, Any]) -> str:
    """A warning where predicted embeddings are not nearer to their own than to other pictures'."""
    if "cosine_true" not in row or row["cosine_true"] >= row["cosine_shuffled"] + LEAST:
        return ""
    return (
        f"embeddings are hardly nearer to their own picture's (cosine {row['cosine_true']:.2f}) "
        f"than to another's ({row['cosine_shuffled']:.2f}). If that stays: does the CLIP match "
        "these texts and pictures (`triptych evaluate` of its run)? Try more steps, or a lower "
        "--learning-rate"
    )

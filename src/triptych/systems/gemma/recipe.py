"""Recipe: a Gemma on text files, from the start or from another Gemma."""

import hashlib
import math
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from triptych import runtime
from triptych.fields import to_json
from triptych.nn import lora
from triptych.nn.loss import Loss
from triptych.systems.gemma.model import Gemma, GemmaBlock, GemmaConfig, objective
from triptych.systems.gemma.request import TrainLanguage
from triptych.systems.gemma.texts import Rows, Texts, encode_texts, read_texts
from triptych.text.language import LanguageTokenizer, train_language_tokenizer
from triptych.train import checkpoint
from triptych.train.distributed import World
from triptych.train.optimizer import adam
from triptych.train.recipe import Batch, Recipe, Update
from triptych.weights.loaded import Card, Load

AT_ONCE = 16
JUDGED = 50_000
"""Held-out tokens of an evaluation."""
LEARNED_FROM = 20_000_000
"""Characters of which a vocabulary is made."""


def build(request: TrainLanguage, world: World, load: Load) -> Recipe:
    """Recipe of a Gemma on the texts of a file or folder."""
    training = request.training
    if training.size:
        raise ValueError("texts have no pictures: leave out size")
    device = runtime.device(training.device)
    texts = read_texts(training.data)
    model, tokenizer = _start(request, texts, load)
    model = model.to(device)
    rows = Rows(encode_texts(texts.train, tokenizer), request.length)
    held = Rows(encode_texts(texts.held_out, tokenizer), request.length)
    if not len(rows) or not len(held):
        raise ValueError(
            f"{texts.name} has {len(rows.tokens):,} tokens, and {len(held.tokens):,} held out: too "
            f"few for rows of {request.length}"
        )
    card = to_json(Card("gemma", to_json(model.config), triptych=version("triptych")))

    def batches(position: int) -> Iterator[Batch]:
        size = training.batch_size // world.size
        return rows.batches(size, training.seed, world.rank, world.size, position)

    def minimise(batch: Batch, step: int) -> Loss:
        return objective(model, batch["tokens"])

    def evaluate(module: Gemma) -> dict[str, float]:
        return measure(module, held, tokenizer, device) | floor(rows.tokens, held.tokens)

    def export(run: Path, module: nn.Module) -> None:
        if not (run / "tokenizer.json").exists():  # a large vocabulary takes some seconds
            tokenizer.save(run)
        checkpoint.export(run, lora.merge(module) if request.lora else module, card)

    optimizer = adam(
        model,
        request.learning_rate,
        betas=(0.9, request.beta2),
        weight_decay=request.weight_decay,
    )
    return Recipe(
        model=model,
        exported=model,
        updates=[Update("", model, optimizer, minimise, max_norm=request.max_norm)],
        batches=batches,
        export=export,
        blocks=(GemmaBlock,),
        chance=f"before learning: about ln({tokenizer.vocabulary:,}) per token",
        evaluate=evaluate,
        notes=(f"{len(rows.tokens):,} tokens, and {len(held.tokens):,} held out",),
        vocabulary="" if request.init else tokenizer.to_json(),
        digest=hashlib.sha256(rows.tokens.numpy().data).hexdigest(),
    )


def _start(request: TrainLanguage, texts: Texts, load: Load) -> tuple[Gemma, LanguageTokenizer]:
    """The model at step 0, and its tokenizer."""
    torch.manual_seed(runtime.key(request.training.seed, "weights"))
    if request.init:
        loaded = load(request.init, dtype="float32")
        if not isinstance(loaded.model, Gemma):
            raise ValueError(f"{request.init} is a {loaded.card.model}, and a gemma is needed here")
        if loaded.language is None:
            raise ValueError(f"{request.init} has no tokenizer: it cannot be trained")
        loaded.model.requires_grad_(True)
        if request.lora:
            lora.add(loaded.model, request.lora, names=("q_proj", "v_proj", "up", "down"))
        return loaded.model, loaded.language
    learned: list[str] = []
    left = LEARNED_FROM
    for text in texts.train:
        lines = text[:left].splitlines(keepends=True)  # words do not cross lines
        learned += lines
        left -= sum(map(len, lines))
    tokenizer = train_language_tokenizer(learned, request.vocabulary)
    return Gemma(configure(request, tokenizer.vocabulary)), tokenizer


def configure(request: TrainLanguage, vocabulary: int) -> GemmaConfig:
    """A Gemma 3 of these sizes."""
    return GemmaConfig(
        vocabulary,
        request.width,
        request.layers,
        request.heads,
        request.kv_heads,
        request.head_width,
        request.hidden,
        context=8192,
        window=request.window or None,
        query_scale=float(request.head_width),
    )


@torch.inference_mode()
def measure(
    model: Gemma, held: Rows, tokenizer: LanguageTokenizer, device: torch.device
) -> dict[str, float]:
    """The perplexity of held-out tokens, and the bits per byte of their text, which compare between
    vocabularies.
    """
    count = min(len(held), max(1, JUDGED // held.length))
    nats = 0.0
    read: list[Tensor] = []
    for begin in range(0, count, AT_ONCE):
        tokens = held.take(np.arange(begin, min(begin + AT_ONCE, count), dtype=np.int64))
        nats += float(objective(model, tokens.to(device)).total)
        read.append(tokens[:, 1:].flatten())
    tokens = torch.cat(read)
    size = len(tokenizer.decode(tokens.tolist()).encode())
    return {
        "perplexity": math.exp(nats / len(tokens)),
        "bits_per_byte": nats / math.log(2) / max(size, 1),
    }


def floor(train: Tensor, held: Tensor) -> dict[str, float]:
    """The perplexity of who knows only how frequent tokens are."""
    size = int(torch.cat([train, held]).max()) + 1
    counts = train.long().bincount(minlength=size).double() + 1
    nats = -(counts / counts.sum()).log()[held.long()].mean()
    return {"by_frequency": math.exp(float(nats))}

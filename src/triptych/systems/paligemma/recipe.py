"""Recipe: a PaliGemma on pictures with captions, questions and boxes."""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from triptych import runtime
from triptych.data.source import Source
from triptych.data.sources import open_train_and_test
from triptych.fields import to_json
from triptych.nn import lora
from triptych.nn.loss import Loss
from triptych.systems.gemma.model import Gemma, GemmaConfig
from triptych.systems.paligemma.examples import (
    draw_examples,
    encode,
    texts_of,
    unasked,
    with_questions,
)
from triptych.systems.paligemma.held_out import held_out
from triptych.systems.paligemma.model import PaliGemma, PaliGemmaConfig, objective
from triptych.systems.paligemma.request import TrainVlm
from triptych.systems.siglip.model import Siglip, SiglipImageConfig
from triptych.text.language import LanguageTokenizer, train_language_tokenizer
from triptych.text.templates import template_set
from triptych.train import checkpoint
from triptych.train.distributed import World
from triptych.train.optimizer import adam
from triptych.train.recipe import Batch, Recipe, Update, batches_for, data_notes
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.loaded import Card, Load, Loaded


def build(request: TrainVlm, world: World, load: Load) -> Recipe:
    """Recipe of a PaliGemma, with random weights or parts of trained models."""
    training = request.training
    device = runtime.device(training.device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    source, test = (with_questions(each, request.tasks) for each in (source, test))
    templates = template_set(request.templates)
    model, tokenizer = _start(request, source, templates, load)
    model = model.to(device)
    transform = ImageTransform(model.config.size, HALF, HALF, "squash", "bicubic", crop=False)
    draw = draw_examples(source, request.tasks, templates)
    card = to_json(
        Card(
            "paligemma",
            to_json(model.config),
            classes=source.info.classes,
            transform=transform,
            triptych=version("triptych"),
        )
    )

    def minimise(batch: Batch, step: int) -> Loss:
        tokens, prefix, lengths, cut = encode(draw(batch), tokenizer, request.length)
        loss = objective(
            model,
            batch["image"].expand(-1, 3, -1, -1),  # grey is repeated
            tokens.to(device),
            prefix.to(device),
            lengths.to(device),
            request.averaged,
        )
        share = loss.total.new_tensor(cut / len(tokens))
        return Loss(loss.total, loss.count, loss.terms | {"cut": share})

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
        batches=batches_for(source, training, world),
        export=export,
        chance=f"before learning: about ln({tokenizer.vocabulary:,}) per token",
        evaluate=held_out(test, tokenizer, request.length, templates, device),
        notes=data_notes(unasked(source), training),
    )


def _start(
    request: TrainVlm, source: Source, templates: tuple[str, ...], load: Load
) -> tuple[PaliGemma, LanguageTokenizer]:
    """The model at step 0, and its tokenizer."""
    height, width, _ = source.info.shape
    if height != width:
        raise ValueError(f"pictures of {width} x {height} pixels: choose a square --size")
    eye = _load_part(request.vision, Siglip, load) if request.vision else None
    words = _load_part(request.language, Gemma, load) if request.language else None
    if words is None:
        texts = texts_of(source, request.tasks, templates)
        places = "detect" in request.tasks
        tokenizer = train_language_tokenizer(texts, request.vocabulary, places)
        text = _text_config(request, tokenizer.vocabulary)
    else:
        if words.language is None:
            raise ValueError(f"{request.language} has no tokenizer: it cannot be trained")
        tokenizer, text = words.language, words.config
    if eye is None:
        image = SiglipImageConfig(
            height, request.patch, request.image_width, request.image_layers, request.image_heads,
            4 * request.image_width, stem=request.stem, pooled=False,
        )  # fmt: skip
    else:
        image = _unpooled(eye, height, request.vision)
    torch.manual_seed(runtime.key(request.training.seed, "weights"))
    model = PaliGemma(PaliGemmaConfig(image, text))
    if eye is not None:
        theirs = eye.model.get_submodule("image").state_dict()
        own = {name: theirs[name] for name in model.image.state_dict()}
        model.image.load_state_dict(own)
    if words is not None:
        model.text.load_state_dict(words.model.state_dict())
    if request.lora:
        lora.add(model.text, request.lora, names=("q_proj", "v_proj", "up", "down"))
    if request.freeze != "none":
        model.get_submodule(request.freeze).requires_grad_(False)
    return model, tokenizer


def _load_part(name: str, kind: type, load: Load) -> Loaded:
    loaded = load(name, dtype="float32")
    if not isinstance(loaded.model, kind):
        raise ValueError(f"{name} is a {loaded.card.model}, and a {kind.__name__} is needed here")
    loaded.model.requires_grad_(True)
    return loaded


def _unpooled(eye: Loaded, size: int, name: str) -> SiglipImageConfig:
    """The image tower of a SigLIP without its pooling."""
    image: SiglipImageConfig = eye.config.image
    if image.naflex:
        raise ValueError(f"{name} reads pictures of any shape (NaFlex): choose another model")
    if image.size != size:
        raise ValueError(f"{name} reads {image.size} pixels: add --size {image.size}")
    return replace(image, pooled=False)


def _text_config(request: TrainVlm, vocabulary: int) -> GemmaConfig:
    """A Gemma 1 of these sizes, as in PaliGemma."""
    return GemmaConfig(
        vocabulary,
        request.width,
        request.layers,
        request.heads,
        request.kv_heads,
        request.head_width,
        request.hidden,
        context=8192,
        post_norms=False,
        head_norms=False,
        window=None,
        pattern=1,
        base=10_000.0,
        query_scale=float(request.head_width),
    )

"""Recipe: CLIP and SigLIP on pictures with captions or class names."""

import copy
import math
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych import runtime
from triptych.config import to_json
from triptych.data.captions import batch_texts, captions_of
from triptych.data.source import Source
from triptych.data.sources import open_train_and_test
from triptych.nn import lora
from triptych.nn.contrastive.losses import duplicate_groups, sigmoid_loss, softmax_loss
from triptych.nn.contrastive.ranks import sigmoid_loss_of_ranks, softmax_loss_of_ranks
from triptych.nn.loss import Loss
from triptych.systems.clip import model as clip
from triptych.systems.clip.model import CbowConfig, Clip, ClipConfig, TextConfig, VitConfig
from triptych.systems.clip.resnet import ResNetConfig
from triptych.systems.siglip import model as siglip
from triptych.systems.siglip.model import (
    Siglip,
    SiglipConfig,
    SiglipImageConfig,
    SiglipTextConfig,
    SiglipWordsConfig,
)
from triptych.systems.two_towers.matching import held_out_matches
from triptych.systems.two_towers.request import Towers, TrainClip, TrainSiglip
from triptych.text.templates import template_set
from triptych.text.tokenizer import Tokenizer, train_tokenizer
from triptych.train import checkpoint
from triptych.train.distributed import World
from triptych.train.optimizer import adam
from triptych.train.recipe import Batch, Recipe, Update, batches_for
from triptych.vision.augment import Augmentation, augment
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.loaded import Card, Load

LEARNED_FROM = 20_000  # pictures whose captions make the vocabulary


def build(request: TrainClip | TrainSiglip, world: World, load: Load) -> Recipe:
    """Recipe of two towers, with random weights or starting from a trained model."""
    training, towers = request.training, request.towers
    device = runtime.device(training.device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    templates = template_set(towers.templates)
    model, tokenizer, transform = _start(request, source, templates, load)
    model = model.to(device)
    initial = copy.deepcopy(model).requires_grad_(False) if towers.interpolate < 1 else None
    _choose_what_moves(model, towers)
    read = batch_texts(source, templates)
    changes = _changes(towers)
    objective = clip.objective if isinstance(model, Clip) else siglip.objective
    match = _match(model, world)
    card = to_json(_card(model, source, tokenizer, transform))

    def minimise(batch: Batch, step: int) -> Loss:
        texts = read(batch)
        groups, _ = duplicate_groups(texts)
        everyone = torch.cat(world.gather(groups))
        repeated = len(everyone) - len(everyone.unique())
        image = augment(_rgb(batch["image"]), changes, torch.default_generator)
        if towers.lock == "image":
            model.image.eval()  # keep its running statistics fixed too
        encoded = tokenizer.encode(texts, full=isinstance(model, Siglip))
        loss = objective(
            model,  # type: ignore[arg-type]
            transform.normalise(image),
            encoded.tokens.to(device),
            groups=groups.to(device) if towers.duplicates and repeated else None,
            keep=1 - towers.patch_dropout,
            cache=towers.gradient_cache,
            match=match,
        )
        cut = sum(map(bool, encoded.cut)) / len(texts)
        shares = {"repeated": repeated / len(everyone), "cut": cut}
        terms = loss.terms | {name: loss.total.new_tensor(x) for name, x in shares.items()}
        return Loss(loss.total, loss.count, terms)

    def export(run: Path, module: nn.Module) -> None:
        tokenizer.save(run)
        merged = lora.merge(module) if towers.lora else module
        if initial is not None:
            merged = interpolate(initial, merged, towers.interpolate)
        checkpoint.export(run, merged, card)

    optimizer = adam(
        model,
        towers.learning_rate,
        betas=(0.9, towers.beta2),
        weight_decay=towers.weight_decay,
    )
    return Recipe(
        model=model,
        exported=model,
        updates=[Update("", model, optimizer, minimise, max_norm=towers.max_norm)],
        batches=batches_for(source, training, world, hard_negative_pool=towers.hard_negative_pool),
        export=export,
        chance=_chance(model, training.batch_size),
        evaluate=held_out_matches(test, tokenizer, transform, templates, device),
    )


def _match(model: Clip | Siglip, world: World) -> clip.Match:
    """The loss over all pairs of the batch, on one process or several."""
    if world.size > 1:
        return softmax_loss_of_ranks if isinstance(model, Clip) else sigmoid_loss_of_ranks
    return softmax_loss if isinstance(model, Clip) else sigmoid_loss


def interpolate(before: nn.Module, after: nn.Module, share: float) -> nn.Module:
    """The weights (1 - share) * before + share * after: robust fine-tuning (WiSE-FT,
    arXiv:2109.01903, equation 1).
    """
    between = copy.deepcopy(after)
    old = dict(before.named_parameters())
    with torch.no_grad():
        for name, parameter in between.named_parameters():
            parameter.copy_(torch.lerp(old[name], parameter, share))
    return between


def _changes(towers: Towers) -> Augmentation:
    """Random augmentation of training pictures."""
    return Augmentation(
        crop=(towers.crop, 1.0),
        ratio=4 / 3 if towers.crop < 1 else 1.0,
        flip=towers.flip,
        brightness=towers.colour,
        contrast=towers.colour,
        saturation=towers.colour,
    )


def _start(
    request: TrainClip | TrainSiglip, source: Source, templates: tuple[str, ...], load: Load
) -> tuple[Clip | Siglip, Tokenizer, ImageTransform]:
    """The model at step 0, with its tokenizer and transform."""
    towers, training = request.towers, request.training
    height, width, _ = source.info.shape
    if height != width:
        raise ValueError(f"pictures of {width} x {height} pixels: choose a square --size")
    if towers.init:
        return _continued(request, source, load)
    if source.info.has_captions:
        texts = [text for notes in captions_of(source, LEARNED_FROM) for text in notes]
    else:
        texts = [text.replace("{}", name) for name in source.info.classes for text in templates]
    tokenizer = train_tokenizer(texts, towers.vocabulary, towers.length)
    torch.manual_seed(runtime.key(training.seed, "weights"))
    config = _config(request, height, tokenizer)
    model = Clip(config) if isinstance(config, ClipConfig) else Siglip(config)
    return model, tokenizer, ImageTransform(height, HALF, HALF)


def _continued(
    request: TrainClip | TrainSiglip, source: Source, load: Load
) -> tuple[Clip | Siglip, Tokenizer, ImageTransform]:
    init = request.towers.init
    found = load(init, dtype="float32")
    wanted = Clip if isinstance(request, TrainClip) else Siglip
    if not isinstance(found.model, wanted):
        raise ValueError(
            f"{init} is a {found.card.model} and cannot be trained by this recipe: use `triptych "
            f"train {found.card.model}`"
        )
    if found.tokenizer is None or not isinstance(found.transform, ImageTransform):
        raise ValueError(
            f"{init} has no tokenizer, or reads pictures of any shape (NaFlex): "
            "choose another model"
        )
    if found.config.size != source.info.shape[0]:
        raise ValueError(f"{init} reads {found.config.size} pixels: add --size {found.config.size}")
    return found.model.requires_grad_(True), found.tokenizer, found.transform


def _choose_what_moves(model: Clip | Siglip, towers: Towers) -> None:
    """Freeze a locked tower; with LoRA freeze all weights but its own."""
    open_towers = [model.image, model.text]
    if towers.lora:
        for tower in open_towers:
            lora.add(tower, towers.lora, names=("q_proj", "v_proj", "up", "down"))
    if towers.lock != "none":
        locked = model.image if towers.lock == "image" else model.text
        locked.requires_grad_(False)


def _config(
    request: TrainClip | TrainSiglip, size: int, tokenizer: Tokenizer
) -> ClipConfig | SiglipConfig:
    towers, tokens = request.towers, tokenizer.config
    assert tokens.start is not None and tokens.end is not None
    unspoken = (tokens.pad, tokens.start, tokens.end)
    words, hidden = tokenizer.vocabulary, 4 * towers.text_width
    if isinstance(request, TrainSiglip):
        text = SiglipTextConfig(
            words, towers.length, towers.text_width, towers.text_layers, towers.text_heads, hidden
        )
        bag = SiglipWordsConfig(words, towers.length, towers.text_width, unspoken)
        picture = SiglipImageConfig(
            size,
            towers.patch,
            towers.width,
            towers.layers,
            towers.heads,
            4 * towers.width,
            stem=towers.stem,
            stem_group=towers.stem_group if towers.stem else 0,
        )
        plain = towers.text == "transformer"
        return SiglipConfig(picture, text if plain else None, None if plain else bag)
    config = ClipConfig(
        request.dim,
        VitConfig(
            size,
            towers.patch,
            towers.width,
            towers.layers,
            towers.heads,
            4 * towers.width,
            pool=request.pool,
            stem=towers.stem,
            stem_group=towers.stem_group if towers.stem else 0,
        ),
        text=TextConfig(
            words,
            towers.length,
            towers.text_width,
            towers.text_layers,
            towers.text_heads,
            hidden,
            pool=towers.text_pool,
            end=tokens.end,
        ),
    )
    if request.image == "resnet":
        width = request.resnet_width
        net = ResNetConfig(size, width, request.resnet_layers, heads=max(1, width * 32 // 64))
        config = replace(config, vit=None, resnet=net)
    if towers.text == "words":
        bag_of_clip = CbowConfig(words, towers.length, towers.text_width, unspoken)
        config = replace(config, text=None, words=bag_of_clip)
    return config


def _card(
    model: Clip | Siglip, source: Source, tokenizer: Tokenizer, transform: ImageTransform
) -> Card:
    kind = "clip" if isinstance(model, Clip) else "siglip"
    settings: dict[str, Any] = to_json(model.config)
    return Card(
        kind,
        settings,
        classes=source.info.classes,
        tokenizer=tokenizer.config,
        transform=transform,
        triptych=version("triptych"),
    )


def _chance(model: Clip | Siglip, batch: int) -> str:
    """The loss of a model that has learned nothing, as a line to print."""
    if isinstance(model, Clip):
        return f"before learning: ln({batch}) = {math.log(batch):.3f}"
    rare = 1 / batch  # the best constant answer to every pair
    bits = -(rare * math.log(rare) + (1 - rare) * math.log1p(-rare)) * batch if batch > 1 else 0.0
    return f"the best answer that knows nothing: {bits:.3f}"


def _rgb(image: Tensor) -> Tensor:
    """Repeat a grey channel three times."""
    return image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image

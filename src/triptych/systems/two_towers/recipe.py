"""Recipe: CLIP and SigLIP on pictures with captions or class names."""

import copy
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych import runtime
from triptych.data.captions import batch_texts, captions_of
from triptych.data.source import Source
from triptych.data.sources import open_train_and_test
from triptych.fields import to_json
from triptych.nn import lora
from triptych.nn.bag_of_words import CbowConfig
from triptych.nn.contrastive.losses import duplicate_groups
from triptych.nn.contrastive.ranks import Ranks
from triptych.nn.loss import Loss
from triptych.nn.transformer import Block
from triptych.systems.clip import model as clip
from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, VitConfig
from triptych.systems.clip.resnet import Bottleneck, ResNetConfig
from triptych.systems.siglip import model as siglip
from triptych.systems.siglip.model import Siglip, SiglipConfig, SiglipImageConfig, SiglipTextConfig
from triptych.systems.two_towers.matching import held_out_matches
from triptych.systems.two_towers.request import Towers, TrainClip, TrainSiglip
from triptych.text.templates import template_set
from triptych.text.tokenizer import Tokenizer, train_tokenizer
from triptych.train import checkpoint
from triptych.train.distributed import World
from triptych.train.optimizer import adam
from triptych.train.recipe import Batch, Recipe, Update, batches_for, data_notes
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
    _freeze(model, towers)
    read = batch_texts(source, templates)
    augmentation = _augmentation(towers)
    objective = clip.objective if isinstance(model, Clip) else siglip.objective
    card = to_json(_card(model, source, tokenizer, transform))

    def minimise(batch: Batch, step: int) -> Loss:
        texts = read(batch)
        groups, _ = duplicate_groups(texts)
        everyone = torch.cat(world.gather(groups))
        repeated = len(everyone) - len(everyone.unique())
        image = batch["image"].expand(-1, 3, -1, -1)  # grey is repeated
        image = augment(image, augmentation, torch.default_generator)
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
            ranks=Ranks(world.rank, world.size),
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
        blocks=(Block, Bottleneck),
        chance=_chance(model, training.batch_size),
        evaluate=held_out_matches(test, tokenizer, transform, templates, device),
        notes=data_notes(source, training),
        vocabulary="" if towers.init else tokenizer.to_json(),
    )


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


def _augmentation(towers: Towers) -> Augmentation:
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
        return _load_init(request, source, load)
    if source.info.has_captions:
        texts = [text for notes in captions_of(source, LEARNED_FROM) for text in notes]
    else:
        texts = [text.replace("{}", name) for name in source.info.classes for text in templates]
    tokenizer = train_tokenizer(texts, towers.vocabulary, towers.length)
    torch.manual_seed(runtime.key(training.seed, "weights"))
    config = _config(request, height, tokenizer)
    model = Clip(config) if isinstance(config, ClipConfig) else Siglip(config)
    return model, tokenizer, ImageTransform(height, HALF, HALF)


def _load_init(
    request: TrainClip | TrainSiglip, source: Source, load: Load
) -> tuple[Clip | Siglip, Tokenizer, ImageTransform]:
    init = request.towers.init
    loaded = load(init, dtype="float32")
    kind = Clip if isinstance(request, TrainClip) else Siglip
    if not isinstance(loaded.model, kind):
        raise ValueError(
            f"{init} is a {loaded.card.model} and cannot be trained by this recipe: use `triptych "
            f"train {loaded.card.model}`"
        )
    if loaded.tokenizer is None or not isinstance(loaded.transform, ImageTransform):
        raise ValueError(
            f"{init} has no tokenizer, or reads pictures of any shape (NaFlex): "
            "choose another model"
        )
    size = loaded.config.size
    if size != source.info.shape[0]:
        raise ValueError(f"{init} reads {size} pixels: add --size {size}")
    return loaded.model.requires_grad_(True), loaded.tokenizer, loaded.transform


def _freeze(model: Clip | Siglip, towers: Towers) -> None:
    """Freeze a locked tower; with LoRA freeze all weights but its own."""
    if towers.lora:
        for tower in (model.image, model.text):
            lora.add(tower, towers.lora, names=("q_proj", "v_proj", "up", "down"))
    if towers.lock != "none":
        model.get_submodule(towers.lock).requires_grad_(False)


def _config(
    request: TrainClip | TrainSiglip, size: int, tokenizer: Tokenizer
) -> ClipConfig | SiglipConfig:
    towers, tokens = request.towers, tokenizer.config
    assert tokens.start is not None and tokens.end is not None
    image = (size, towers.patch, towers.width, towers.layers, towers.heads, 4 * towers.width)
    stem_group = towers.stem_group if towers.stem else 0
    words, width = tokenizer.vocabulary, towers.text_width
    text = (words, towers.length, width, towers.text_layers, towers.text_heads, 4 * width)
    bag = CbowConfig(words, towers.length, width, (tokens.pad, tokens.start, tokens.end))
    bag_only = towers.text == "words"
    if isinstance(request, TrainSiglip):
        picture = SiglipImageConfig(*image, stem=towers.stem, stem_group=stem_group)
        if bag_only:
            return SiglipConfig(picture, None, bag)
        return SiglipConfig(picture, SiglipTextConfig(*text))
    vit = VitConfig(*image, pool=request.pool, stem=towers.stem, stem_group=stem_group)
    reader = TextConfig(*text, pool=towers.text_pool, end=tokens.end)
    net = None
    if request.image == "resnet":
        channels = request.resnet_width
        heads = max(1, channels * 32 // 64)
        net = ResNetConfig(size, channels, request.resnet_layers, heads=heads)
    return ClipConfig(
        request.dim,
        vit=None if net else vit,
        resnet=net,
        text=None if bag_only else reader,
        words=bag if bag_only else None,
    )


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

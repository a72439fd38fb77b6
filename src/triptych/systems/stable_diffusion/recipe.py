"""Training of text to image, by diffusion in latents or on pixels."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from triptych import runtime
from triptych.data.captions import batch_texts, class_words
from triptych.data.disk.table import first_pictures
from triptych.data.order.batches import Batches, batches, take_first
from triptych.data.order.buckets import BucketedSource, bucket_batches
from triptych.data.source import Source
from triptych.data.sources import open_source, open_train_and_test
from triptych.diffusion.denoiser import Predicts
from triptych.diffusion.names import parse_sampler
from triptych.diffusion.sampling import check_draws_batches
from triptych.nn import lora
from triptych.nn.loss import Loss
from triptych.nn.spatial_transformer import ContextBlock
from triptych.nn.transformer import Block as TextBlock
from triptych.systems.autoencoder.model import Autoencoder
from triptych.systems.autoencoder.tiny_model import TinyAutoencoder
from triptych.systems.clip.model import Clip, TextConfig, TextEncoderConfig
from triptych.systems.stable_diffusion.draw_prompts import encode_texts
from triptych.systems.stable_diffusion.model import (
    SamplingConfig,
    ScheduleConfig,
    StableDiffusion,
    StableDiffusionConfig,
    objective,
)
from triptych.systems.stable_diffusion.request import TrainTextToImage
from triptych.systems.stable_diffusion.training.cached_latents import CachedLatents
from triptych.systems.stable_diffusion.training.caption_words import caption_words, vocabulary_texts
from triptych.systems.stable_diffusion.training.encode_latents import batch_latents
from triptych.systems.stable_diffusion.training.frozen import (
    condition_on_sizes,
    crop_to_buckets,
    refuse_untrainable,
    separate_unet,
)
from triptych.systems.stable_diffusion.training.held_out_prompts import (
    SHOWN,
    held_out_judge,
    prompt_sheet,
)
from triptych.systems.stable_diffusion.training.latent_cache import LatentCache
from triptych.systems.stable_diffusion.training.run_files import exporter
from triptych.systems.stable_diffusion.unet import Block, LatentUNetConfig, Middle
from triptych.text.templates import template_set
from triptych.text.tokenizer import Tokenizer, train_tokenizer
from triptych.train.distributed import World
from triptych.train.optimizer import build_optimizer
from triptych.train.recipe import Batch, Recipe, Update, data_notes
from triptych.weights.loaded import Load, Loaded

HELD_OUT = 256  # test pictures for the held-out loss
FEWEST, PIXELS = 8, 1 << 22  # fewest of these pictures, and most pixels of all of them
SHOWN_LARGE = 4  # prompts of a sheet of large pictures
LARGE = 256 * 256  # pixels of a picture that is not large
CHUNK = 64


def build(request: TrainTextToImage, world: World, load: Load) -> Recipe:
    """A text-to-image model, new or from a checkpoint, with its data."""
    training = request.training
    device = runtime.device(training.device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    templates = template_set(request.templates)
    easier = _open_easier(request, source) if request.first else None
    torch.manual_seed(runtime.key(training.seed, "weights"))
    if request.pictures:
        source = first_pictures(source, request.pictures)
    model, tokenizers = _initial_model(request, source, templates, load)
    _freeze_parts(model, request)
    source = crop_to_buckets(source, model.config, request.training.size if request.buckets else 0)
    trains_text = any(p.requires_grad for p in model.text.parameters())
    cache = None
    if request.cache:
        cache = _open_cache(request, source, model, tokenizers, texts=not trains_text)
    config, texts_of = model.config, batch_texts(source, templates)
    # Frozen parts are neither averaged nor saved in checkpoints. With a cache they are not even in
    # memory, so nothing below may keep a reference to `model`.
    unet_only = not trains_text and bool(request.cache or request.init)
    learner, complete = (
        separate_unet(model, cache if unet_only else None, device)
        if unet_only
        else (model.to(device), None)
    )
    trained: nn.Module = learner.unet if unet_only else learner
    encode = (
        cache.encode_texts if cache and unet_only else partial(encode_texts, learner, tokenizers)
    )

    def minimise(batch: Batch, step: int) -> Loss:
        texts = texts_of(batch)
        dropped = (torch.rand(len(texts)) < request.drop).tolist()
        texts = ["" if drop else text for text, drop in zip(texts, dropped, strict=True)]
        with torch.set_grad_enabled(trains_text and torch.is_grad_enabled()):
            cond = encode(texts) | condition_on_sizes(config, batch, source.info.shape, device)
        return objective(
            learner,
            batch_latents(learner, batch, device, likeliest=request.latents == "likeliest"),
            cond,
            min_snr=request.min_snr or None,
            loss_space=request.loss_space or None,
            offset=request.offset,
        )

    optimizer = _build_optimizer(request, trained, learner)
    large = config.sampling.height * config.sampling.width > LARGE
    sheet = prompt_sheet(test, tokenizers, templates, SHOWN_LARGE if large else SHOWN)
    words = None if request.init else caption_words(source, templates)

    return Recipe(
        model=trained,
        exported=trained,
        updates=[Update("", trained, optimizer, minimise, max_norm=request.max_norm)],
        batches=lambda start: _batches(request, cache or source, easier, start, world),
        export=exporter(config, tokenizers, words, complete, with_lora=bool(request.lora)),
        blocks=(Middle, Block, ContextBlock, TextBlock),
        chance=_describe_start(request, config),
        sample=(lambda module: sheet(complete(module))) if complete else sheet,
        evaluate=_evaluator(request, test, tokenizers, texts_of, complete),
        prepare=cache.fill if cache else None,
        notes=data_notes(source, training),
        vocabulary="" if request.init else tokenizers[0].to_json(),
    )


def _build_optimizer(
    request: TrainTextToImage, trained: nn.Module, learner: StableDiffusion
) -> Optimizer:
    unet = learner.unet
    embeddings = [unet.time] if unet.added is None else [unet.time, unet.added]
    return build_optimizer(
        request,
        trained,
        [*embeddings, unet.down, unet.middle, unet.up],
        betas=(0.9, request.beta2),
        weight_decay=request.weight_decay,
    )


def _evaluator(
    request: TrainTextToImage,
    test: Source,
    tokenizers: tuple[Tokenizer, ...],
    texts_of: Callable[[Batch], list[str]],
    complete: Callable[[nn.Module], StableDiffusion] | None,
) -> Callable[[nn.Module], dict[str, float]]:
    """Held-out loss and, for the built-in world, the judge's scores."""
    judge = held_out_judge(test, tokenizers)
    pixels = test.info.shape[0] * test.info.shape[1]
    held_out = take_first(test, min(HELD_OUT, max(FEWEST, PIXELS // pixels)))

    def evaluate(module: nn.Module) -> dict[str, float]:
        model = complete(module) if complete else module
        assert isinstance(model, StableDiffusion)
        image, texts = held_out["image"], texts_of(held_out)
        loss = held_out_loss(model, tokenizers, image, texts, request.loss_space or None)
        return {"test_mse": loss} | (judge(model) if judge else {})

    return evaluate


def _open_cache(
    request: TrainTextToImage,
    source: Source,
    model: StableDiffusion,
    tokenizers: tuple[Tokenizer, ...],
    *,
    texts: bool,
) -> LatentCache:
    templates = () if source.info.has_captions else template_set(request.templates)
    return LatentCache(
        Path(request.cache),
        source,
        model,
        tokenizers,
        sentences=[
            t.replace("{}", class_words(name)) for name in source.info.classes for t in templates
        ],
        texts=texts,
        precision=request.cache_precision,
        device=runtime.device(request.training.device),
    )


def _describe_start(request: TrainTextToImage, config: StableDiffusionConfig) -> str:
    if not request.init:
        return "before training: an mse of about 1 to 2"
    schedule = config.schedule
    return (
        f"continuing from {request.init}, which predicts the {schedule.predicts} on a "
        f"{schedule.kind} schedule"
    )


def _open_easier(request: TrainTextToImage, source: Source) -> Source:
    """The data of the first steps. ValueError if texts or shapes are not like the source's."""
    ours = source.info
    channels = 3 if ours.shape[2] == 3 else None
    easier = open_source(request.first, size=request.training.size or None, channels=channels)
    theirs = easier.info
    if theirs.has_captions != ours.has_captions:
        one, other = (ours, theirs) if ours.has_captions else (theirs, ours)
        raise ValueError(
            f"{one.name!r} has captions and {other.name!r} has none, but one run learns both: "
            "--data and --first must either both have captions or both have classes"
        )
    if not ours.has_captions and theirs.classes != ours.classes:
        raise ValueError(f"{ours.name!r} and {theirs.name!r} must have the same classes")
    if theirs.shape != ours.shape:
        raise ValueError(
            f"the pictures of {theirs.name!r} have height, width and channels {theirs.shape}, "
            f"those of {ours.name!r} {ours.shape}: choose one size for both with --size"
        )
    return easier


def _batches(
    request: TrainTextToImage,
    data: Source | LatentCache,
    easier: Source | None,
    start: int,
    world: World,
) -> Iterator[Batch]:
    """The batches: those of easier data first, if there is any."""
    training = request.training
    source = data.open_latents() if isinstance(data, LatentCache) else data

    def open_batches(chosen: Source, first: int) -> Batches:
        make = partial(batches, chosen)
        if request.buckets:
            assert isinstance(chosen, BucketedSource | CachedLatents)
            make = partial(bucket_batches, chosen, chosen.buckets)
        return make(
            training.batch_size // world.size,
            seed=training.seed,
            rank=world.rank,
            ranks=world.size,
            start=first,
            workers=training.workers,
        )

    easy = request.first_steps * training.accumulate - start
    if easier is None or easy <= 0:
        return open_batches(source, start)
    return chain(islice(open_batches(easier, start), easy), open_batches(source, start + easy))


@torch.inference_mode()
def held_out_loss(
    model: StableDiffusion,
    tokenizers: tuple[Tokenizer, ...],
    image: Tensor,
    texts: list[str],
    loss_space: Predicts | None = None,
) -> float:
    """The loss on held-out pictures at evenly spaced noise levels, with fixed noise."""
    device = next(model.parameters()).device
    count = len(image)
    order = torch.randperm(count, generator=runtime.generator(0))
    at = model.schedule.draw(((order + 0.5) / count).to(device))
    total = 0.0
    for start in range(0, count, CHUNK):
        rows = slice(start, start + CHUNK)
        latents = model.autoencoder.encode(image[rows].to(device))
        noise = runtime.noise(tuple(latents.shape[1:]), range(start, start + len(latents)))
        cond = encode_texts(model, tokenizers, texts[rows])
        levels = type(at)(*(column[rows] for column in at))
        loss = objective(
            model, latents, cond, loss_space=loss_space, noise=noise.to(device), at=levels
        )
        total += float(loss.total)
    return total / count


def _initial_model(
    request: TrainTextToImage, source: Source, templates: tuple[str, ...], load: Load
) -> tuple[StableDiffusion, tuple[Tokenizer, ...]]:
    """The model before training, and its tokenizers."""
    height, width, channels = source.info.shape
    if request.init:
        return _load_initial_model(request.init, channels, load)
    clip = _load_text_tower(request.clip, load) if request.clip else None
    if clip is None:
        texts = vocabulary_texts(source, templates)
        tokenizer = train_tokenizer(texts, request.vocabulary, request.length)
        tower = _new_text_tower(request, tokenizer)
    else:
        assert clip.tokenizer is not None
        tokenizer, tower = clip.tokenizer, TextEncoderConfig(clip.config.text, dim=clip.config.dim)
    autoencoder = None
    if request.autoencoder:
        autoencoder = _load_autoencoder(request.autoencoder, channels, load)
    model = StableDiffusion(_model_config(request, (height, width, channels), tower, autoencoder))
    if clip is not None:
        model.text[0].load_state_dict(clip.model.get_submodule("text").state_dict())
        model.text.requires_grad_(False)
    if autoencoder is not None:
        model.autoencoder.load_state_dict(autoencoder.model.state_dict())
        model.autoencoder.requires_grad_(False)
    return model, (tokenizer,)


def _load_initial_model(
    name: str, channels: int, load: Load
) -> tuple[StableDiffusion, tuple[Tokenizer, ...]]:
    loaded = load(name, dtype="float32")
    if not isinstance(loaded.model, StableDiffusion):
        raise ValueError(f"{name} is a {loaded.card.model}, not a text-to-image model")
    if loaded.config.channels != channels:
        raise ValueError(
            f"{name} makes pictures of {loaded.config.channels} channels, the data has {channels}"
        )
    refuse_untrainable(name, loaded.model.config)
    return loaded.model.requires_grad_(True), loaded.tokenizers


def _new_text_tower(request: TrainTextToImage, tokenizer: Tokenizer) -> TextEncoderConfig:
    assert tokenizer.config.end is not None
    text = TextConfig(
        tokenizer.vocabulary,
        request.length,
        request.text_width,
        request.text_layers,
        request.text_heads,
        4 * request.text_width,
        pool=request.text_pool,
        end=tokenizer.config.end,
    )
    return TextEncoderConfig(text, dim=request.text_width)


def _load_text_tower(name: str, load: Load) -> Loaded:
    loaded = load(name, dtype="float32")
    if not isinstance(loaded.model, Clip) or loaded.config.text is None:
        raise ValueError(f"{name} is a {loaded.card.model}, which has no text transformer")
    if loaded.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer")
    return loaded


def _load_autoencoder(name: str, channels: int, load: Load) -> Loaded:
    loaded = load(name, dtype="float32")
    if isinstance(loaded.model, StableDiffusion):
        config, coder = loaded.config, loaded.model.autoencoder
        loaded = replace(loaded, config=config.autoencoder or config.tiny, model=coder)
    if not isinstance(loaded.model, Autoencoder | TinyAutoencoder):
        raise ValueError(f"{name} is a {loaded.card.model}, not an autoencoder")
    if loaded.config.channels != channels:
        raise ValueError(f"{name} needs {loaded.config.channels} channels, the data has {channels}")
    return loaded


def _model_config(
    request: TrainTextToImage,
    shape: tuple[int, int, int],
    tower: TextEncoderConfig,
    autoencoder: Loaded | None,
) -> StableDiffusionConfig:
    height, width, channels = shape
    coder = autoencoder.config if autoencoder else None
    latents = coder.latent_channels if coder else channels * request.patch**2
    assert tower.dim is not None
    sampler, spacing = parse_sampler(request.sampler)
    check_draws_batches(sampler)
    return StableDiffusionConfig(
        LatentUNetConfig(
            latents,
            latents,
            request.widths,
            request.blocks,
            request.transformers,
            1,
            tuple(max(1, w // request.head_width) for w in request.widths),
            context=tower.text.width,
            added=tower.dim,
            groups=request.groups,
            conditioning=request.conditioning,
        ),
        (tower,),
        ScheduleConfig(
            request.noise_schedule,
            zero_terminal_snr=request.zero_terminal_snr,
            shift=request.shift,
            predicts=request.predicts,
        ),
        SamplingConfig(
            sampler,
            request.sampling_steps,
            spacing or request.spacing,  # type: ignore[arg-type]
            0,
            "clean",
            request.guidance if request.drop else 1.0,
            height=height,
            width=width,
        ),
        coder if autoencoder and isinstance(autoencoder.model, Autoencoder) else None,
        coder if autoencoder and isinstance(autoencoder.model, TinyAutoencoder) else None,
        0 if autoencoder else request.patch,
        request.drop,
    )


def _freeze_parts(model: StableDiffusion, request: TrainTextToImage) -> None:
    """Freeze the autoencoder; with a checkpoint the text towers; with LoRA all but the updates."""
    model.autoencoder.requires_grad_(False)
    if request.init:  # its towers were trained on more captions than the data has
        model.text.requires_grad_(False)
    if request.lora:
        model.unet.requires_grad_(False)
        lora.add(model.unet, request.lora, names=("q_proj", "k_proj", "v_proj", "out_proj"))

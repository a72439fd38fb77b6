"""Recipe: pictures from text, by diffusion in latents or on pixels."""

from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych import runtime
from triptych.config import to_json
from triptych.data.captions import batch_texts, captions_of, class_words
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
from triptych.systems.stable_diffusion.training.encode_latents import batch_latents
from triptych.systems.stable_diffusion.training.frozen import (
    condition_on_sizes,
    crop_to_buckets,
    refuse_untrainable,
    separate_unet,
    write_lora_file,
)
from triptych.systems.stable_diffusion.training.held_out_prompts import (
    SHOWN,
    held_out_judge,
    prompt_sheet,
)
from triptych.systems.stable_diffusion.training.latent_cache import LatentCache
from triptych.systems.stable_diffusion.unet import LatentUNetConfig
from triptych.text.templates import template_set
from triptych.text.tokenizer import Tokenizer, train_tokenizer
from triptych.train.distributed import World
from triptych.train.optimizer import build_optimizer
from triptych.train.recipe import Batch, Recipe, Update
from triptych.weights.loaded import Card, Load, Loaded

LEARNED_FROM = 20_000  # pictures whose captions make the vocabulary
HELD_OUT = 256  # test pictures that the loss is measured on during training
FEWEST, PIXELS = 8, 1 << 22  # of large ones only as many as have so many pixels, but at least 8
SHOWN_LARGE = 4  # prompts of a sheet of large pictures
LARGE = 256 * 256  # pixels from which on pictures are large
CHUNK = 64


def build(request: TrainTextToImage, world: World, load: Load) -> Recipe:
    """A text-to-image model with its data, from nothing or from a model that is there."""
    training = request.training
    device = runtime.device(training.device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    templates = template_set(request.templates)
    torch.manual_seed(runtime.key(training.seed, "weights"))
    if request.pictures:
        source = first_pictures(source, request.pictures)
    model, tokenizers = _start(request, source, templates, load)
    _choose_what_moves(model, request)
    source = crop_to_buckets(source, model.config, request.training.size if request.buckets else 0)
    moves = any(p.requires_grad for p in model.text.parameters())
    cache = _cache(request, source, model, tokenizers, texts=not moves) if request.cache else None
    config, read = model.config, batch_texts(source, templates)
    # What is frozen is neither averaged nor saved at every checkpoint; with a cache it is not even
    # in memory, so nothing below may hold on to `model` itself.
    alone = not moves and bool(request.cache or request.init)
    learner, whole = (
        separate_unet(model, cache if alone else None, device)
        if alone
        else (model.to(device), None)
    )
    trained: nn.Module = learner.unet if alone else learner
    encode = cache.encode_texts if cache and alone else partial(encode_texts, learner, tokenizers)

    def minimise(batch: Batch, step: int) -> Loss:
        texts = read(batch)
        left_out = torch.rand(len(texts)) < request.drop
        chosen = ["" if gone else text for text, gone in zip(texts, left_out.tolist(), strict=True)]
        with torch.set_grad_enabled(moves and torch.is_grad_enabled()):
            cond = encode(chosen) | condition_on_sizes(config, batch, source.info.shape, device)
        return objective(
            learner,
            batch_latents(learner, batch, device, likeliest=request.latents == "likeliest"),
            cond,
            min_snr=request.min_snr or None,
            measured=request.measured or None,
            offset=request.offset,
        )

    judge = held_out_judge(test, tokenizers)
    pixels = test.info.shape[0] * test.info.shape[1]
    count = min(HELD_OUT, max(FEWEST, PIXELS // pixels))
    held_out = take_first(test, count)

    def evaluate(module: nn.Module) -> dict[str, float]:
        module = whole(module) if whole else module
        assert isinstance(module, StableDiffusion)
        image, texts = held_out["image"], read(held_out)
        row = {
            "test_mse": held_out_loss(module, tokenizers, image, texts, request.measured or None)
        }
        return row | (judge(module) if judge else {})

    drawing = config.sampling.height * config.sampling.width
    shown = SHOWN if drawing <= LARGE else SHOWN_LARGE
    sheet = prompt_sheet(test, tokenizers, templates, shown)
    unet = learner.unet
    told_by = [] if unet.added is None else [unet.added]
    optimizer = build_optimizer(
        request,
        trained,
        [unet.time, *told_by, unet.down, unet.middle, unet.up],
        betas=(0.9, request.beta2),
        weight_decay=request.weight_decay,
    )
    return Recipe(
        model=trained,
        exported=trained,
        updates=[Update("", trained, optimizer, minimise, max_norm=request.max_norm)],
        batches=lambda start: _batches(
            request, cache.open_latents() if cache else source, start, world
        ),
        card=to_json(
            Card(
                "stable-diffusion",
                to_json(config),
                tokenizers=tuple(tokenizer.config for tokenizer in tokenizers),
                triptych=version("triptych"),
            )
        ),
        chance=_before(request, config),
        sample=(lambda module: sheet(whole(module))) if whole else sheet,
        evaluate=evaluate,
        prepare=cache.fill if cache else None,
        finished=(lambda module: whole(lora.merge(module))) if whole else None,
        beside=tokenizers[0].save,
        further=write_lora_file if request.lora else None,
    )


def _cache(
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


def _before(request: TrainTextToImage, config: StableDiffusionConfig) -> str:
    if not request.init:
        return "before learning: mse about 1 to 2 of the network's own prediction"
    schedule = config.schedule
    return (
        f"going on from {request.init}, which predicts the {schedule.predicts} on a "
        f"{schedule.kind} schedule, and so it stays"
    )


def _batches(
    request: TrainTextToImage, source: Source, start: int, world: World
) -> Iterator[Batch]:
    """Easier data first, if any; the numbers of batches count through."""
    training = request.training

    def of(chosen: Source, begin: int) -> Batches:
        if request.buckets:
            assert isinstance(chosen, BucketedSource | CachedLatents)
            return bucket_batches(
                chosen,
                chosen.buckets,
                training.batch_size // world.size,
                seed=training.seed,
                rank=world.rank,
                ranks=world.size,
                start=begin,
                workers=training.workers,
            )
        return batches(
            chosen,
            training.batch_size // world.size,
            seed=training.seed,
            rank=world.rank,
            ranks=world.size,
            start=begin,
            workers=training.workers,
        )

    easy = request.first_steps * training.accumulate - start
    if easy <= 0:
        return of(source, start)
    easier = open_source(request.first, size=training.size or None)
    return chain(islice(of(easier, start), easy), of(source, start + easy))


@torch.inference_mode()
def held_out_loss(
    model: StableDiffusion,
    tokenizers: tuple[Tokenizer, ...],
    image: Tensor,
    texts: list[str],
    measured: Predicts | None = None,
) -> float:
    """The loss on held-out pictures at an even comb of levels, always the same and same noise."""
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
        loss = objective(model, latents, cond, measured=measured, noise=noise.to(device), at=levels)
        total += float(loss.total)
    return total / count


def _start(
    request: TrainTextToImage, source: Source, templates: tuple[str, ...], load: Load
) -> tuple[StableDiffusion, tuple[Tokenizer, ...]]:
    """The model as training finds it, with what reads for it."""
    height, width, channels = source.info.shape
    if request.init:
        found = load(request.init, dtype="float32")
        if not isinstance(found.model, StableDiffusion):
            raise ValueError(f"{request.init} is a {found.card.model}, not a text-to-image model")
        if found.config.channels != channels:
            raise ValueError(
                f"{request.init} draws {found.config.channels} channels, the data has {channels}"
            )
        refuse_untrainable(request.init, found.model.config)
        return found.model.requires_grad_(True), found.tokenizers
    eye = _frozen_text(request.clip, load) if request.clip else None
    if eye is None:
        tokenizer = train_tokenizer(_texts(source, templates), request.vocabulary, request.length)
        assert tokenizer.config.end is not None
        tower = TextEncoderConfig(
            TextConfig(
                tokenizer.vocabulary,
                request.length,
                request.text_width,
                request.text_layers,
                request.text_heads,
                4 * request.text_width,
                pool=request.text_pool,
                end=tokenizer.config.end,
            ),
            dim=request.text_width,
        )
    else:
        assert eye.tokenizer is not None
        tokenizer, tower = eye.tokenizer, TextEncoderConfig(eye.config.text, dim=eye.config.dim)
    maker = _autoencoder(request.autoencoder, channels, load) if request.autoencoder else None
    model = StableDiffusion(_config(request, (height, width, channels), tower, maker))
    if eye is not None:
        model.text[0].load_state_dict(eye.model.get_submodule("text").state_dict())
        model.text.requires_grad_(False)
    if maker is not None:
        model.autoencoder.load_state_dict(maker.model.state_dict())
        model.autoencoder.requires_grad_(False)
    return model, (tokenizer,)


def _texts(source: Source, templates: tuple[str, ...]) -> list[str]:
    if source.info.has_captions:
        return [text for notes in captions_of(source, LEARNED_FROM) for text in notes]
    return [text.replace("{}", name) for name in source.info.classes for text in templates]


def _frozen_text(name: str, load: Load) -> Loaded:
    found = load(name, dtype="float32")
    if not isinstance(found.model, Clip) or found.config.text is None:
        raise ValueError(f"{name} is a {found.card.model} without a transformer that reads text")
    if found.tokenizer is None:
        raise ValueError(f"{name} has no vocabulary beside it")
    return found


def _autoencoder(name: str, channels: int, load: Load) -> Loaded:
    found = load(name, dtype="float32")
    if not isinstance(found.model, Autoencoder | TinyAutoencoder):
        raise ValueError(f"{name} is a {found.card.model}, not an autoencoder")
    if found.config.channels != channels:
        raise ValueError(f"{name} reads {found.config.channels} channels, the data has {channels}")
    return found


def _config(
    request: TrainTextToImage,
    shape: tuple[int, int, int],
    tower: TextEncoderConfig,
    maker: Loaded | None,
) -> StableDiffusionConfig:
    height, width, channels = shape
    kind = maker.config if maker else None
    latent = kind.latent_channels if kind else channels * request.patch**2
    assert tower.dim is not None
    sampler, spacing = parse_sampler(request.sampler)
    check_draws_batches(sampler)
    return StableDiffusionConfig(
        LatentUNetConfig(
            latent,
            latent,
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
        kind if maker and isinstance(maker.model, Autoencoder) else None,
        kind if maker and isinstance(maker.model, TinyAutoencoder) else None,
        0 if maker else request.patch,
        request.drop,
    )


def _choose_what_moves(model: StableDiffusion, request: TrainTextToImage) -> None:
    """Latents stay what they are; low-rank updates leave everything else as it is."""
    model.autoencoder.requires_grad_(False)
    if request.init:  # published towers were trained on far more than one's own captions
        model.text.requires_grad_(False)
    if request.lora:
        model.unet.requires_grad_(False)
        lora.add(model.unet, request.lora, names=("q_proj", "k_proj", "v_proj", "out_proj"))

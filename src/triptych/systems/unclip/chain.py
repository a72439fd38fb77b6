"""Training of a whole DALL-E 2: its parts in this order, and the model that they make up.

The parts are run folders inside that of the chain: `clip`, `prior`, `autoregressive`, `decoder`,
`upsampler-1`, ... A finished part is taken as it is, whatever its settings, so each can be replaced
by another training.
"""

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from triptych.config import read_object
from triptych.fields import to_json
from triptych.system import Stage
from triptych.systems.two_towers.request import CLIP_PRESETS, TrainClip
from triptych.systems.unclip.embeddings import principal_components
from triptych.systems.unclip.model import Unclip, UnclipConfig
from triptych.systems.unclip.presets import PRESETS
from triptych.systems.unclip.request import TrainUnclip
from triptych.systems.unclip.training.embedding_cache import EmbeddingCache
from triptych.systems.unclip.training.frozen_clip import FrozenClip
from triptych.systems.unclip.training.prior_recipe import open_pictures
from triptych.train import checkpoint
from triptych.train.settings import Training
from triptych.weights.loaded import Card, Load
from triptych.weights.skeleton import skeleton

CHAINS = (TrainUnclip,)
"""The requests that are chains of trainings."""
PARTS = ("unclip-prior", "unclip-autoregressive", "unclip-decoder")
ON_CLIP = ("prior", "autoregressive", "decoder")
"""Folders of the parts that are trained on a CLIP's embeddings."""
EXPLAINED = 0.99  # share of the embeddings' variance in the components that are kept


def plan(request: TrainUnclip, run: Path) -> list[Stage]:
    """The trainings of the chain, in their order."""
    given, stages = request.training, []
    if not request.clip:
        clip = CLIP_PRESETS["tiny"]
        training = _like(given, clip.training, size=given.size, steps=request.clip_steps)
        towers = replace(clip.towers, templates=request.templates)
        own: TrainClip = replace(clip, training=training, towers=towers)
        stages.append(Stage("CLIP", own, run / "clip"))
    name = request.clip or str(run / "clip")
    diffusion, codes, decoder = (next(iter(PRESETS[part].values())) for part in PARTS)
    priors = [("prior", diffusion, "prior")]
    if request.priors == "both":
        priors.append(("autoregressive prior", codes, "autoregressive"))
    for title, prior, folder in priors:
        training = _like(given, prior.training, steps=request.prior_steps)
        settings = {"pictures": request.pictures, "cache": str(run / "embeddings")}
        prior = replace(
            prior, training=training, clip=name, templates=request.templates, **settings
        )
        stages.append(Stage(title, prior, run / folder))
    decoder = replace(decoder, training=given, clip=name, templates=request.templates)
    stages.append(Stage("decoder", decoder, run / "decoder"))
    small = given.size
    for number, size in enumerate(request.sizes, 1):
        factor = size // small
        upsampler = PRESETS["unclip-upsampler"]["x2" if number == 1 else "x2-second"]
        training = upsampler.training
        upsampler = replace(
            upsampler,
            training=_like(given, training, size=size, steps=request.upsampler_steps),
            small=small,
            crop=max(factor, min(size, upsampler.crop) // factor * factor),
        )
        stages.append(Stage(f"upsampler to {size} pixels", upsampler, run / f"upsampler-{number}"))
        small = size
    return stages


def _like(given: Training, base: Training, size: int = 0, steps: int = 0) -> Training:
    """The settings of a part, with data, seed and place of the chain's."""
    return replace(
        base,
        data=given.data,
        size=size,
        steps=steps,
        seed=given.seed,
        precision=given.precision,
        device=given.device,
        workers=given.workers,
    )


def check_parts(request: TrainUnclip, run: Path, load: Load) -> FrozenClip | None:
    """The CLIP of the parts; None where it is yet to be trained. Called before any part is trained,
    since hours would be lost on parts that do not belong together.

    Raises:
        ValueError: a part was trained on another CLIP.
    """
    if not request.clip and not (run / "clip" / "config.json").exists():
        return None
    clip = FrozenClip(request.clip or str(run / "clip"), load, torch.device("cpu"))
    for folder in (run / name for name in ON_CLIP):
        card = folder / "config.json"
        if card.exists() and read_object(card).get("clip") != clip.digest:
            raise ValueError(
                f"{folder} was trained on another CLIP than {clip.loaded.name}: remove the folder, "
                "and the same command trains it again, or give its CLIP with --clip"
            )
    return clip


def assemble(request: TrainUnclip, run: Path, load: Load) -> Iterator[str]:
    """Write the model that the finished parts make up into the run folder; yields messages.

    Raises:
        ValueError: a part is missing, or the prior or the decoder was trained on another CLIP.
    """
    yield "putting the parts together"
    clip = check_parts(request, run, load)
    assert clip is not None
    there = {name: load(str(run / name), "cpu", "float32") for name in ON_CLIP
             if (run / name).exists()}  # fmt: skip
    prior, codes, decoder = (there.get(name) for name in ON_CLIP)
    assert prior is not None and decoder is not None
    count = len(request.sizes)
    upsamplers = [load(str(run / f"upsampler-{n}"), "cpu", "float32") for n in range(1, count + 1)]
    source, _ = open_pictures(request.training, request.pictures, clip)
    embeddings = EmbeddingCache(str(run / "embeddings"), source, clip).content.embeddings
    components = principal_components(embeddings, EXPLAINED)
    config = UnclipConfig(
        clip.dim,
        clip.text,
        clip.image,
        unit=True,
        prior=prior.config,
        autoregressive=codes.config if codes else None,
        components=len(components.directions),
        decoder=decoder.config,
        upsamplers=tuple(part.config for part in upsamplers),
    )
    model = skeleton(lambda: Unclip(config))
    state: dict[str, Tensor] = {}
    for prefix, module in (
        ("text", clip.model.text),
        ("image", clip.model.image),
        ("prior", prior.model),
        *([("autoregressive", codes.model)] if codes else []),
        ("components", components),
        ("decoder", decoder.model),
        *((f"upsamplers.{number}", part.model) for number, part in enumerate(upsamplers)),
    ):
        state |= {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
    model.load_state_dict(state, assign=True)
    card = Card(
        "unclip",
        to_json(config),
        tokenizer=clip.tokenizer.config,
        transform=clip.transform,
        triptych=version("triptych"),
        clip=clip.digest,
    )
    clip.tokenizer.save(run)
    checkpoint.export(run, model, to_json(card))
    yield f"{run}: {sum(value.numel() for value in state.values()):,} numbers"

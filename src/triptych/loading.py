"""`load(name)`: a trained model with everything that is needed to use it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych import config, runtime
from triptych.systems.autoencoder.load_published import is_autoencoder, load_autoencoder
from triptych.systems.autoencoder.model import Autoencoder, AutoencoderConfig
from triptych.systems.autoencoder.tiny_model import TinyAutoencoder, TinyAutoencoderConfig
from triptych.systems.classifier.model import Classifier, ClassifierConfig
from triptych.systems.clip.model import Clip, ClipConfig
from triptych.systems.cvae.model import Cvae, CvaeConfig
from triptych.systems.pixel_diffusion.model import PixelDiffusion, PixelDiffusionConfig
from triptych.systems.siglip.model import Siglip, SiglipConfig
from triptych.systems.stable_diffusion.model import StableDiffusion, StableDiffusionConfig
from triptych.systems.stable_diffusion.published.load import (
    AS_STORED,
    Reading,
    load_stable_diffusion,
)
from triptych.systems.two_towers.load_published import load_published
from triptych.systems.wgan.model import Generator, WganConfig
from triptych.systems.word_space.model import WordSpace, WordSpaceConfig
from triptych.text.tokenizer import open_tokenizer
from triptych.weights.files.read import read_cast, read_header, read_safetensors
from triptych.weights.hub import fetch_model, is_hub_id
from triptych.weights.layouts import layout
from triptych.weights.loaded import TWO_TOWERS, Card, Loaded
from triptych.weights.open_clip_names import repository
from triptych.weights.skeleton import skeleton

MODELS: dict[str, tuple[type[Any], Callable[[Any], nn.Module]]] = {
    "cvae": (CvaeConfig, Cvae),
    "wgan": (WganConfig, Generator),
    "pixel-diffusion": (PixelDiffusionConfig, PixelDiffusion),
    "classifier": (ClassifierConfig, Classifier),
    "clip": (ClipConfig, Clip),
    "siglip": (SiglipConfig, Siglip),
    "word-space": (WordSpaceConfig, WordSpace),
    "autoencoder": (AutoencoderConfig, Autoencoder),
    "tiny-autoencoder": (TinyAutoencoderConfig, TinyAutoencoder),
    "stable-diffusion": (StableDiffusionConfig, StableDiffusion),
}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

CHANNELS_LAST = ("pixel-diffusion",)
"""Networks that answer faster with channels last in float32: a U-Net on a CPU with AVX2 takes 0.76
of the time, on a Zen 5 0.93. In bfloat16 small ones lose more in their norms than convolutions
gain (1.15). Training gains nothing by it.
"""


def load(
    name: str,
    device: torch.device | str = "cpu",
    dtype: str = "auto",
    reading: Reading = AS_STORED,
) -> Loaded:
    """Load a run folder, finished or still training (then as of its last checkpoint), or a
    published checkpoint: a folder, a file, or OWNER/NAME on the hub.

    `dtype` is float32, bfloat16, float16, `stored` (as the file has it), or auto: for CLIP, SigLIP
    and Stable Diffusion what this device computes fastest, else float32. `reading` is what a Stable
    Diffusion checkpoint leaves open.

    Raises:
        ValueError: there is no such model, or its files are damaged or do not fit together.
    """
    path = Path(name)
    repo = "" if path.exists() else repository(name)
    if repo or is_hub_id(name):
        path = fetch_model(repo or name)
    elif not path.exists():
        raise ValueError(
            f"no model {name!r}: give a run folder, such as runs/demo, the folder or file of a "
            "published checkpoint, or its OWNER/NAME on the hub"
        )
    _precision(dtype, torch.device(device))
    if _is_run(path):
        return _cast(_load_run(path, name, device, dtype), dtype)
    label = name if repo or is_hub_id(name) else path.resolve().name
    return _load_others(path, label, torch.device(device), dtype, reading)


def _load_others(
    path: Path, label: str, device: torch.device, dtype: str, reading: Reading
) -> Loaded:
    """What other programs have written."""
    found = layout(path)
    alone = found.form == "diffusers" and "Pipeline" not in found.declared
    if alone or (found.form == "file" and is_autoencoder(read_header(path).shapes)):
        kind, settings, model = load_autoencoder(path, _precision(dtype, device, "float32"))
        card = Card(kind, config.to_json(settings))
        return Loaded(label, card, settings, _ready(model, device))
    if found.form in ("diffusers", "file"):
        whole = load_stable_diffusion(found.path, _precision(dtype, device), reading)
        card = Card(
            "stable-diffusion",
            config.to_json(whole.config),
            tokenizers=tuple(tokenizer.config for tokenizer in whole.tokenizers),
        )
        return Loaded(
            label,
            card,
            whole.config,
            _ready(whole.model, device),
            tokenizers=whole.tokenizers,
            notes=whole.notes,
        )
    clip = load_published(path)
    card = Card(clip.kind, config.to_json(clip.config))
    model = _ready(clip.model, device)
    return _cast(Loaded(label, card, clip.config, model, clip.tokenizer, clip.transform), dtype)


def _ready(model: nn.Module, device: torch.device) -> nn.Module:
    model = model.to(device).requires_grad_(False).eval()
    if isinstance(model, StableDiffusion):
        # The order that convolutions compute in: on a Zen 5 a step takes 0.90 of the time in
        # bfloat16 and 0.93 in float32, decoding 0.78 and 0.83 (docs/results.md).
        for network in (model.unet, model.autoencoder):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _precision(dtype: str, device: torch.device, auto: str = "auto") -> torch.dtype | None:
    """The type of weights that was asked for; None leaves them as they are stored."""
    if dtype == "stored":
        return None
    chosen = DTYPES.get(runtime.precision(auto if dtype == "auto" else dtype, device))
    if chosen is None:
        raise ValueError(f"dtype is {', '.join(DTYPES)}, stored or auto, not {dtype!r}")
    return chosen


def _is_run(path: Path) -> bool:
    """A folder of ours, or one in which nothing was exported yet; not a publisher's."""
    others = ("open_clip_config.json", "model_index.json")
    if not path.is_dir() or any((path / name).exists() for name in others):
        return False
    if not (path / "config.json").exists():
        return not (path / "refs").exists()  # a folder of the hub's cache
    card = config.read_json(path / "config.json")
    return not isinstance(card, dict) or not card.keys() & {"model_type", "_class_name"}


def _cast(loaded: Loaded, dtype: str) -> Loaded:
    """Two towers in the precision asked for."""
    chosen = _precision(dtype, next(loaded.model.parameters()).device)
    if loaded.card.model not in TWO_TOWERS or chosen is None:
        return loaded
    for tower in ("image", "text"):  # not the temperature: a scale of 100 would become 98.9
        loaded.model.get_submodule(tower).to(chosen)
    return loaded


def _load_run(folder: Path, name: str, device: torch.device | str, dtype: str) -> Loaded:
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).exists():
            raise ValueError(f"{name} has no {file} yet: train until its first checkpoint")
    card = config.from_json(Card, _read_card(folder / "config.json"), f"{name}/config.json")
    if card.model not in MODELS:
        near = config.nearest(card.model, list(MODELS))
        raise ValueError(f"{name}/config.json names the model {card.model!r}, unknown here.{near}")
    kind, build = MODELS[card.model]
    settings = config.from_json(kind, card.config, f"{name}/config.json")
    model = skeleton(lambda: build(settings))
    weights = folder / "model.safetensors"
    if card.model == "stable-diffusion":  # large: never two copies
        state = read_cast(weights, _precision(dtype, torch.device(device)))
    else:
        # Clones: a memory map is aligned otherwise, and a file replaced under it would change the
        # model.
        state = {k: v.clone() for k, v in read_safetensors(weights).items()}
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{name}: the weights do not fit config.json: {error}") from error
    model = _ready(model, torch.device(device))
    if card.model in CHANNELS_LAST and runtime.precision("auto", torch.device(device)) == "float32":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tokenizer = None
    if card.tokenizer is not None:
        tokenizer = open_tokenizer(folder / "tokenizer.json", card.tokenizer)
    towers = tuple(open_tokenizer(folder / "tokenizer.json", each) for each in card.tokenizers)
    return Loaded(folder.resolve().name, card, settings, model, tokenizer, card.transform, towers)


def _read_card(path: Path) -> dict[str, Any]:
    card = config.read_json(path)
    if not isinstance(card, dict) or not isinstance(card.get("config"), dict):
        raise ValueError(f"{path} is no model's configuration: it has no `config` object")
    return card

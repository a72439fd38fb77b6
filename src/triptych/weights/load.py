"""`load(name)`: a trained model with everything that is needed to use it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych import config
from triptych.models.classifier import Classifier, ClassifierConfig
from triptych.models.cvae import Cvae, CvaeConfig
from triptych.models.pixel_diffusion import PixelDiffusion, PixelDiffusionConfig
from triptych.models.wgan import Generator, WganConfig
from triptych.models.word_space import WordSpace, WordSpaceConfig
from triptych.weights.files import read_safetensors

MODELS: dict[str, tuple[type[Any], Callable[[Any], nn.Module]]] = {
    "cvae": (CvaeConfig, Cvae),
    "wgan": (WganConfig, Generator),
    "pixel-diffusion": (PixelDiffusionConfig, PixelDiffusion),
    "classifier": (ClassifierConfig, Classifier),
    "word-space": (WordSpaceConfig, WordSpace),
}


CHANNELS_LAST = ("pixel-diffusion",)
"""Networks that answer faster with channels last: a U-Net on a CPU with AVX2 takes 0.76 of the
time. Training gains nothing by it.
"""


@dataclass(frozen=True)
class Card:
    """What config.json says: the model's name and configuration, and what its conditions are
    called.
    """

    model: str
    config: dict[str, Any]
    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    vector: tuple[str, ...] = ()
    vector_mean: tuple[float, ...] = ()
    """What is subtracted from each number of the vector, and what it is then divided by."""
    vector_std: tuple[float, ...] = ()
    quadrants: int = 0
    """How many quadrants of a picture to complete are visible; 0 for other conditions."""
    triptych: str = ""


@dataclass(frozen=True)
class Loaded:
    """A model ready to use."""

    name: str
    card: Card
    config: Any
    model: nn.Module


def load(name: str, device: torch.device | str = "cpu") -> Loaded:
    """Load a run folder, finished or still training (then as of its last checkpoint).

    Raises:
        ValueError: there is no such model, or its files are damaged or do not fit together.
    """
    folder = Path(name)
    if not folder.is_dir():
        raise ValueError(f"no model {name!r}: give a run folder, such as runs/demo")
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).exists():
            raise ValueError(f"{name} has no {file} yet: train until its first checkpoint")
    card = config.from_json(Card, _read_card(folder / "config.json"), f"{name}/config.json")
    if card.model not in MODELS:
        near = config.nearest(card.model, list(MODELS))
        raise ValueError(f"{name}/config.json names the model {card.model!r}, unknown here.{near}")
    kind, build = MODELS[card.model]
    settings = config.from_json(kind, card.config, f"{name}/config.json")
    with torch.device("meta"):
        model = build(settings)
    state = read_safetensors(folder / "model.safetensors")
    try:
        # Clones: a memory map is aligned otherwise, and a file replaced under it would change the
        # model.
        model.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{name}: the weights do not fit config.json: {error}") from error
    model = model.to(device).requires_grad_(False).eval()
    if card.model in CHANNELS_LAST:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Loaded(folder.resolve().name, card, settings, model)


def _read_card(path: Path) -> dict[str, Any]:
    card = config.read_json(path)
    if not isinstance(card, dict) or not isinstance(card.get("config"), dict):
        raise ValueError(f"{path} is no model's configuration: it has no `config` object")
    return card

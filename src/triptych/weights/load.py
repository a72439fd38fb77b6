"""`load(name)`: a trained model with everything that is needed to use it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from triptych import config, runtime
from triptych.models.autoencoder import Autoencoder, AutoencoderConfig
from triptych.models.classifier import Classifier, ClassifierConfig
from triptych.models.clip import Clip, ClipConfig
from triptych.models.cvae import Cvae, CvaeConfig
from triptych.models.pixel_diffusion import PixelDiffusion, PixelDiffusionConfig
from triptych.models.siglip import Siglip, SiglipConfig
from triptych.models.stable_diffusion import StableDiffusion, StableDiffusionConfig
from triptych.models.tiny_autoencoder import TinyAutoencoder, TinyAutoencoderConfig
from triptych.models.wgan import Generator, WganConfig
from triptych.models.word_space import WordSpace, WordSpaceConfig
from triptych.text.tokenizer import Tokenizer, TokenizerConfig, open_tokenizer
from triptych.vision.transforms import ImageTransform, PatchTransform
from triptych.weights.files import read_cast, read_header, read_safetensors
from triptych.weights.hub import fetch_model, is_hub_id
from triptych.weights.layouts import layout
from triptych.weights.lone_autoencoders import is_autoencoder, load_autoencoder
from triptych.weights.open_clip_names import repository
from triptych.weights.published import load_published
from triptych.weights.skeleton import skeleton
from triptych.weights.stable_diffusion import AS_STORED, Reading, load_stable_diffusion

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
TWO_TOWERS = ("clip", "siglip")
"""Models that bring pictures and texts into one space."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

CHANNELS_LAST = ("pixel-diffusion",)
"""Networks that answer faster with channels last in float32: a U-Net on a CPU with AVX2 takes 0.76
of the time, on a Zen 5 0.93. In bfloat16 small ones lose more in their norms than convolutions
gain (1.15). Training gains nothing by it.
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
    tokenizer: TokenizerConfig | None = None
    """What stands around the vocabulary in tokenizer.json."""
    tokenizers: tuple[TokenizerConfig, ...] = ()
    """Of a text-to-image model: the same for each of its text towers."""
    transform: ImageTransform | None = None
    """What is done to a picture before the model looks at it."""
    triptych: str = ""


@dataclass(frozen=True)
class Loaded:
    """A model ready to use."""

    name: str
    card: Card
    config: Any
    model: nn.Module
    tokenizer: Tokenizer | None = None
    transform: ImageTransform | PatchTransform | None = None
    tokenizers: tuple[Tokenizer, ...] = ()
    """Of a text-to-image model: one for each of its text towers."""
    said: tuple[str, ...] = ()
    """What someone should know of a published checkpoint, such as what was left out."""

    def embed_text(self, texts: Sequence[str], batch: int = 64) -> Float[Tensor, "N E"]:
        """Texts in the shared space: unit length, float32, on the CPU.

        Texts of similar length are computed together, since a causal tower looks no further than
        the longest of a batch.

        Raises:
            ValueError: the model is no CLIP or SigLIP, or has no vocabulary.
        """
        tokenizer = require_tokenizer(self)
        encoded = tokenizer.encode(list(texts))
        order = encoded.lengths.argsort(stable=True)
        rows = torch.empty(len(texts), _dim(self.config))
        on = next(self.model.parameters()).device
        with torch.inference_mode():
            for chosen in order.split(batch):
                rows[chosen] = self.model.embed_text(encoded.tokens[chosen].to(on)).cpu()  # type: ignore[operator]
        return rows

    def embed_image(
        self, pictures: Sequence[UInt8[np.ndarray, "_H _W _C"]], batch: int = 32
    ) -> Float[Tensor, "N E"]:
        """Pictures in the shared space: unit length, float32, on the CPU.

        Raises:
            ValueError: the model is no CLIP or SigLIP, or something is no picture of bytes.
        """
        if self.card.model not in TWO_TOWERS or self.transform is None:
            raise ValueError(f"{self.name} is a {self.card.model}: it embeds no pictures")
        weight = next(self.model.get_submodule("image").parameters())
        rows = torch.empty(len(pictures), _dim(self.config))
        with torch.inference_mode():
            for start in range(0, len(pictures), batch):
                ready = self.transform(pictures[start : start + batch])
                if isinstance(ready, Tensor):
                    embedded = self.model.embed_image(ready.to(weight))  # type: ignore[operator]
                else:
                    values = ready.patches.to(weight)
                    mask, grid = ready.mask.to(weight.device), ready.grid
                    embedded = self.model.embed_patches(values, mask, grid)  # type: ignore[operator]
                rows[start : start + len(embedded)] = embedded.cpu()
        return rows


def require_tokenizer(loaded: Loaded) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        ValueError: the model reads no text, or lies without its vocabulary.
    """
    if loaded.card.model not in TWO_TOWERS:
        raise ValueError(f"{loaded.name} is a {loaded.card.model}: it reads no text")
    if loaded.tokenizer is None:
        raise ValueError(
            f"{loaded.name} has no vocabulary: put the tokenizer.json of its publisher beside it "
            "(for OpenAI's archives bpe_simple_vocab_16e6.txt.gz, or the tokenizer.json of "
            "openai/clip-vit-base-patch32)"
        )
    return loaded.tokenizer


def _dim(settings: Any) -> int:
    return settings.dim if isinstance(settings, ClipConfig) else settings.image.width


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


def _load_others(path: Path, label: str, on: torch.device, dtype: str, reading: Reading) -> Loaded:
    """What other programs have written."""
    found = layout(path)
    alone = found.form == "diffusers" and "Pipeline" not in found.declared
    if alone or (found.form == "file" and is_autoencoder(read_header(path).shapes)):
        kind, settings, model = load_autoencoder(path, _precision(dtype, on, "float32"))
        card = Card(kind, config.to_json(settings))
        return Loaded(label, card, settings, _ready(model, on))
    if found.form in ("diffusers", "file"):
        whole = load_stable_diffusion(found.path, _precision(dtype, on), reading)
        card = Card(
            "stable-diffusion",
            config.to_json(whole.config),
            tokenizers=tuple(tokenizer.config for tokenizer in whole.tokenizers),
        )
        return Loaded(
            label,
            card,
            whole.config,
            _ready(whole.model, on),
            tokenizers=whole.tokenizers,
            said=whole.said,
        )
    clip = load_published(path)
    card = Card(clip.kind, config.to_json(clip.config))
    model = _ready(clip.model, on)
    return _cast(Loaded(label, card, clip.config, model, clip.tokenizer, clip.transform), dtype)


def _ready(model: nn.Module, on: torch.device) -> nn.Module:
    model = model.to(on).requires_grad_(False).eval()
    if isinstance(model, StableDiffusion):
        # The order that convolutions compute in: on a Zen 5 a step takes 0.90 of the time in
        # bfloat16 and 0.93 in float32, decoding 0.78 and 0.83 (docs/results.md).
        for network in (model.unet, model.autoencoder):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _precision(dtype: str, on: torch.device, auto: str = "auto") -> torch.dtype | None:
    """The type of weights that was asked for; None leaves them as they are stored."""
    if dtype == "stored":
        return None
    chosen = DTYPES.get(runtime.precision(auto if dtype == "auto" else dtype, on))
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

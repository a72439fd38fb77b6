"""A loaded model with everything that is needed to use it, and what its config.json holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from triptych.text.tokenizer import Tokenizer, TokenizerConfig
from triptych.vision.transforms import ImageTransform, PatchTransform

TWO_TOWERS = ("clip", "siglip")
"""Kinds of model that embed pictures and texts in one space."""


@dataclass(frozen=True)
class Reading:
    """What a published checkpoint leaves open, or has several of."""

    predicts: Literal["noise", "velocity"] | None = None
    """What the network of a Stable Diffusion predicts; single files of 2.x do not say. None: what
    the checkpoint says.
    """
    weights: Literal["raw", "ema"] = "raw"
    """`ema` reads the running average of a single file that has both."""
    variant: str = ""
    """Which form of the weights of a diffusers folder, such as fp16."""


AS_STORED = Reading()


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
    notes: tuple[str, ...] = ()
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
        rows = torch.empty(len(texts), self.config.dim)
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            for chosen in order.split(batch):
                rows[chosen] = self.model.embed_text(encoded.tokens[chosen].to(device)).cpu()  # type: ignore[operator]
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
        rows = torch.empty(len(pictures), self.config.dim)
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


@dataclass(frozen=True)
class Published:
    """A published checkpoint as its system has read it: on the CPU, still in training mode."""

    kind: str
    """What the model of a config.json is called here, such as `clip`."""
    config: Any
    model: nn.Module
    tokenizer: Tokenizer | None = None
    """None where the model reads no text, or the folder has no vocabulary."""
    transform: ImageTransform | PatchTransform | None = None
    tokenizers: tuple[Tokenizer, ...] = ()
    """Of a text-to-image model: one for each of its text towers."""
    notes: tuple[str, ...] = ()


Writer = Callable[[Loaded, Path], tuple[str, ...]]
"""Writes a model into an empty folder, or into a file, and returns notes."""


class Load(Protocol):
    """`triptych.loading.load`, or what stands in for it: systems are given it, as they may not
    import what is above them.
    """

    def __call__(
        self, name: str, device: torch.device | str = "cpu", dtype: str = "auto"
    ) -> Loaded: ...


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

"""A loaded model with everything that is needed to use it, and what its config.json holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from triptych import runtime
from triptych.given import take_texts
from triptych.nn.packed import PackedLinear
from triptych.text.known_words import KnownWords
from triptych.text.language import LanguageTokenizer
from triptych.text.tokenizer import Tokenizer, TokenizerConfig
from triptych.vision.given_pictures import Picture
from triptych.vision.pixels import read_pictures
from triptych.vision.transforms import ImageTransform, PatchTransform

TWO_TOWERS = ("clip", "siglip")
"""Kinds of model that embed pictures and texts in one space."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CAST = {
    "clip": ("image", "text"),
    "siglip": ("image", "text"),
    "stable-diffusion": ("",),
    "gemma": ("",),
    "paligemma": ("",),
    "pali": ("",),
}
"""Kinds of model whose weights may have other precisions than float32: the modules that are cast.
A temperature is not, because a scale of 100 would become 98.9.
"""

BITS: dict[str, Literal[4, 8]] = {"int8": 8, "int4": 4}
"""Precisions of language models whose weights stay packed, on a CPU: `triptych.nn.packed`."""
ANSWERS = ("paligemma", "pali")
"""Kinds of model that answer about pictures."""
WRITES = ("gemma", *ANSWERS)
"""Kinds of model that write text; all of them compute nonsense in float16."""


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
    bits: Literal[0, 4, 8] = 0
    """The most bits in which a language model keeps a weight; 0: those of its precision."""


AS_STORED = Reading()


@dataclass(frozen=True)
class Card:
    """The content of config.json: the model's name and configuration, the names of its conditions,
    and the settings of its tokenizer and transform.
    """

    model: str
    config: dict[str, Any]
    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    vector: tuple[str, ...] = ()
    vector_mean: tuple[float, ...] = ()
    """The mean of each number of the vector, and its standard deviation, to normalise by."""
    vector_std: tuple[float, ...] = ()
    quadrants: int = 0
    """Visible quadrants of a picture to complete; 0 for other conditions."""
    tokenizer: TokenizerConfig | None = None
    """Settings beside the vocabulary in tokenizer.json."""
    tokenizers: tuple[TokenizerConfig, ...] = ()
    """The same for each text tower of a text-to-image model."""
    transform: ImageTransform | None = None
    """Preprocessing of the pictures that the model reads."""
    clip: str = ""
    """Digest of the weights of the CLIP on which a part of a DALL-E 2 was trained."""
    triptych: str = ""


@dataclass(frozen=True)
class Loaded:
    """A model on its device, in eval mode, with its tokenizer and transform."""

    name: str
    card: Card
    config: Any
    model: nn.Module
    tokenizer: Tokenizer | None = None
    transform: ImageTransform | PatchTransform | None = None
    tokenizers: tuple[Tokenizer, ...] = ()
    """One for each text tower of a text-to-image model."""
    notes: tuple[str, ...] = ()
    """Remarks on a published checkpoint, such as parts that were left out."""
    language: LanguageTokenizer | None = None
    """Of a language model, and of one that answers about pictures."""
    words: KnownWords | None = None
    """What a text-to-image model was trained on; None where that is not recorded."""

    def to(
        self,
        device: torch.device | str | torch.dtype | None = None,
        precision: torch.dtype | str | None = None,
    ) -> "Loaded":
        """Move the model to a device, such as `cuda`, and its weights to a precision: float32,
        bfloat16, float16, or a dtype of torch. As `torch.nn.Module.to` it changes the model itself
        and returns it; what is None stays as it is.

        Raises:
            ValueError: there is no such device or precision, or this kind of model computes in
                float32 only.
        """
        if isinstance(device, torch.dtype):  # torch takes it in first place, too
            device, precision = None, device if precision is None else precision
        dtype = None if precision is None else find_dtype(precision)
        place = None if device is None else runtime.device(str(device))
        if any(isinstance(part, PackedLinear) for part in self.model.modules()):
            raise ValueError(
                f"{self.name} is packed in few bits, for a CPU: load it again with another dtype"
            )
        if dtype is not None:
            require_cast(self, dtype)
            for part in CAST.get(self.card.model, ()):
                self.model.get_submodule(part).to(dtype)
        if place is not None:
            self.model.to(place)
        return self

    def embed_text(self, texts: Sequence[str]) -> Float[Tensor, "N E"]:
        """Embeddings of texts in the shared space: unit length, float32, on the CPU.

        Texts are batched by length, since a causal tower computes up to the longest of a batch.

        Raises:
            ValueError: the model is not a CLIP or SigLIP, or has no vocabulary; this is no list of
                texts.
        """
        tokenizer = require_tokenizer(self)
        texts = take_texts("texts", texts)
        encoded = tokenizer.encode(texts)
        order = encoded.lengths.argsort(stable=True)
        rows = torch.empty(len(texts), self.config.dim)
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            for chosen in order.split(64) if len(texts) else ():
                rows[chosen] = self.model.embed_text(encoded.tokens[chosen].to(device)).cpu()  # type: ignore[operator]
        return rows

    def embed_image(self, pictures: Sequence[Picture], batch: int = 32) -> Float[Tensor, "N E"]:
        """Embeddings of pictures in the shared space: unit length, float32, on the CPU.

        Pictures are paths, PIL pictures, arrays or tensors (`triptych.vision.given_pictures`).

        Raises:
            ValueError: the model is not a CLIP or SigLIP, or one of these is no picture.
        """
        if self.card.model not in TWO_TOWERS or self.transform is None:
            raise ValueError(f"{self.name} is a {self.card.model}: it embeds no pictures")
        pictures = read_pictures("pictures", pictures)
        if not isinstance(batch, int) or batch < 1:
            raise ValueError(f"batch is a number of pictures, at least 1, not {batch!r}")
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
    language: LanguageTokenizer | None = None
    """Of a language model, and of one that answers about pictures."""


Writer = Callable[[Loaded, Path], tuple[str, ...]]
"""Writes a model into an empty folder, or into a file, and returns notes."""


class Load(Protocol):
    """The signature of `triptych.loading.load`, which systems take as an argument: they may not
    import it.
    """

    def __call__(
        self, name: str, device: torch.device | str = "cpu", dtype: str = "auto"
    ) -> Loaded: ...


def find_dtype(precision: torch.dtype | str) -> torch.dtype:
    """The dtype of a precision by name.

    Raises:
        ValueError: there is none.
    """
    name = str(precision).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"precision is {', '.join(DTYPES)}, not {name!r}")
    return DTYPES[name]


def require_cast(loaded: Loaded, dtype: torch.dtype) -> None:
    """Raises ValueError for a precision that a model of this kind does not compute in."""
    if loaded.card.model in WRITES:
        runtime.refuse_float16(dtype)
    if dtype != torch.float32 and loaded.card.model not in CAST:
        raise ValueError(
            f"{loaded.name} is a {loaded.card.model}, whose weights stay in float32: leave out the "
            "precision (pixel diffusion has one in its request)"
        )


def require_tokenizer(loaded: Loaded) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        ValueError: the model reads no text, or its vocabulary is missing.
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

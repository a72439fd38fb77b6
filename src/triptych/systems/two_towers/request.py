"""Settings of CLIP and SigLIP, presets that work, and the request for embeddings."""

from dataclasses import dataclass, field, replace
from typing import Literal

from triptych.train.settings import Training


@dataclass(frozen=True)
class Towers:
    """Two towers trained on pairs of pictures and texts: what CLIP and SigLIP share."""

    init: str = ""
    """A trained or published model to go on from: a run folder, a checkpoint, a hub id. The sizes
    below are then its own.
    """
    patch: int = 8
    stem: tuple[int, ...] = ()
    """Channels of 3 x 3 convolutions, each halving the side, in place of one large patch filter;
    2 to the power of their number is the patch. Small models learn faster with them.
    """
    stem_group: int = 8
    """How many of a stem's channels are normalised together, 0 for all: few bring out what has
    little contrast.
    """
    width: int = 192
    layers: int = 6
    heads: int = 3
    text: Literal["transformer", "words"] = "transformer"
    """The text tower: a transformer, or a bag of words (the lecture's CBOW)."""
    text_width: int = 192
    text_layers: int = 4
    text_heads: int = 3
    text_pool: Literal["end", "mean"] = "end"
    """What a transformer says of a text: the state at its end token, as published, or the mean of
    its tokens, which small ones learn sooner (and which other libraries' CLIP has not). With no
    layers it is a bag of words, and has to be the mean.
    """
    length: int = 32
    """The longest text in tokens; what is over is cut and counted."""
    vocabulary: int = 2048
    """Tokens of a vocabulary learned from the captions of the data."""
    templates: str = "photo"
    """Sentences that class names become where the data has no captions: photo, simple, imagenet."""
    duplicates: bool = True
    """Equal captions in a batch are positives of one another, not errors."""
    alike: int = 1
    """Batches among which pictures of like texts are brought together, so that what they share
    tells them apart no longer (hard negatives); 1 leaves them as chance has it.
    """
    patch_dropout: float = 0.0
    """Share of the patches that is left out in training, another one for every picture
    (arXiv:2212.00794).
    """
    crop: float = 1.0
    """Least share of a picture that a random crop keeps; 1 crops nothing."""
    flip: bool = False
    """Mirror half of the pictures; captions that say left and right then lie."""
    colour: float = 0.0
    """How much brightness, contrast and saturation vary; captions of colours may then lie."""
    cache: int = 0
    """Pairs whose activations are in memory at a time; 0 keeps the whole batch's."""
    lock: Literal["none", "image", "text"] = "none"
    """A tower that stays as `init` has it; `image` is locked-image tuning (arXiv:2111.07991)."""
    lora: int = 0
    """Rank of low-rank updates that are learned in place of all weights; 0 learns all."""
    interpolate: float = 1.0
    """What is exported lies so far from `init` (0) to the tuned weights (1) (WiSE-FT,
    arXiv:2109.01903).
    """
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    beta2: float = 0.98
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1 or not 0 <= self.colour < 1 or not 0 <= self.patch_dropout < 1:
            raise ValueError(
                "crop is a share above 0 up to 1, colour and patch_dropout are below 1"
            )
        if not 0 <= self.interpolate <= 1:
            raise ValueError(f"interpolate is a share, 0 to 1, not {self.interpolate}")
        if not self.init and (self.lora or self.lock != "none" or self.interpolate < 1):
            raise ValueError("lora, lock and interpolate are for a model to go on from: give init")
        if self.alike < 1:
            raise ValueError(f"alike is a number of batches, at least 1, not {self.alike}")
        if self.lora < 0 or self.cache < 0:
            raise ValueError("lora is a rank and cache a number of pairs: neither is negative")


@dataclass(frozen=True)
class TrainClip:
    """CLIP: a picture tower and a text tower that tell pairs apart (Radford 2021)."""

    training: Training = field(
        default_factory=lambda: Training(
            data="scenes-one",
            size=32,
            schedule="cosine",
            warmup=200,
            ema_halflife=100,
            sample_every=0,
            precision="auto",
        )
    )
    towers: Towers = field(default_factory=Towers)
    image: Literal["vit", "resnet"] = "vit"
    pool: Literal["class", "mean"] = "class"
    """What stands for a picture: a token of its own, or the mean of its patches, which then each
    say what is where.
    """
    resnet_width: int = 32
    resnet_layers: tuple[int, ...] = (1, 1, 1, 1)
    dim: int = 128
    """Width of the shared space."""


@dataclass(frozen=True)
class TrainSiglip:
    """SigLIP: every pair of a picture and a text is its own yes/no question (Zhai 2023)."""

    training: Training = field(
        default_factory=lambda: Training(
            data="scenes-one",
            size=32,
            schedule="cosine",
            warmup=200,
            ema_halflife=100,
            sample_every=0,
            precision="auto",
        )
    )
    towers: Towers = field(default_factory=Towers)

    def __post_init__(self) -> None:
        if self.towers.text_pool != "end" or self.towers.text_layers < 1:
            raise ValueError(
                "SigLIP's text transformer has layers and is read at its last position: text_pool "
                "is CLIP's. A bag of words is text words"
            )


def _published(
    patch: int,
    width: int,
    layers: int,
    heads: int,
    text_width: int,
    text_layers: int,
    text_heads: int,
    size: int,
    *,
    dim: int,
) -> TrainClip:
    """A published size with the published recipe (arXiv:2103.00020, table 20): 32 epochs of a batch
    of 32,768 need a cluster; the rest is for anyone.
    """
    return TrainClip(
        Training(
            size=size,
            batch_size=1024,
            steps=400_000,
            schedule="cosine",
            warmup=2000,
            sample_every=0,
            evaluate_every=2000,
            precision="auto",
        ),
        Towers(
            patch=patch,
            width=width,
            layers=layers,
            heads=heads,
            text_width=text_width,
            text_layers=text_layers,
            text_heads=text_heads,
            length=77,
            vocabulary=49_408,
            crop=0.9,
            cache=128,
            learning_rate=5e-4,
            weight_decay=0.2,
        ),
        dim=dim,
    )


CLIP_PRESETS = {
    "tiny": TrainClip(
        Training(
            data="scenes-one",
            size=32,
            batch_size=128,
            steps=3000,
            schedule="cosine",
            warmup=200,
            ema_halflife=100,
            evaluate_every=500,
            sample_every=0,
            precision="auto",
        ),
        Towers(patch=8, stem=(32, 64, 128), text_layers=2, alike=8),
        pool="mean",
    ),
    "ViT-B-32": _published(32, 768, 12, 12, 512, 12, 8, 224, dim=512),
    "ViT-B-16": _published(16, 768, 12, 12, 512, 12, 8, 224, dim=512),
    "ViT-L-14": _published(14, 1024, 24, 16, 768, 12, 12, 224, dim=768),
    "ViT-H-14": _published(14, 1280, 32, 16, 1024, 24, 16, 224, dim=1024),
}


SIGLIP_PRESETS = {
    "tiny": TrainSiglip(
        Training(
            data="scenes-one",
            size=32,
            batch_size=128,
            steps=3000,
            schedule="cosine",
            warmup=200,
            ema_halflife=100,
            evaluate_every=500,
            sample_every=0,
            precision="auto",
        ),
        Towers(patch=8, stem=(32, 64, 128), text_layers=2, alike=8),
    ),
    "ViT-B-16": TrainSiglip(
        _published(16, 768, 12, 12, 768, 12, 12, 224, dim=768).training,
        replace(_published(16, 768, 12, 12, 768, 12, 12, 224, dim=768).towers, length=64),
    ),
}
"""The default first."""


@dataclass(frozen=True)
class Embed:
    """Texts and pictures as vectors of one space: unit length, float32."""

    model: str = "runs/clip"
    """A CLIP or SigLIP: a run folder, a published checkpoint, or OWNER/NAME on the hub."""
    text: tuple[str, ...] = ()
    """Texts."""
    image: tuple[str, ...] = ()
    """Picture files."""

    def __post_init__(self) -> None:
        if not self.text and not self.image:
            raise ValueError("nothing to embed: give a text or a picture file")

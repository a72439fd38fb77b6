"""Settings of CLIP and SigLIP, presets that work, and the request for embeddings."""

from dataclasses import dataclass, field, replace
from typing import Literal

from triptych.fields import set_fields
from triptych.given import ModelName, Texts, Words, take_texts
from triptych.train.settings import Training, check_numbers
from triptych.vision.given_pictures import Pictures, take_pictures


@dataclass(frozen=True)
class Towers:
    """Two towers trained on pairs of pictures and texts: what CLIP and SigLIP share."""

    init: ModelName = ""
    """Fine-tune this model: a run folder, a published checkpoint, OWNER/NAME on the hub, or a name
    such as clip-b32. Its own sizes replace those below.
    """
    patch: int = 8
    """Side of a patch in pixels."""
    stem: tuple[int, ...] = ()
    """Channels of 3 x 3 convolutions that each halve the side, in place of one large patch filter;
    2 to the power of their number is the patch. Small models learn faster with them.
    """
    stem_group: int = 8
    """Channels of the stem that are normalised together, 0 for all; small groups keep low-contrast
    detail.
    """
    width: int = 192
    """Width of the image transformer."""
    layers: int = 6
    """Layers of the image transformer."""
    heads: int = 3
    """Attention heads of the image transformer."""
    text: Literal["transformer", "words"] = "transformer"
    """The text tower: a transformer, or a bag of words (the lecture's CBOW)."""
    text_width: int = 192
    """Width of the text tower."""
    text_layers: int = 4
    """Layers of the text transformer."""
    text_heads: int = 3
    """Attention heads of the text transformer."""
    text_pool: Literal["end", "mean"] = "end"
    """What represents a text: the state at its end token, as published, or the mean over its
    tokens, which small models learn sooner (other libraries' CLIP has no such pooling). Without
    layers it must be the mean.
    """
    length: int = 32
    """Longest text in tokens; longer ones are cut and counted."""
    vocabulary: int = 2048
    """Size of the byte-pair vocabulary that is trained on the captions."""
    templates: Words = "photo"
    """Sentences made of class names where the data has no captions: photo, simple or imagenet."""
    duplicates: bool = True
    """Equal captions in a batch are positives of one another, not negatives."""
    hard_negative_pool: int = field(default=1, metadata={"was": "alike"})
    """Batches are drawn from pools of this many batches in which similar captions are grouped
    together (hard negatives); 1 is off.
    """
    patch_dropout: float = 0.0
    """Share of the patches that is dropped in training, drawn anew for every picture
    (arXiv:2212.00794).
    """
    crop: float = 1.0
    """Smallest share of a picture that a random crop keeps; 1 is off."""
    flip: bool = False
    """Mirror half of the pictures; captions that say left and right become wrong."""
    colour: float = 0.0
    """Jitter of brightness, contrast and saturation; captions that name colours may become wrong.
    """
    gradient_cache: int = field(default=0, metadata={"was": "cache"})
    """Pairs whose activations are in memory at a time (arXiv:2101.06983); 0 keeps those of the
    whole batch.
    """
    lock: Literal["none", "image", "text"] = "none"
    """A tower that keeps the weights of `init`; `image` is locked-image tuning (arXiv:2111.07991).
    """
    lora: int = 0
    """Rank of the low-rank updates that are trained in place of all weights; 0 trains all weights.
    """
    interpolate: float = 1.0
    """The export is interpolated between `init` (0) and the tuned weights (1) (WiSE-FT,
    arXiv:2109.01903).
    """
    learning_rate: float = 1e-3
    """Learning rate of AdamW."""
    weight_decay: float = 0.1
    """Weight decay of AdamW, on matrices and filters."""
    beta2: float = 0.98
    """Second beta of AdamW."""
    max_norm: float = 1.0
    """Gradients are clipped to this norm."""

    def __post_init__(self) -> None:
        check_numbers(self)
        if not 0 < self.crop <= 1 or not 0 <= self.colour < 1 or not 0 <= self.patch_dropout < 1:
            raise ValueError(
                "crop is a share above 0 up to 1, colour and patch_dropout are below 1"
            )
        if not 0 <= self.interpolate <= 1:
            raise ValueError(f"interpolate is a share, 0 to 1, not {self.interpolate}")
        if not self.init and (self.lora or self.lock != "none" or self.interpolate < 1):
            raise ValueError("lora, lock and interpolate need a model to fine-tune: give init")
        if self.hard_negative_pool < 1:
            raise ValueError(
                f"hard_negative_pool must be at least 1 batch, not {self.hard_negative_pool}"
            )
        if self.lora < 0 or self.gradient_cache < 0:
            raise ValueError("lora and gradient_cache must be at least 0")


ON_SCENES = Training(
    data="scenes-one",
    size=32,
    schedule="cosine",
    warmup=200,
    ema_halflife=100,
    sample_every=0,
    precision="auto",
)


@dataclass(frozen=True)
class TrainClip:
    """CLIP: pictures and texts in one space, by a softmax over a batch of pairs (Radford 2021)."""

    training: Training = ON_SCENES
    towers: Towers = field(default_factory=Towers)
    image: Literal["vit", "resnet"] = "vit"
    """The image tower: a vision transformer, or the modified ResNet of the CLIP paper."""
    pool: Literal["class", "mean"] = "class"
    """What represents a picture: a class token, or the mean over its patches, which makes each
    patch say what is there.
    """
    resnet_width: int = 32
    """Channels of the ResNet's first stage."""
    resnet_layers: tuple[int, ...] = (1, 1, 1, 1)
    """Blocks of the ResNet's stages."""
    dim: int = 128
    """Width of the shared embedding space."""


@dataclass(frozen=True)
class TrainSiglip:
    """SigLIP: every pair of a picture and a text is its own yes/no question (Zhai 2023)."""

    training: Training = ON_SCENES
    towers: Towers = field(default_factory=Towers)

    def __post_init__(self) -> None:
        if self.towers.text_pool != "end" or self.towers.text_layers < 1:
            raise ValueError(
                "SigLIP's text transformer has layers and is read at its last position: text_pool "
                "is CLIP's. A bag of words is text words"
            )


def _published_towers(
    patch: int, width: int, layers: int, heads: int, text_width: int, text_layers: int
) -> Towers:
    """Towers of a published size, trained as in arXiv:2103.00020, table 20."""
    return Towers(
        patch=patch,
        width=width,
        layers=layers,
        heads=heads,
        text_width=text_width,
        text_layers=text_layers,
        text_heads=text_width // 64,
        length=77,
        vocabulary=49_408,
        crop=0.9,
        gradient_cache=128,
        learning_rate=5e-4,
        weight_decay=0.2,
    )


PUBLISHED = Training(
    size=224,
    batch_size=1024,
    steps=400_000,
    schedule="cosine",
    warmup=2000,
    sample_every=0,
    evaluate_every=2000,
    precision="auto",
)
"""The published 32 epochs of batches of 32,768 need a cluster; this is for one machine."""

TINY = replace(ON_SCENES, batch_size=128, steps=3000, evaluate_every=500)
TINY_TOWERS = Towers(patch=8, stem=(32, 64, 128), text_layers=2, hard_negative_pool=8)
PLAIN_TOWERS = replace(TINY_TOWERS, stem=())
"""As small, and of the published form, which converts to other libraries; learns more slowly."""

CLIP_PRESETS = {
    "tiny": TrainClip(TINY, TINY_TOWERS, pool="mean"),
    "plain": TrainClip(TINY, PLAIN_TOWERS),
    "small": TrainClip(
        replace(TINY, size=64, steps=1500),
        replace(
            TINY_TOWERS,
            patch=16,
            stem=(32, 64, 128, 192),
            text_layers=0,
            text_pool="mean",
            crop=0.6,
        ),
        pool="mean",
    ),
    "ViT-B-32": TrainClip(PUBLISHED, _published_towers(32, 768, 12, 12, 512, 12), dim=512),
    "ViT-B-16": TrainClip(PUBLISHED, _published_towers(16, 768, 12, 12, 512, 12), dim=512),
    "ViT-L-14": TrainClip(PUBLISHED, _published_towers(14, 1024, 24, 16, 768, 12), dim=768),
    "ViT-H-14": TrainClip(PUBLISHED, _published_towers(14, 1280, 32, 16, 1024, 24), dim=1024),
}
SIGLIP_PRESETS = {
    "tiny": TrainSiglip(TINY, TINY_TOWERS),
    "plain": TrainSiglip(TINY, PLAIN_TOWERS),
    "ViT-B-16": TrainSiglip(
        PUBLISHED, replace(_published_towers(16, 768, 12, 12, 768, 12), length=64)
    ),
}
"""The default first."""


@dataclass(frozen=True)
class Embed:
    """Texts and pictures as vectors of one space: unit length, float32."""

    model: ModelName = "runs/clip"
    """A CLIP or SigLIP: a run folder, a published checkpoint, OWNER/NAME on the hub, or a name such
    as clip-b32.
    """
    text: Texts = ()
    """Texts to embed."""
    image: Pictures = ()
    """Picture files to embed."""

    def __post_init__(self) -> None:
        set_fields(
            self,
            text=take_texts("text", self.text),
            image=take_pictures("image", self.image),
        )
        if not self.text and not self.image:
            raise ValueError("nothing to embed: give a text or a picture file")

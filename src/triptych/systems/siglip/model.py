"""SigLIP: image and text towers trained with a pairwise sigmoid loss (arXiv:2303.15343), and SigLIP
2 with pictures of any shape (arXiv:2502.14786).

Dimensions: B batch, C channels, H height, W width, P patches, h w their grid, T tokens, D width,
E width of the shared space.
"""

import math
from dataclasses import dataclass, field, fields
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.fields import bounded
from triptych.nn.bag_of_words import BagOfWords, CbowConfig
from triptych.nn.checks import require_at_least, require_heads
from triptych.nn.contrastive.losses import embed_pairs, sigmoid_loss
from triptych.nn.contrastive.ranks import ALONE, Ranks
from triptych.nn.loss import Loss
from triptych.nn.patches import check_stem, crop_to_patches, keep_patches, patch_embedding
from triptych.nn.position import neighbour_mask, resize_grid
from triptych.nn.transformer import Activation, AttentionPool, Transformer
from triptych.system import ModelKind
from triptych.systems.clip.model import TextConfig, TextTransformer, cast_towers


@dataclass(frozen=True)
@bounded
class SiglipImageConfig:
    """A vision transformer pooled by attention."""

    size: int = 224
    patch: int = 16
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: Activation = "gelu_tanh"
    eps: float = 1e-6
    naflex: bool = False
    """Pictures keep their shape and come as patches with a grid, to which positions are resized
    (SigLIP 2, section 2.4.2).
    """
    stem: tuple[int, ...] = ()
    """Channels of 3 x 3 convolutions of stride 2 that replace the one large patch filter."""
    stem_group: int = 0
    """Channels per group of the stem's group norm; 0 puts all of them in one group."""
    pooled: bool = True
    """Without it the tower has no vector of a picture, only its tokens: the eye of a PaliGemma."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "size", "patch", "layers")
        require_heads(self)
        check_stem(self.size, self.patch, self.stem, self.stem_group)
        if self.stem and self.naflex:
            raise ValueError("naflex does not go with a convolutional stem: set stem to ()")

    @property
    def tokens(self) -> int:
        """Tokens of a square picture."""
        return (self.size // self.patch) ** 2

    def require_room(self, context: int) -> None:
        """Check that this is the eye of a language model: tokens of a square, fewer than `context`.

        Raises:
            ValueError: it is not, or the tokens leave no room for a text.
        """
        if self.pooled or self.naflex:
            raise ValueError("the eye gives the tokens of a square: set pooled and naflex to false")
        if self.tokens >= context:
            raise ValueError(
                f"a picture of {self.tokens} tokens leaves no room in a text of {context}"
            )


@dataclass(frozen=True)
@bounded
class SiglipTextConfig:
    """A bidirectional text transformer, read at its last position."""

    vocabulary: int = 32000
    length: int = 64
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: Activation = "gelu_tanh"
    eps: float = 1e-6
    projection: bool = True

    def __post_init__(self) -> None:
        self.tower()  # checks the sizes

    def tower(self) -> TextConfig:
        """The same as a configuration of CLIP's tower, which computes it."""
        sizes = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "projection"}
        return TextConfig(**sizes, causal=False, pool="last")


@dataclass(frozen=True)
@bounded
class SiglipConfig:
    """An image tower as wide as the shared space, and one text tower (`text` or `words`)."""

    image: SiglipImageConfig = field(default_factory=SiglipImageConfig)
    text: SiglipTextConfig | None = field(default_factory=SiglipTextConfig)
    words: CbowConfig | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (self.words is None):
            raise ValueError(
                "SigLIP has one text tower: set either text or words, the other to null"
            )
        if not self.image.pooled:
            raise ValueError("SigLIP needs the vector of a picture: set pooled to true")
        text = self.text
        if text is not None and not text.projection and text.width != self.image.width:
            raise ValueError(
                f"a text tower of width {text.width} needs its projection to the image tower's "
                f"width {self.image.width}: set projection to true"
            )

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.image.size

    @property
    def length(self) -> int:
        """Tokens of every text, padding included."""
        tower = self.text or self.words
        assert tower is not None
        return tower.length

    @property
    def dim(self) -> int:
        """Width of the shared space."""
        return self.image.width


class SiglipImage(nn.Module):
    """Patches, a transformer, and attention pooling."""

    def __init__(self, config: SiglipImageConfig):
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch
        if config.naflex:  # values of a patch come in the order rows, columns, channels
            self.patch: nn.Module = nn.Linear(3 * patch * patch, width)
        else:
            self.patch = patch_embedding(
                width, patch, config.stem, bias=True, stem_group=config.stem_group
            )
        places = (config.size // patch) ** 2
        self.position = nn.Parameter(torch.randn(places, width) * width**-0.5)
        self.transformer = Transformer(
            width,
            config.layers,
            config.heads,
            config.hidden,
            activation=config.activation,
            eps=config.eps,
        )
        self.post_norm = nn.LayerNorm(width, config.eps)
        if config.pooled:
            self.pool = AttentionPool(
                width, config.heads, config.hidden, activation=config.activation, eps=config.eps
            )

    def tokens(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P D"]:
        side = self.config.patch
        pixels = crop_to_patches(pixels, side)
        grid = pixels.shape[2] // side, pixels.shape[3] // side
        if self.config.naflex:
            x = self.patch(as_rows(pixels, side))
        else:
            x = self.patch(pixels).flatten(2).transpose(1, 2)
        return x + self._positions(grid).to(x.dtype)  # type: ignore[no-any-return]

    def _positions(self, grid: tuple[int, int]) -> Float[Tensor, "P D"]:
        if self.config.naflex:
            return resize_grid(self.position, grid, mode="bilinear", antialias=True)
        return resize_grid(self.position, grid)

    def forward(self, pixels: Float[Tensor, "B C H W"], keep: float = 1.0) -> Float[Tensor, "B D"]:
        """`keep` is the share of patches used: patch dropout (arXiv:2212.00794)."""
        x = self.tokens(pixels)
        if keep < 1:
            x = keep_patches(x, keep)
        pooled: Tensor = self.pool(self.post_norm(self.transformer(x)))
        return pooled

    def states(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B P D"]:
        """The patches after the last norm, before they are pooled."""
        normed: Tensor = self.post_norm(self.transformer(self.tokens(pixels)))
        return normed

    def ragged(
        self,
        values: Float[Tensor, "B P V"],
        mask: Bool[Tensor, "B P"],
        grid: Int64[Tensor, "B 2"],
    ) -> Float[Tensor, "B D"]:
        """Pictures of different shapes in one batch, padded to the same number of patches."""
        if not self.config.naflex:
            raise ValueError("only a naflex model reads padded patches: use `embed_image`")
        x = self.patch(values.to(self.position.dtype))
        position = torch.zeros_like(x)
        for row, (height, width) in enumerate(grid.tolist()):
            position[row, : height * width] = self._positions((height, width))
        seen = mask[:, None, None]  # (B, 1, 1, P)
        x = self.transformer(x + position, seen)
        pooled: Tensor = self.pool(self.post_norm(x), seen)
        return pooled

    def patches(
        self, pixels: Float[Tensor, "B C H W"], reach: int | None = None
    ) -> Float[Tensor, "B h w D"]:
        """Each patch in the shared space, pooled as if it were the only one.

        With `reach` a patch attends only to patches at most that many rows and columns away.
        """
        height, width = (side // self.config.patch for side in pixels.shape[2:])
        mask = None
        if reach is not None:
            mask = neighbour_mask((height, width), reach).to(pixels.device)[None, None]
        x = self.pool.alone(self.post_norm(self.transformer(self.tokens(pixels), mask)))
        return x.reshape(len(x), height, width, -1)


def as_rows(pixels: Float[Tensor, "B C H W"], side: int) -> Float[Tensor, "B P V"]:
    """Flatten each patch, in the order rows, columns, channels."""
    height, width = (length // side for length in pixels.shape[2:])
    x = pixels.reshape(*pixels.shape[:2], height, side, width, side)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class Siglip(nn.Module):
    """An image tower, a text tower, a temperature and a bias."""

    reads = "sigmoid"
    """How logits become probabilities: each label independently."""

    def __init__(self, config: SiglipConfig):
        super().__init__()
        self.config = config
        dim = config.dim
        self.image = SiglipImage(config.image)
        if config.text is not None:
            projected = dim if config.text.projection else None
            self.text: nn.Module = TextTransformer(config.text.tower(), projected, bias=True)
        else:
            assert config.words is not None
            words = config.words
            self.text = BagOfWords(words.vocabulary, words.width, dim, words.unspoken)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10)))  # section 3.2
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def embed_image(
        self, pixels: Float[Tensor, "B C H W"], keep: float = 1.0
    ) -> Float[Tensor, "B E"]:
        """As `Clip.embed_image`."""
        return F.normalize(self.image(pixels, keep).float(), dim=-1)

    def embed_patches(
        self,
        values: Float[Tensor, "B P V"],
        mask: Bool[Tensor, "B P"],
        grid: Int64[Tensor, "B 2"],
    ) -> Float[Tensor, "B E"]:
        """Embed pictures of different shapes from the model's transform: unit length, float32."""
        return F.normalize(self.image.ragged(values, mask, grid).float(), dim=-1)

    def embed_text(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """Embed tokens: unit length, float32.

        Texts must be padded to full length: SigLIP is trained with the padding visible.
        """
        if self.config.text is not None and tokens.shape[1] != self.config.length:
            raise ValueError(
                f"texts have {tokens.shape[1]} tokens and SigLIP needs them padded to "
                f"{self.config.length}: use `Tokenizer.encode`"
            )
        return F.normalize(self.text(tokens).float(), dim=-1)

    def patches(
        self, pixels: Float[Tensor, "B C H W"], reach: int | None = None
    ) -> Float[Tensor, "B h w E"]:
        """Each patch in the shared space, unit length; for any size that patches tile."""
        return F.normalize(self.image.patches(pixels, reach).float(), dim=-1)

    def logits(
        self, image: Float[Tensor, "N E"], text: Float[Tensor, "M E"]
    ) -> Float[Tensor, "N M"]:
        """Scaled and shifted cosines; the sigmoid of each is the probability of its pair."""
        return self.logit_scale.exp() * image @ text.T + self.logit_bias


def objective(
    model: Siglip,
    pixels: Float[Tensor, "B C H W"],
    tokens: Int64[Tensor, "B T"],
    *,
    groups: Int64[Tensor, " B"] | None = None,
    keep: float = 1.0,
    cache: int = 0,
    ranks: Ranks = ALONE,
) -> Loss:
    """Binary cross-entropy of every image-text pair of a batch (equation 1).

    `keep`, `cache`, `groups` and `ranks` are as in CLIP's objective.
    """
    embed_image = partial(model.embed_image, keep=keep)
    image, text = embed_pairs(embed_image, model.embed_text, pixels, tokens, cache)
    loss = sigmoid_loss(
        image, text, model.logit_scale, model.logit_bias, groups=groups, ranks=ranks
    )
    count = len(pixels)
    terms = {"scale": model.logit_scale.detach().exp(), "bias": model.logit_bias.detach()}
    return Loss(loss * count, count, terms)


KINDS = {"siglip": ModelKind(SiglipConfig, Siglip, cast_towers)}

"""CLIP: pictures and texts in one space, learned from pairs (arXiv:2103.00020).

Dimensions: B batch, C channels, H height, W width, P patches, h w their grid, T tokens, D width,
E width of the shared space.
"""

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.fields import bounded
from triptych.nn.bag_of_words import BagOfWords, CbowConfig
from triptych.nn.checks import require_at_least, require_heads
from triptych.nn.contrastive.losses import embed_pairs, softmax_loss
from triptych.nn.contrastive.ranks import ALONE, Ranks
from triptych.nn.loss import Loss
from triptych.nn.patches import check_stem, crop_to_patches, keep_patches, patch_embedding
from triptych.nn.position import neighbour_mask, resize_grid
from triptych.nn.transformer import Activation, Transformer
from triptych.system import ModelKind
from triptych.systems.clip.resnet import ModifiedResNet, ResNetConfig

MAX_SCALE = math.log(100)
"""The temperature is clipped so that no logit is scaled by more than 100 (section 2.5)."""


@dataclass(frozen=True)
@bounded
class VitConfig:
    """A vision transformer (arXiv:2010.11929)."""

    size: int = 224
    patch: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: Activation = "gelu"
    eps: float = 1e-5
    pool: Literal["class", "mean"] = "class"
    """Read the picture at a class token, or as the mean of the patches."""
    pre_norm: bool = True
    """Normalise the patches before the first block."""
    layer_scale: bool = False
    norm_after_pool: bool = False
    stem: tuple[int, ...] = ()
    """Channels of 3 x 3 convolutions of stride 2 that replace the one large patch filter: small
    transformers learn faster with them (arXiv:2106.14881). 2 ** len(stem) is the patch.
    """
    stem_group: int = 0
    """Channels per group of the stem's group norm; 0 puts all of them in one group."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "size", "patch", "layers")
        require_heads(self)
        check_stem(self.size, self.patch, self.stem, self.stem_group)


@dataclass(frozen=True)
@bounded
class TextConfig:
    """A text transformer, read at its end token or as the mean of its tokens."""

    vocabulary: int = 49408
    length: int = 77
    width: int = 512
    layers: int = 12
    heads: int = 8
    hidden: int = 2048
    activation: Activation = "gelu"
    eps: float = 1e-5
    causal: bool = True
    pool: Literal["end", "last", "mean"] = "end"
    """Read at the end token, at the last position, or as the mean of all tokens up to the end
    (without layers a bag of words), which small towers learn sooner.
    """
    end: int = 49407
    """The end token's number."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "vocabulary", "length")
        require_heads(self)
        if self.layers < 1 and self.pool != "mean":
            raise ValueError("a text tower without layers must use pool 'mean': tokens do not mix")


@dataclass(frozen=True)
@bounded
class TextEncoderConfig:
    """A text tower as Stable Diffusion uses it: states of all tokens, and a pooled vector."""

    text: TextConfig = field(default_factory=TextConfig)
    dim: int | None = None
    """Width of the projected vector; None for a tower without projection."""
    skip: int = 0
    """Blocks skipped at the end: 1 reads the penultimate layer."""
    norm: bool = True
    """Apply the final norm to the chosen layer, as everywhere but in XL."""

    def __post_init__(self) -> None:
        if self.dim is not None:
            require_at_least(self, 1, "dim")
        if not 0 <= self.skip <= max(0, self.text.layers - 1):
            raise ValueError(
                f"skip must leave at least one of {self.text.layers} blocks, not skip {self.skip}"
            )


@dataclass(frozen=True)
@bounded
class ClipConfig:
    """One image tower (`vit` or `resnet`) and one text tower (`text` or `words`)."""

    dim: int = 512
    vit: VitConfig | None = field(default_factory=VitConfig)
    resnet: ResNetConfig | None = None
    text: TextConfig | None = field(default_factory=TextConfig)
    words: CbowConfig | None = None

    def __post_init__(self) -> None:
        require_at_least(self, 1, "dim")
        if (self.vit is None) == (self.resnet is None):
            raise ValueError(
                "CLIP has one image tower: set either vit or resnet, the other to null"
            )
        if (self.text is None) == (self.words is None):
            raise ValueError("CLIP has one text tower: set either text or words, the other to null")

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        tower = self.vit or self.resnet
        assert tower is not None
        return tower.size

    @property
    def length(self) -> int:
        """Tokens of the longest text, start and end included."""
        tower = self.text or self.words
        assert tower is not None
        return tower.length


class VisionTransformer(nn.Module):
    """Patches, a transformer, and one vector for the picture."""

    def __init__(self, config: VitConfig, dim: int):
        super().__init__()
        self.config = config
        width, places = config.width, (config.size // config.patch) ** 2
        scale = width**-0.5
        self.patch = patch_embedding(
            width, config.patch, config.stem, bias=False, stem_group=config.stem_group
        )
        # published mean-pooled towers have an unused class token too
        self.class_token = nn.Parameter(scale * torch.randn(width))
        self.position = nn.Parameter(scale * torch.randn(places + 1, width))
        self.pre_norm = nn.LayerNorm(width, config.eps) if config.pre_norm else nn.Identity()
        self.transformer = Transformer(
            width,
            config.layers,
            config.heads,
            config.hidden,
            activation=config.activation,
            eps=config.eps,
            layer_scale=config.layer_scale,
        )
        self.post_norm = nn.LayerNorm(width, config.eps)
        self.projection = nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.projection.weight, std=scale)

    def tokens(self, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B T D"]:
        """The class token and the patches, with positions for any size that patches tile."""
        x = self.patch(crop_to_patches(pixels, self.config.patch))
        grid = x.shape[2], x.shape[3]
        x = x.flatten(2).transpose(1, 2)  # (B, P, D)
        x = x + resize_grid(self.position[1:], grid).to(x.dtype)
        token = (self.class_token + self.position[0]).to(x.dtype).expand(len(x), 1, -1)
        return torch.cat([token, x], dim=1)

    def forward(self, pixels: Float[Tensor, "B C H W"], keep: float = 1.0) -> Float[Tensor, "B E"]:
        """`keep` is the share of patches used: patch dropout (arXiv:2212.00794)."""
        x = self.tokens(pixels)
        if keep < 1:
            x = torch.cat([x[:, :1], keep_patches(x[:, 1:], keep)], dim=1)
        x = self.pre_norm(x)
        if self.config.pool == "class":
            first = torch.zeros(len(x), dtype=torch.long, device=x.device)
            return self._project(self.post_norm(self.transformer.at(x, first)))
        x = self.transformer(x)[:, 1:]
        if self.config.norm_after_pool:
            return self._project(self.post_norm(x.mean(1)))
        return self._project(self.post_norm(x).mean(1))

    def patches(
        self, pixels: Float[Tensor, "B C H W"], reach: int | None = None
    ) -> Float[Tensor, "B h w E"]:
        """Each patch in the shared space.

        In a mean-pooled tower the outputs of all patches are there. In a tower with a class token
        only the values of the last attention are (arXiv:2112.01071): in the last block each patch
        attends to itself alone.

        Attention mixes the patches of a small picture. With `reach` a patch attends only to the
        class token and to patches at most that many rows and columns away, in every block, so that
        its vector stays local (arXiv:2404.08181 does so softly and in the last block alone).
        """
        x = self.pre_norm(self.tokens(pixels))
        height, width = (side // self.config.patch for side in pixels.shape[2:])
        mask = None
        if reach is not None:
            seen = neighbour_mask((height, width), reach).to(x.device)
            mask = F.pad(seen, (1, 0, 1, 0), value=True)[None, None]
        blocks = self.transformer if self.config.pool == "mean" else self.transformer.alone
        x = self.post_norm(blocks(x, mask)[:, 1:])
        return self._project(x).reshape(len(x), height, width, -1)

    def _project(self, x: Tensor) -> Tensor:
        projected: Tensor = self.projection(x)
        return projected


class TextTransformer(nn.Module):
    """Tokens, a transformer, and one vector for the text.

    A `dim` of None leaves out the projection, as in Stable Diffusion's towers. SigLIP's has a
    `bias`, and PyTorch's initialisation.
    """

    def __init__(self, config: TextConfig, dim: int | None, bias: bool = False):
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Parameter(0.01 * torch.randn(config.length, config.width))
        self.transformer = Transformer(
            config.width,
            config.layers,
            config.heads,
            config.hidden,
            activation=config.activation,
            eps=config.eps,
            quiet=config.pool == "mean",
        )
        self.post_norm = nn.LayerNorm(config.width, config.eps)
        self.projection: nn.Module = nn.Identity()
        if dim is not None:
            self.projection = nn.Linear(config.width, dim, bias=bias)
        # Mean-pooled token embeddings start with a larger variance, lest random blocks hide them.
        nn.init.normal_(self.token.weight, std=0.1 if config.pool == "mean" else 0.02)
        if isinstance(self.projection, nn.Linear) and not bias:
            nn.init.normal_(self.projection.weight, std=config.width**-0.5)

    def forward(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """A causal tower computes nothing after the end of the longest text."""
        at = self._ends(tokens)
        if self.config.pool != "last" and self.config.causal:
            tokens = tokens[:, : int(at.max()) + 1]
        x, mask = self._embed(tokens)
        if self.config.pool == "mean":
            vector = self._mean(self.transformer(x, mask), at)
        else:
            rows = None if mask is None else mask[0, 0]
            vector = self.post_norm(self.transformer.at(x, at, rows))
        projected: Tensor = self.projection(vector)
        return projected

    def states(
        self, tokens: Int64[Tensor, "B T"], *, skip: int = 0, norm: bool = True
    ) -> Float[Tensor, "B T D"]:
        """Hidden states of all tokens, padding included, for cross-attention.

        The last `skip` blocks are not computed. Stable Diffusion 1.x reads the last block, 2.x the
        penultimate, both with the final norm; XL the penultimate without it.
        """
        self._check_skip(skip)
        x, mask = self._embed(tokens)
        for block in self.transformer.blocks[: self.config.layers - skip]:
            x = block(x, mask)
        normed: Tensor = self.post_norm(x) if norm else x
        return normed

    def states_and_vector(
        self,
        tokens: Int64[Tensor, "B T"],
        *,
        skip: int = 0,
        norm: bool = True,
        projected: bool = True,
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B E"]]:
        """`states`, and the pooled vector of the text from the last block.

        The vector has the final norm and, if `projected`, the projection: XL adds it to the time
        embedding. Without projection it is, at the end token, transformers' `pooler_output`.
        """
        self._check_skip(skip)
        at = self._ends(tokens)
        x, mask = self._embed(tokens)
        chosen = x
        for number, block in enumerate(self.transformer.blocks, 1):
            x = block(x, mask)
            if number == self.config.layers - skip:
                chosen = x
        if self.config.pool == "mean":
            vector = self._mean(x, at)
        else:
            vector = self.post_norm(x[torch.arange(len(x), device=x.device), at])
        if projected:
            vector = self.projection(vector)
        return self.post_norm(chosen) if norm else chosen, vector

    def _mean(self, x: Float[Tensor, "B T D"], ends: Int64[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Mean of the states up to each text's end, then the final norm."""
        inside = torch.arange(x.shape[1], device=x.device) <= ends[:, None]
        weight = (inside / inside.sum(1, keepdim=True)).to(x.dtype)
        mean: Tensor = self.post_norm(torch.einsum("bt,btd->bd", weight, x))
        return mean

    def _check_skip(self, skip: int) -> None:
        if not 0 <= skip <= max(0, self.config.layers - 1):
            raise ValueError(
                f"skip must be 0 to {self.config.layers - 1}, for a text tower of "
                f"{self.config.layers} blocks, not {skip}"
            )

    def _embed(self, tokens: Tensor) -> tuple[Tensor, Bool[Tensor, "1 1 T T"] | None]:
        """Tokens with positions, and the causal mask."""
        self._check_length(tokens)
        count = tokens.shape[1]
        x = self.token(tokens) + self.position[:count]
        if not self.config.causal:
            return x, None
        mask = torch.ones(count, count, dtype=torch.bool, device=tokens.device)
        return x, mask.tril()[None, None]

    def _check_length(self, tokens: Tensor) -> None:
        if tokens.shape[1] > self.config.length:
            raise ValueError(
                f"texts have {tokens.shape[1]} tokens and this tower reads at most "
                f"{self.config.length}: cut them"
            )

    def _ends(self, tokens: Tensor) -> Int64[Tensor, " B"]:
        """The position at which each text is read, or ends."""
        self._check_length(tokens)
        if self.config.pool == "last":
            return tokens.new_full((len(tokens),), tokens.shape[1] - 1)
        end = (tokens == self.config.end).int()
        if not bool(end.any(dim=1).all()):
            raise ValueError(
                f"a text lacks the end token {self.config.end}: make tokens with `Tokenizer.encode`"
            )
        return end.argmax(dim=1)


class Clip(nn.Module):
    """An image tower, a text tower and a temperature."""

    reads = "softmax"
    """How logits become probabilities: those of all labels add up to 1."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.config = config
        if config.vit is not None:
            self.image: nn.Module = VisionTransformer(config.vit, config.dim)
        else:
            assert config.resnet is not None
            self.image = ModifiedResNet(config.resnet, config.dim)
        if config.text is not None:
            self.text: nn.Module = TextTransformer(config.text, config.dim)
        else:
            assert config.words is not None
            words = config.words
            self.text = BagOfWords(words.vocabulary, words.width, config.dim, words.unspoken)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # section 2.5

    def embed_image(
        self, pixels: Float[Tensor, "B C H W"], keep: float = 1.0
    ) -> Float[Tensor, "B E"]:
        """Embed pictures from the model's transform: unit length, float32; `keep` as in towers."""
        return F.normalize(self.image(pixels, keep).float(), dim=-1)

    def embed_text(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """Embed tokens, each text with its end token: unit length, float32."""
        return F.normalize(self.text(tokens).float(), dim=-1)

    def patches(
        self, pixels: Float[Tensor, "B C H W"], reach: int | None = None
    ) -> Float[Tensor, "B h w E"]:
        """Each patch in the shared space, unit length; for any size that patches tile.

        Raises:
            ValueError: `reach` with a ResNet, which has no attention.
        """
        if isinstance(self.image, VisionTransformer):
            patches = self.image.patches(pixels, reach)
        elif reach is None:
            patches = self.image.patches(pixels)  # type: ignore[operator]
        else:
            raise ValueError("reach limits attention and a ResNet has none: leave it at -1")
        return F.normalize(patches.float(), dim=-1)

    def logits(
        self, image: Float[Tensor, "N E"], text: Float[Tensor, "M E"]
    ) -> Float[Tensor, "N M"]:
        """Scaled cosines of every picture with every text; softmax over texts classifies."""
        return self.logit_scale.exp() * image @ text.T


def objective(
    model: Clip,
    pixels: Float[Tensor, "B C H W"],
    tokens: Int64[Tensor, "B T"],
    *,
    groups: Int64[Tensor, " B"] | None = None,
    keep: float = 1.0,
    cache: int = 0,
    ranks: Ranks = ALONE,
) -> Loss:
    """The symmetric cross-entropy of a batch of pairs (figure 3 of the paper).

    `keep` is the share of patches used. With `cache` above 0 the activations of at most that many
    pairs are in memory, and others are recomputed (arXiv:2101.06983). Pairs of one group have the
    same text and are positives of each other. The batch may be spread over `ranks`. Chance is
    ln(B).
    """
    embed_image = partial(model.embed_image, keep=keep)
    image, text = embed_pairs(embed_image, model.embed_text, pixels, tokens, cache)
    scale = model.logit_scale.clamp(max=MAX_SCALE)
    loss = softmax_loss(image, text, scale, groups=groups, ranks=ranks)
    count = len(pixels)
    return Loss(loss * count, count, {"scale": scale.detach().exp()})


def cast_towers(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Cast the towers, but not the temperature: a scale of 100 would become 98.9."""
    if dtype is not None:
        for tower in ("image", "text"):
            model.get_submodule(tower).to(dtype)


KINDS = {"clip": ModelKind(ClipConfig, Clip, cast_towers)}

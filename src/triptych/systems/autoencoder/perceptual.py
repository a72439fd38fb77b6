"""Perceptual distance and patch discriminator.

The perceptual distance compares pictures in the features of a trained vision network (Zhang et al.,
LPIPS, arXiv:1801.03924). The patch discriminator scores every patch of a picture as real or
generated (Isola et al., arXiv:1611.07004, section 3.2.2).

Dimensions: B pictures, C channels, H height, W width, D feature channels, h w sides of a feature
map or of the map of scores.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.nn.norm import GroupNorm
from triptych.systems.classifier.model import Classifier
from triptych.systems.clip.model import VisionTransformer

FeatureMaps = Callable[[Tensor], Sequence[Tensor]]
"""Pictures (B, C, H, W) in [-1, 1] to feature maps (B, D, h, w)."""


class PerceptualDistance(nn.Module):
    """Distance of pictures in a network's features (LPIPS, arXiv:1801.03924, eq. 1).

    Features are scaled to unit length over the channels; squared differences are summed over
    channels, averaged over positions and summed over maps. All channels have weight 1, so each map
    adds a value in [0, 4].

    The feature network is not a submodule: it is not trained, averaged or saved with this one.
    """

    def __init__(self, features: FeatureMaps):
        super().__init__()
        self.features = [features]  # in a list, so that a network is not registered as a submodule

    def forward(
        self, image: Float[Tensor, "B C H W"], other: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, " B"]:
        """One distance per picture; gradients reach both pictures."""
        maps, others = self.features[0](image), self.features[0](other)
        total = image.new_zeros(len(image))
        for a, b in zip(maps, others, strict=True):
            squared = (unit_length(a) - unit_length(b)).square()  # (B, D, h, w)
            total = total + squared.sum(1).mean((1, 2)).to(total.dtype)
        return total


def unit_length(x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
    """Unit length over the channels; the gradient is finite where all channels are 0."""
    return x * (x.float().square().sum(1, keepdim=True) + 1e-8).rsqrt().to(x.dtype)


def classifier_maps(classifier: Classifier) -> FeatureMaps:
    """Feature maps of our classifier: its stem and blocks. Freezes the classifier."""
    classifier.eval().requires_grad_(False)

    def maps(image: Float[Tensor, "B C H W"]) -> list[Tensor]:
        features = [classifier.stem(image)]
        for block in classifier.blocks:
            features.append(block(features[-1]))
        return [F.relu(x) for x in features]  # before the norms, as in LPIPS

    return maps


def clip_maps(
    tower: VisionTransformer, layers: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> FeatureMaps:
    """Feature maps of a CLIP vision transformer: patch tokens after the blocks `layers`, counted
    from 0. Freezes the tower.

    `mean` and `std` are those of the tower's transform, for pictures in [0, 1]. Pictures keep their
    size; position embeddings are resized to it.

    Raises:
        ValueError: `layers` names a block that the tower does not have.
    """
    blocks = list(tower.transformer.blocks)
    if not layers or not all(0 <= layer < len(blocks) for layer in layers):
        raise ValueError(f"layers must name blocks from 0 to {len(blocks) - 1}, not {layers}")
    tower.eval().requires_grad_(False)

    def maps(image: Float[Tensor, "B C H W"]) -> list[Tensor]:
        centre, spread = (image.new_tensor(x)[:, None, None] for x in (mean, std))
        x = tower.pre_norm(tower.tokens(((image + 1) / 2 - centre) / spread))
        height, width = (side // tower.config.patch for side in image.shape[2:])
        features = []
        for layer in range(max(layers) + 1):
            x = blocks[layer](x)
            if layer in layers:
                features.append(x[:, 1:].transpose(1, 2).unflatten(2, (height, width)))
        return features

    return maps


class PatchDiscriminator(nn.Module):
    """A score for every patch of a picture, high where it looks real (arXiv:1611.07004).

    `widths` are the channels of the convolutions with stride 2; with three of them a score sees
    70 x 70 pixels. Group norm replaces the paper's batch norm, so that a score does not depend on
    the rest of the batch and accumulated gradients equal those of one large batch.
    """

    def __init__(
        self, channels: int = 3, widths: tuple[int, ...] = (64, 128, 256), groups: int = 32
    ):
        super().__init__()
        if not widths or any(width % groups for width in widths[1:]):
            raise ValueError(
                f"widths must not be empty, and all but the first must be multiples of groups, "
                f"{groups}; got {widths}"
            )
        last = 2 * widths[-1]
        if last % groups:
            raise ValueError(f"twice the last of widths must be a multiple of groups, {groups}")
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for inner, outer in pairwise(widths):
            layers += [nn.Conv2d(inner, outer, 4, 2, 1, bias=False), GroupNorm(groups, outer)]
            layers.append(nn.LeakyReLU(0.2))
        layers += [nn.Conv2d(widths[-1], last, 4, 1, 1, bias=False), GroupNorm(groups, last)]
        layers += [nn.LeakyReLU(0.2), nn.Conv2d(last, 1, 4, 1, 1)]
        self.layers = nn.Sequential(*layers)
        self.least = 3 << len(widths)  # three positions before the last two convolutions
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)  # the paper's, section 6.2

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 h w"]:
        """Pictures in [-1, 1] to scores.

        Raises:
            ValueError: the picture is too small for the convolutions.
        """
        if min(image.shape[2:]) < self.least:
            height, width = image.shape[2:]
            raise ValueError(
                f"pictures of {height} x {width} are too small for this patch discriminator: use "
                f"sides of at least {self.least} pixels, or fewer widths"
            )
        scores: Tensor = self.layers(image)
        return scores.to(image.dtype)  # autocast ends here


def hinge_critic(
    real: Float[Tensor, "B 1 h w"], fake: Float[Tensor, "B 1 h w"]
) -> Float[Tensor, " B"]:
    """The discriminator's loss per picture: 0 once real scores exceed 1 and fake ones are below -1.

    (arXiv:1705.02894, eq. 3; halved as in arXiv:2012.09841's code.)
    """
    loss = F.relu(1 - real).flatten(1).mean(1) + F.relu(1 + fake).flatten(1).mean(1)
    return 0.5 * loss


def hinge_generator(fake: Float[Tensor, "B 1 h w"]) -> Float[Tensor, " B"]:
    """The generator's loss per picture: minus the mean score."""
    return -fake.flatten(1).mean(1)

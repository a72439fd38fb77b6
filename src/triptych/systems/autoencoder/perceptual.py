"""How different two pictures look, and which patches of a picture look generated.

The perceptual distance compares pictures in the features of a network that was trained to see
(Zhang et al., LPIPS, arXiv:1801.03924). The patch discriminator says of every patch whether it is
real (Isola et al., arXiv:1611.07004, section 3.2.2).

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
"""Pictures (B, C, H, W) in [-1, 1] to maps (B, D, h, w), from fine to coarse or as they come."""


class PerceptualDistance(nn.Module):
    """Distance of pictures in a network's features (LPIPS, arXiv:1801.03924, eq. 1).

    Each place of each map is brought to unit length over its channels; squared differences are
    weighed per channel, summed, averaged over places and summed over maps. `heads` gives one row of
    weights per map; without them a channel counts as any other, and a map's part lies in [0, 4].

    The network is none of this module's: it is neither trained, averaged nor saved with it.
    """

    def __init__(self, features: FeatureMaps, heads: Sequence[Float[Tensor, " D"]] = ()):
        super().__init__()
        self.features = [features]  # in a list, so that a network is not registered as a part
        for i, head in enumerate(heads):
            self.register_buffer(f"head{i}", head.detach().clone())
        self.heads = len(heads)

    def forward(
        self, image: Float[Tensor, "B C H W"], other: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, " B"]:
        """One distance per picture; gradients reach both pictures.

        Raises:
            ValueError: there are not as many heads as maps, or as weights as channels.
        """
        maps, others = self.features[0](image), self.features[0](other)
        if self.heads not in (0, len(maps)):
            raise ValueError(f"{self.heads} heads do not fit the {len(maps)} maps of the features")
        total = image.new_zeros(len(image))
        for i, (a, b) in enumerate(zip(maps, others, strict=True)):
            squared = (unit_length(a) - unit_length(b)).square()  # (B, D, h, w)
            if self.heads:
                head = getattr(self, f"head{i}")
                if len(head) != a.shape[1]:
                    raise ValueError(
                        f"head {i} has {len(head)} weights, its map has {a.shape[1]} channels"
                    )
                squared = squared * head.to(squared)[:, None, None]
            total = total + squared.sum(1).mean((1, 2)).to(total.dtype)
        return total


def unit_length(x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
    """Every place to length 1; the gradient is finite where all channels are 0."""
    return x * (x.float().square().sum(1, keepdim=True) + 1e-8).rsqrt().to(x.dtype)


def lpips_heads(state: dict[str, Tensor]) -> list[Tensor]:
    """The weights of a published LPIPS file (`lin0.model.1.weight`, ...), one row per map.

    Raises:
        ValueError: it is another kind of file, or a weight is negative, which a distance cannot
            have.
    """
    names = [f"lin{i}.model.1.weight" for i in range(len(state))]
    if not state or state.keys() != set(names):
        raise ValueError(
            f"LPIPS heads are called lin0.model.1.weight and so on, not {sorted(state)[:3]}"
        )
    heads = [state[name].flatten() for name in names]
    for name, head in zip(names, heads, strict=True):
        if bool((head < 0).any()):
            raise ValueError(f"{name} has negative weights, so that no distance results")
    return heads


def classifier_maps(classifier: Classifier) -> FeatureMaps:
    """The outputs of our classifier's stem and blocks; from here on it is frozen."""
    classifier.eval().requires_grad_(False)

    def maps(image: Float[Tensor, "B C H W"]) -> list[Tensor]:
        found = [classifier.stem(image)]
        for block in classifier.blocks:
            found.append(block(found[-1]))
        return [F.relu(x) for x in found]  # before a norm, as where LPIPS reads its networks

    return maps


def clip_maps(
    tower: VisionTransformer, layers: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> FeatureMaps:
    """A CLIP image tower's patches after some of its blocks, the first is 0; it is then frozen.

    `mean` and `std` are those of the tower's own transform, for pictures in [0, 1]. Pictures keep
    their size, positions are stretched, so that sides below a patch are an error of the tower.

    Raises:
        ValueError: a block that the tower does not have.
    """
    blocks = list(tower.transformer.blocks)
    if not layers or not all(0 <= layer < len(blocks) for layer in layers):
        raise ValueError(f"layers must name blocks from 0 to {len(blocks) - 1}, not {layers}")
    tower.eval().requires_grad_(False)

    def maps(image: Float[Tensor, "B C H W"]) -> list[Tensor]:
        centre, spread = (image.new_tensor(x)[:, None, None] for x in (mean, std))
        x = tower.pre_norm(tower.tokens(((image + 1) / 2 - centre) / spread))
        height, width = (side // tower.config.patch for side in image.shape[2:])
        found = []
        for layer in range(max(layers) + 1):
            x = blocks[layer](x)
            if layer in layers:
                found.append(x[:, 1:].transpose(1, 2).unflatten(2, (height, width)))
        return found

    return maps


class PatchDiscriminator(nn.Module):
    """A score for every patch of a picture, high where it looks real (arXiv:1611.07004).

    `widths` has a number for each convolution that halves the side; three of them and the two
    behind see patches of 70 x 70 pixels. Norms are over groups of a picture's channels where the
    paper's are over the batch: a score must not depend on the pictures beside it, or accumulated
    batches would not add up to a large one.
    """

    def __init__(
        self, channels: int = 3, widths: tuple[int, ...] = (64, 128, 256), groups: int = 32
    ):
        super().__init__()
        if not widths or any(width % groups for width in widths[1:]):
            raise ValueError(
                f"widths must be at least one number, and multiples of groups, {groups}, from the "
                f"second on, not {widths}"
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
        self.least = 3 << len(widths)  # three places before the last two filters
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)  # the paper's, section 6.2

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 h w"]:
        """Pictures in [-1, 1] to scores.

        Raises:
            ValueError: a picture that is smaller than the filters.
        """
        if min(image.shape[2:]) < self.least:
            height, width = image.shape[2:]
            raise ValueError(
                f"pictures of {height} x {width} are too small for this patch discriminator: sides "
                f"of at least {self.least} pixels, or fewer widths"
            )
        scores: Tensor = self.layers(image)
        return scores.to(image.dtype)  # autocast ends here


def hinge_critic(
    real: Float[Tensor, "B 1 h w"], fake: Float[Tensor, "B 1 h w"]
) -> Float[Tensor, " B"]:
    """What the discriminator minimises per picture: 0 once real scores pass 1 and fake ones -1.

    (arXiv:1705.02894, eq. 3; halved as in arXiv:2012.09841's code.)
    """
    loss = F.relu(1 - real).flatten(1).mean(1) + F.relu(1 + fake).flatten(1).mean(1)
    return 0.5 * loss


def hinge_generator(fake: Float[Tensor, "B 1 h w"]) -> Float[Tensor, " B"]:
    """What the generator minimises per picture: minus the mean score."""
    return -fake.flatten(1).mean(1)

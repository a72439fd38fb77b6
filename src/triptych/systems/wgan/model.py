"""Conditional WGAN-GP (Mirza & Osindero arXiv:1411.1784; Gulrajani et al. arXiv:1704.00028).

A generator draws a picture from noise and a condition. A critic, whose gradient is kept near norm
1, scores how much more real a picture of that condition looks than a generated one; the generator
is trained to score high.

Dimensions: B pictures, C channels, H height, W width, Z latent, N numbers of a condition, K
classes, I units, S interpolation steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from triptych.fields import bounded
from triptych.nn.checks import require_at_least, require_widths
from triptych.nn.conditions import condition_vector
from triptych.nn.loss import Loss
from triptych.system import ModelKind

Condition = Tensor | None
"""None, int64 (B,) class labels, or float (B, N) attributes, 1 where the attribute holds."""


@dataclass(frozen=True)
@bounded
class WganConfig:
    """Configuration of a conditional WGAN."""

    height: int
    width: int
    channels: int
    condition: Literal["none", "label", "attributes"]
    condition_size: int = 0
    """Classes or attributes."""
    latent: int = 64
    """Numbers of noise per picture."""
    generator_widths: tuple[int, ...] = (128, 64)
    """Channels of the generator, from its smallest feature maps; each doubles the side."""
    critic_widths: tuple[int, ...] = (64, 128)
    """Channels of the critic; each halves the side."""
    critic: Literal["planes", "projection"] = "planes"
    """The condition as extra channels of the picture, or as an inner product (arXiv:1802.05637)."""
    generator_hidden: tuple[int, ...] = ()
    """Widths of dense layers between the noise and the generator's smallest feature maps."""
    critic_hidden: tuple[int, ...] = ()
    """Widths of dense layers between the critic's smallest feature maps and its score."""
    generator: Literal["input", "norms"] = "input"
    """The condition beside the noise, or there and in every batch norm (arXiv:1707.00683)."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "channels", "latent")
        if self.condition != "none" and self.condition_size < 1:
            raise ValueError(
                f"condition {self.condition!r} needs condition_size, its number of classes or "
                f"attributes: at least 1, not {self.condition_size}"
            )
        require_widths(self, "generator_widths", "critic_widths")
        for name in ("generator_widths", "critic_widths"):
            widths = getattr(self, name)
            step = 2 ** len(widths)
            if min(self.height, self.width) < 1 or self.height % step or self.width % step:
                raise ValueError(
                    f"the {len(widths)} {name} need sides that are multiples of {step}, not "
                    f"{self.height} x {self.width}: give fewer widths or another size"
                )


def encode_condition(
    config: WganConfig, condition: Condition, like: Tensor
) -> Float[Tensor, "B N"]:
    """The condition of each row of `like` as numbers."""
    return condition_vector(config.condition, config.condition_size, condition, len(like), like)


class ConditionalNorm(nn.Module):
    """Batch norm whose scale and shift the condition changes (de Vries et al., arXiv:1707.00683).

    Both are linear in the condition, so that two conditions can be interpolated.
    """

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.change = nn.Linear(size, 2 * channels, bias=False)
        nn.init.zeros_(self.change.weight)  # a plain batch norm at first

    def forward(self, x: Float[Tensor, "B I *S"], vector: Float[Tensor, "B N"]) -> Tensor:
        scale, shift = self.change(vector)[:, :, None].chunk(2, 1)
        normal = self.norm(x.flatten(2) if x.ndim > 2 else x[:, :, None])
        changed: Tensor = normal * (1 + scale) + shift
        return changed.reshape(x.shape)


class Generator(nn.Module):
    """Noise and condition to a picture in [-1, 1]."""

    def __init__(self, config: WganConfig):
        super().__init__()
        self.config = config
        size = config.condition_size if config.condition != "none" else 0
        widths = config.generator_widths
        step = 2 ** len(widths)
        shape = (widths[0], config.height // step, config.width // step)
        in_norms = size if config.generator == "norms" else 0
        layers: list[nn.Module] = []
        norm: nn.Module
        inner = config.latent + size
        for outer in config.generator_hidden:
            norm = ConditionalNorm(outer, in_norms) if in_norms else nn.BatchNorm1d(outer)
            layers += [nn.Linear(inner, outer, bias=False), norm, nn.ReLU()]
            inner = outer
        layers += [nn.Linear(inner, math.prod(shape), bias=False), nn.Unflatten(1, shape)]
        for channels, out in zip(widths, (*widths[1:], config.channels), strict=True):
            norm = ConditionalNorm(channels, in_norms) if in_norms else nn.BatchNorm2d(channels)
            layers += [norm, nn.ReLU(), nn.ConvTranspose2d(channels, out, 4, 2, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(
        self, noise: Float[Tensor, "B Z"], condition: Condition
    ) -> Float[Tensor, "B C H W"]:
        return self.generate(noise, encode_condition(self.config, condition, noise))

    def generate(
        self, noise: Float[Tensor, "B Z"], vector: Float[Tensor, "B N"]
    ) -> Float[Tensor, "B C H W"]:
        """Pictures of encoded conditions, which may be interpolated."""
        x = torch.cat([noise, vector], 1)
        for layer in self.layers:
            x = layer(x, vector) if isinstance(layer, ConditionalNorm) else layer(x)
        return torch.tanh(x.to(noise.dtype))  # autocast ends here


class Critic(nn.Module):
    """Picture and condition to a score; no batch norm, since the penalty is per picture."""

    def __init__(self, config: WganConfig):
        super().__init__()
        self.config = config
        size = config.condition_size if config.condition != "none" else 0
        planes = size if config.critic == "planes" else 0
        widths = config.critic_widths
        ins = (config.channels + planes, *widths[:-1])
        self.layers = nn.ModuleList(
            nn.Conv2d(channels, out, 4, 2, 1) for channels, out in zip(ins, widths, strict=True)
        )
        step = 2 ** len(widths)
        features = widths[-1] * (config.height // step) * (config.width // step)
        sizes = (features, *config.critic_hidden)
        self.dense = nn.ModuleList(nn.Linear(inner, outer) for inner, outer in pairwise(sizes))
        features = sizes[-1]
        self.head = nn.Linear(features, 1)
        if size and config.critic == "projection":
            self.projection = nn.Linear(size, features, bias=False)

    def forward(self, image: Float[Tensor, "B C H W"], condition: Condition) -> Float[Tensor, " B"]:
        vector = encode_condition(self.config, condition, image)
        x = image
        for i, layer in enumerate(self.layers):
            x = self._convolve_first(x, vector) if i == 0 else layer(x)
            x = F.leaky_relu(x, 0.2)
        x = x.flatten(1)
        for dense in self.dense:
            x = F.leaky_relu(dense(x), 0.2)
        score: Tensor = self.head(x)[:, 0].to(image.dtype)  # autocast ends here
        if self.config.critic == "projection" and vector.shape[1]:
            score = score + (self.projection(vector) * x).sum(1, dtype=image.dtype)
        return score

    def _convolve_first(self, image: Tensor, vector: Float[Tensor, "B N"]) -> Tensor:
        """The first convolution, over the picture with the condition as constant extra channels.

        A convolution is linear, so each channel of ones is convolved once for the whole batch and
        then scaled per picture; the result, borders included, is the same.
        """
        layer = self.layers[0]
        assert isinstance(layer, nn.Conv2d)
        pixels, planes = layer.weight.split([image.shape[1], layer.in_channels - image.shape[1]], 1)
        x = F.conv2d(image, pixels, layer.bias, 2, 1)
        if not planes.shape[1]:
            return x
        ones = image.new_ones(1, 1, *image.shape[2:])
        maps = F.conv2d(ones, planes.transpose(0, 1).flatten(0, 1)[:, None], None, 2, 1)
        maps = maps.reshape(planes.shape[1], -1)  # (N, out * h * w)
        return x + (vector @ maps).reshape(x.shape)


class Wgan(nn.Module):
    """Generator and critic."""

    def __init__(self, config: WganConfig):
        super().__init__()
        self.config = config
        self.generator = Generator(config)
        self.critic = Critic(config)


class Penalty(NamedTuple):
    penalty: Float[Tensor, " B"]
    norms: Float[Tensor, " B"]  # of the critic's gradient, one per picture


def gradient_penalty(
    critic: Callable[[Tensor, Condition], Tensor],
    real: Float[Tensor, "B C H W"],
    fake: Float[Tensor, "B C H W"],
    condition: Condition,
    *,
    factor: Literal["uniform", "normal"] = "uniform",
) -> Penalty:
    """(|gradient of the critic| - 1)^2 between real and fake (arXiv:1704.00028, section 4).

    Each picture gets its own mixing factor, uniform in [0, 1]. `normal` draws it from a standard
    normal, as the lecture's code does: two in three mixtures are then outside the segment that the
    theory is about. The norm is over all axes but the first, in the picture's precision also under
    autocast, and its gradient is 0 where it is 0.
    """
    shape = (len(real), *[1] * (real.ndim - 1))
    draw = {"uniform": torch.rand, "normal": torch.randn}[factor]
    share = draw(shape, device=real.device, dtype=real.dtype)
    mixed = real.lerp(fake, share).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(mixed, condition).sum(), mixed, create_graph=True)
    norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return Penalty((norms - 1).square(), norms.detach())


def critic_objective(
    model: Wgan,
    image: Float[Tensor, "B C H W"],
    condition: Condition,
    noise: Float[Tensor, "B Z"],
    *,
    gp_weight: float = 10.0,
    factor: Literal["uniform", "normal"] = "uniform",
) -> Loss:
    """The critic's loss: scores of fakes minus scores of real pictures, plus the penalty.

    Terms, named as in the lecture: `c_loss`, `c_wass_loss` (minus it estimates the Wasserstein
    distance), `c_gp` (unweighted); and `gradient_norm`, `gradient_norm_std` over the mixed
    pictures.
    """
    with torch.no_grad():
        fake = model.generator(noise, condition)
    twice = None if condition is None else torch.cat([condition, condition])
    fake_score, real_score = model.critic(torch.cat([fake, image]), twice).chunk(2)
    penalty, norms = gradient_penalty(model.critic, image, fake, condition, factor=factor)
    wasserstein = fake_score - real_score
    total = (wasserstein + gp_weight * penalty).sum()
    return Loss(
        total,
        len(image),
        {
            "c_loss": total.detach() / len(image),
            "c_wass_loss": wasserstein.detach().mean(),
            "c_gp": penalty.detach().mean(),
            "gradient_norm": norms.mean(),
            "gradient_norm_std": norms.std(correction=0),
        },
    )


def generator_objective(model: Wgan, condition: Condition, noise: Float[Tensor, "B Z"]) -> Loss:
    """The generator's loss: minus the critic's score of its pictures. Term: `g_loss`."""
    fake = model.generator(noise, condition)
    # the critic's weights as constants, so that no gradients are computed for them
    frozen = {name: weight.detach() for name, weight in model.critic.named_parameters()}
    total = -functional_call(model.critic, frozen, (fake, condition)).sum()
    return Loss(total, len(noise), {"g_loss": total.detach() / len(noise)})


@torch.no_grad()
def sample(
    generator: Generator, condition: Condition, noise: Float[Tensor, "B Z"]
) -> Float[Tensor, "B C H W"]:
    """Pictures of these conditions, in [-1, 1]; the noise is standard normal, one row a picture.

    Put the generator into evaluation mode first: in training mode a picture depends on its batch.
    """
    pictures: Tensor = generator(noise, condition)
    return pictures


def truncate(noise: Float[Tensor, "B Z"], threshold: float) -> Float[Tensor, "B Z"]:
    """Standard normal noise mapped to a normal truncated at +- threshold: fidelity against variety.

    BigGAN's truncation trick (arXiv:1809.11096, section 3.1) by quantiles instead of resampling: a
    seed keeps its picture, and for a large threshold the noise does not change.
    """
    if threshold <= 0:
        raise ValueError(f"the threshold must be positive, not {threshold}")
    low = torch.special.ndtr(torch.tensor(-threshold, dtype=torch.float64))
    rank = low + torch.special.ndtr(noise.double()) * (1 - 2 * low)
    normal: Tensor = torch.special.ndtri(rank).clamp(-threshold, threshold)
    return normal.to(noise.dtype)


@torch.no_grad()
def interpolate_conditions(
    generator: Generator,
    first: Tensor,
    second: Tensor,
    noise: Float[Tensor, "B Z"],
    steps: int,
) -> Float[Tensor, "S B C H W"]:
    """From one condition to another at fixed noise, ends included."""
    config = generator.config
    start, end = (encode_condition(config, c, noise) for c in (first, second))
    shares = torch.linspace(0, 1, steps).tolist()
    return torch.stack([generator.generate(noise, start.lerp(end, share)) for share in shares])


COLLAPSED = 0.5
"""A class whose `class_spread` is below this share of the real pictures' has likely lost modes."""


def class_spread(
    images: Float[Tensor, "B C H W"], labels: Int[Tensor, " B"], classes: int
) -> Float[Tensor, " K"]:
    """Root mean square pixel distance between two pictures of a class.

    Against the same of real pictures, a ratio below `COLLAPSED` suggests lost modes. Computed from
    variances in one pass; NaN for a class with fewer than two pictures.
    """
    spreads = []
    for label in range(classes):
        rows = images[labels == label].flatten(1).float()
        variance = rows.var(0).sum() if len(rows) > 1 else rows.new_tensor(torch.nan)
        spreads.append((2 * variance).sqrt())
    return torch.stack(spreads)


KINDS = {"wgan": ModelKind(WganConfig, Generator)}

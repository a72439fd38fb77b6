"""Conditional VAE (Kingma & Welling arXiv:1312.6114; Sohn et al. NIPS 2015; Dykeman 2016).

An encoder maps a picture and its condition to a Gaussian over z; a decoder draws the picture from z
and the condition. What the condition determines need not be stored in z, so that one z gives ten
digits of one style.

Dimensions: B pictures, C channels, H height, W width, Z latent, N numbers of a condition, E
condition features, K importance samples, S interpolation steps.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.fields import bounded
from triptych.nn.checks import require_at_least, require_widths
from triptych.nn.conditions import condition_vector
from triptych.nn.loss import Loss
from triptych.system import ModelKind

Images = Float[Tensor, "B C H W"]  # in [-1, 1]
Codes = Float[Tensor, "B Z"]
Features = Float[Tensor, "B E"]
Condition = Tensor | None
"""The condition of a batch, by the configuration's `condition`:

none        None
label       int64 (B,), a class from 0 to condition_size - 1
attributes  float (B, N), 1 where the attribute holds, else 0
vector      float (B, N), any numbers, best scaled to about [-1, 1]
image       float (B, C + 1, H, W): visible pixels, 0 elsewhere, and their mask (`partial_view`)
"""


@dataclass(frozen=True)
@bounded
class CvaeConfig:
    """Configuration of a conditional VAE."""

    height: int
    width: int
    channels: int
    condition: Literal["none", "label", "attributes", "vector", "image"]
    condition_size: int = 0
    """Classes, attributes, or numbers of the vector; not used for `none` and `image`."""
    latent: int = 16
    """Numbers in z; 0 predicts from the condition alone, without noise (Sohn's baseline)."""
    network: Literal["mlp", "convolutional"] = "convolutional"
    widths: tuple[int, ...] = (32, 64, 256)
    """Hidden layers from picture to z; of the convolutional ones the last is fully connected."""
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    learned_prior: bool = False
    """Learn p(z | condition) instead of using the standard normal."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "height", "width", "channels")
        require_widths(self, "widths")
        if self.condition in ("label", "attributes", "vector") and self.condition_size < 1:
            raise ValueError(
                f"condition {self.condition!r} needs condition_size, its number of classes, "
                f"attributes or columns: at least 1, not {self.condition_size}"
            )
        if self.condition == "none" and (self.latent == 0 or self.learned_prior):
            raise ValueError("without a condition there must be a latent and no learned prior")
        if self.latent == 0 and self.learned_prior:
            raise ValueError("a learned prior needs a latent of at least 1, not 0")
        step = 2 ** (len(self.widths) - 1)
        if self.network == "convolutional" and (self.height % step or self.width % step):
            raise ValueError(
                f"{len(self.widths)} widths halve the picture {len(self.widths) - 1} times, so its "
                f"sides must be multiples of {step}, not {self.height} x {self.width}: give fewer "
                "widths or another size"
            )


class Gaussian(NamedTuple):
    """Independent normal distributions, one per number of z."""

    mean: Codes
    log_variance: Codes

    def at(self, noise: Float[Tensor, "*K B Z"]) -> Float[Tensor, "*K B Z"]:
        """The sample that belongs to standard normal noise (the reparameterisation trick)."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def log_density(self, z: Float[Tensor, "*K B Z"]) -> Float[Tensor, "*K B"]:
        squares = (z - self.mean).square() * (-self.log_variance).exp()
        return -0.5 * (squares + self.log_variance + math.log(2 * math.pi)).sum(-1)


def kl_divergence(q: Gaussian, p: Gaussian) -> Codes:
    """KL(q || p) in nats for each number of z, in closed form."""
    ratio = q.log_variance - p.log_variance
    distance = (q.mean - p.mean).square() * (-p.log_variance).exp()
    return 0.5 * (ratio.exp() + distance - 1 - ratio)


class Layer(nn.Module):
    """A linear layer or convolution whose output a linear function of the condition shifts.

    The same as appending the condition to the input, as units or constant planes, at almost no
    cost (but for planes at a border padded with zeros).
    """

    def __init__(self, linear: nn.Module, width: int, features: int):
        super().__init__()
        self.linear = linear
        self.shift = nn.Linear(features, width, bias=False) if features else None

    def forward(self, x: Tensor, condition: Features) -> Tensor:
        x = self.linear(x)
        if self.shift is None:
            return x
        shift: Tensor = self.shift(condition)
        return x + shift.reshape(shift.shape + (1,) * (x.ndim - 2))


class Encoder(nn.Module):
    """Picture and condition to a vector."""

    def __init__(self, config: CvaeConfig, channels: int, features: int, outputs: int):
        super().__init__()
        *hidden, last = config.widths
        height, width = config.height, config.width
        layers = []
        if config.network == "convolutional":
            for out in hidden:
                layers.append(Layer(nn.Conv2d(channels, out, 4, 2, 1), out, features))
                channels, height, width = out, height // 2, width // 2
            hidden = []
        size = channels * height * width
        for out in (*hidden, last):
            layers.append(Layer(nn.Sequential(nn.Flatten(), nn.Linear(size, out)), out, features))
            size = out
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(size, outputs)

    def forward(self, image: Float[Tensor, "B _ H W"], condition: Features) -> Float[Tensor, "B _"]:
        x = image
        for layer in self.layers:
            x = F.silu(layer(x, condition))
        vector: Tensor = self.head(x)
        return vector


class Decoder(nn.Module):
    """z and condition to logits or means of pixels: the encoder's layers in reverse."""

    def __init__(self, config: CvaeConfig, features: int):
        super().__init__()
        *hidden, last = config.widths
        shape = (config.channels, config.height, config.width)
        layers = [Layer(nn.Linear(config.latent + features, last), last, 0)]
        if config.network == "convolutional" and hidden:
            step = 2 ** len(hidden)
            out, height, width = hidden[-1], config.height // step, config.width // step
            grow = nn.Sequential(
                nn.Linear(last, out * height * width), nn.Unflatten(1, (out, height, width))
            )
            layers.append(Layer(grow, out, features))
            for channels, out in zip(hidden[::-1], [*hidden[-2::-1], config.channels], strict=True):
                layers.append(Layer(nn.ConvTranspose2d(channels, out, 4, 2, 1), out, features))
        else:
            for out in hidden[::-1]:
                layers.append(Layer(nn.Linear(last, out), out, features))
                last = out
            grow = nn.Sequential(nn.Linear(last, math.prod(shape)), nn.Unflatten(1, shape))
            layers.append(Layer(grow, config.channels, 0))
        self.layers = nn.ModuleList(layers)

    def forward(self, z: Codes, condition: Features) -> Images:
        x: Tensor = self.layers[0](torch.cat([z, condition], 1), condition)
        for layer in self.layers[1:]:
            x = layer(F.silu(x), condition)
        return x


class Cvae(nn.Module):
    """Encoder q(z | picture, condition), prior p(z | condition), decoder p(picture | z, condition).

    `features` embeds the condition once; the other methods take its result.
    """

    def __init__(self, config: CvaeConfig):
        super().__init__()
        self.config = config
        features = {"none": 0, "image": config.widths[-1]}.get(
            config.condition, config.condition_size
        )
        if config.condition == "image":
            self.view = Encoder(config, config.channels + 1, 0, features)
        if config.latent:
            self.encoder = Encoder(config, config.channels, features, 2 * config.latent)
        if config.learned_prior:
            self.prior_network = nn.Sequential(
                nn.Linear(features, config.widths[-1]),
                nn.SiLU(),
                nn.Linear(config.widths[-1], 2 * config.latent),
            )
        self.decoder = Decoder(config, features)
        if config.likelihood == "gaussian":  # one learned variance of all pixels (arXiv:2006.13202)
            self.log_variance = nn.Parameter(torch.zeros(()))

    def features(self, condition: Condition, batch: int) -> Features:
        """The condition of `batch` pictures as numbers.

        Raises:
            ValueError: the condition is not of the model's kind, or not of this many pictures.
        """
        config, weight = self.config, next(self.parameters())
        if config.condition != "image" or condition is None:
            kind, size = config.condition, config.condition_size
            return condition_vector(kind, size, condition, batch, weight)
        if len(condition) != batch:
            raise ValueError(f"{len(condition)} conditions were given for {batch} pictures")
        view: Tensor = self.view(condition, weight.new_zeros(batch, 0))
        return view

    def posterior(self, image: Images, features: Features) -> Gaussian:
        """q(z | picture, condition), in float32 also under autocast."""
        if not self.config.latent:
            return _standard_normal(features, 0)
        return _gaussian(self.encoder(image, features))

    def prior(self, features: Features) -> Gaussian:
        """p(z | condition): the standard normal unless it is learned."""
        if not self.config.learned_prior:
            return _standard_normal(features, self.config.latent)
        return _gaussian(self.prior_network(features))

    def log_likelihood(
        self, image: Images, condition: Condition, z: Codes, features: Features
    ) -> Float[Tensor, " B"]:
        """log p(picture | z, condition) in nats, over the pixels that the condition does not show.

        Bernoulli: the grey value in [0, 1] counts as a probability, so this is minus a
        cross-entropy.
        """
        output = self.decoder(z, features).float()
        image = image.float()
        if self.config.likelihood == "bernoulli":
            target = (image + 1) / 2
            logs = -F.binary_cross_entropy_with_logits(output, target, reduction="none")
        else:
            log_variance = self.log_variance.float()
            squares = (image - output).square() * (-log_variance).exp()
            logs = -0.5 * (squares + log_variance + math.log(2 * math.pi))
        if self.config.condition == "image":
            assert condition is not None
            logs = logs * (1 - condition[:, -1:].float())
        return logs.flatten(1).sum(1)

    def decode(self, z: Codes, condition: Condition, features: Features) -> Images:
        """The mean picture at z, in [-1, 1]; pixels that the condition shows stay as they are."""
        output = self.decoder(z, features).float()
        bernoulli = self.config.likelihood == "bernoulli"
        # 2 sigmoid(x) - 1 is tanh(x / 2)
        image = torch.tanh(output / 2) if bernoulli else output.clamp(-1, 1)
        if self.config.condition == "image":
            assert condition is not None
            visible, mask = condition[:, :-1].float(), condition[:, -1:].float()
            image = mask * visible + (1 - mask) * image
        return image


def _gaussian(vector: Float[Tensor, "B _"]) -> Gaussian:
    mean, log_variance = vector.float().chunk(2, 1)
    return Gaussian(mean, log_variance)


def _standard_normal(features: Features, latent: int) -> Gaussian:
    zeros = features.new_zeros(len(features), latent, dtype=torch.float32)
    return Gaussian(zeros, zeros)


def objective(
    model: Cvae,
    image: Images,
    condition: Condition,
    *,
    beta: float | Tensor = 1.0,
    free_bits: float = 0.0,
    noise: Codes | None = None,
) -> Loss:
    """The negative evidence lower bound in nats, summed over the batch.

    `beta` weighs the KL term (beta-VAE; raised from 0 it is a KL warm-up). `free_bits` nats of each
    number of z, averaged over the batch, are not penalised (arXiv:1606.04934, section 4.2); the sum
    then depends on how a batch is split. `noise` is standard normal; None draws it from torch's
    generator. Terms, in nats per picture and without beta and free bits: `elbo`, which is
    -(reconstruction + kl), `reconstruction`, `kl`.
    """
    features = model.features(condition, len(image))
    q, p = model.posterior(image, features), model.prior(features)
    z = q.at(torch.randn_like(q.mean) if noise is None else noise)
    reconstruction = -model.log_likelihood(image, condition, z, features).sum()
    each = kl_divergence(q, p).sum(0)  # (Z,)
    penalised = each.clamp_min(free_bits * len(image)) if free_bits else each
    count, kl = len(image), each.sum()
    return Loss(
        reconstruction + beta * penalised.sum(),
        count,
        {
            "elbo": -(reconstruction + kl).detach() / count,
            "reconstruction": reconstruction.detach() / count,
            "kl": kl.detach() / count,
        },
    )


@torch.no_grad()
def importance_weighted_nll(
    model: Cvae,
    image: Images,
    condition: Condition,
    samples: int,
    *,
    chunk: int = 50,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " B"]:
    """An upper bound on -log p(picture | condition) in nats that tightens as `samples` grow.

    -log of the mean of p(x, z_k) / q(z_k | x) over K samples z_k of q (arXiv:1509.00519, equation
    8); K = 1 is the negative evidence lower bound. `chunk` samples of every picture are decoded at
    a time.
    """
    if samples < 1 or chunk < 1:
        raise ValueError(f"samples and chunk must be at least 1, not {samples} and {chunk}")
    features = model.features(condition, len(image))
    q, p = model.posterior(image, features), model.prior(features)
    if not model.config.latent:
        return -model.log_likelihood(image, condition, q.mean, features)
    total = image.new_full((len(image),), -torch.inf, dtype=torch.float32)
    for start in range(0, samples, chunk):
        k = min(chunk, samples - start)
        # one draw per sample, so that the chunk size does not change the estimate
        noise = torch.stack([_normal_like(q.mean, generator) for _ in range(k)])
        z = q.at(noise)  # (k, B, Z)
        likelihood = model.log_likelihood(
            image.repeat(k, 1, 1, 1),
            None if condition is None else condition.repeat(k, *[1] * (condition.ndim - 1)),
            z.flatten(0, 1),
            features.repeat(k, 1),
        ).unflatten(0, (k, -1))
        weights = likelihood + p.log_density(z) - q.log_density(z)  # (k, B)
        total = torch.logaddexp(total, weights.logsumexp(0))
    return math.log(samples) - total


def _normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


@torch.no_grad()
def sample(model: Cvae, condition: Condition, noise: Codes) -> Images:
    """Pictures of these conditions, in [-1, 1]; the noise is standard normal, one row a picture."""
    features = model.features(condition, len(noise))
    return model.decode(model.prior(features).at(noise), condition, features)


@torch.no_grad()
def reconstruct(model: Cvae, image: Images, condition: Condition) -> Images:
    """Pictures encoded to the posterior's mean and decoded."""
    features = model.features(condition, len(image))
    q = model.posterior(image, features)
    return model.decode(q.mean, condition, features)


@torch.no_grad()
def swap(model: Cvae, image: Images, source: Condition, target: Condition) -> Images:
    """The same style under another condition: encode with `source`, decode with `target`."""
    q = model.posterior(image, model.features(source, len(image)))
    return model.decode(q.mean, target, model.features(target, len(image)))


@torch.no_grad()
def interpolate(
    model: Cvae, first: Images, second: Images, condition: Condition, steps: int
) -> Float[Tensor, "S B C H W"]:
    """Pictures at one condition along the line between two pictures' codes, ends included."""
    features = model.features(condition, len(first))
    start, end = (model.posterior(image, features).mean for image in (first, second))
    shares = torch.linspace(0, 1, steps, device=start.device).tolist()
    return torch.stack(
        [model.decode(start.lerp(end, share), condition, features) for share in shares]
    )


@torch.no_grad()
def shared_z(
    model: Cvae, conditions: Tensor, noise: Float[Tensor, "R Z"]
) -> Float[Tensor, "R N C H W"]:
    """A grid with one z per row and one of N conditions per column: style against class."""
    rows, columns = len(noise), len(conditions)
    repeated = conditions.repeat(rows, *[1] * (conditions.ndim - 1))
    pictures: Tensor = sample(model, repeated, noise.repeat_interleave(columns, 0))
    grid: Tensor = pictures.unflatten(0, (rows, columns))
    return grid


def manifold(side: int) -> Float[Tensor, "_ 2"]:
    """A square grid of two-dimensional z at equal steps of probability, row by row from the top.

    The normal quantile function of the centres of `side` equal parts of [0, 1] (arXiv:1312.6114,
    figure 4).
    """
    if side < 1:
        raise ValueError(f"the grid's side must be at least 1, not {side}")
    steps = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side).float()
    return torch.stack(torch.meshgrid(-steps, steps, indexing="ij"), -1).flatten(0, 1).flip(1)


KINDS = {"cvae": ModelKind(CvaeConfig, Cvae)}

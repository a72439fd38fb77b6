"""What diffusion models minimise: matching losses, their weights, the learned variance's loss.

Dimensions: B pictures, C channels, H height, W width.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.special import ndtr

from triptych.diffusion.denoiser import Parameterisation, Predicts, parameterisation
from triptych.diffusion.schedule import Discrete, Levels, Schedule
from triptych.nn.loss import Loss

LEAST_SIGMA = 0.05
Predict = Callable[[Tensor, Tensor], Tensor]
"""(the network's scaled input, time (B,)) to its prediction."""


def training_levels(schedule: Schedule, count: int, device: torch.device | str = "cpu") -> Levels:
    """One level for each picture of a batch, from the schedule's training distribution.

    Stratified: one uniform number shifts an even grid (arXiv:2107.00630, appendix I.1), which
    reduces the variance of the loss.
    """
    grid = torch.arange(count, device=device) / count
    return schedule.draw((grid + torch.rand((), device=device)) % 1)


def add_noise(
    x0: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."], levels: Levels
) -> Float[Tensor, "B ..."]:
    """alpha x0 + sigma noise, each picture at its level."""
    alpha, sigma = _broadcast(levels, x0)
    return alpha * x0 + sigma * noise


def matching(
    predict: Predict,
    kind: Parameterisation,
    x0: Float[Tensor, "B ..."],
    noise: Float[Tensor, "B ..."],
    levels: Levels,
    *,
    min_snr: float | None = None,
    loss_space: Parameterisation | None = None,
) -> Loss:
    """Squared distance between the network's prediction and its target, averaged over the picture.

    `min_snr` is the gamma of arXiv:2303.09556: the error of x0 is weighted by min(SNR, gamma) for
    every prediction type. `loss_space` is the prediction type in which the error is measured, if
    not the network's own: a network that predicts x0 may learn from the loss of the flow. Terms:
    `mse`, in that space.

    Raises:
        ValueError: min_snr and loss_space are given, each of which is a weight.
    """
    if min_snr is not None and loss_space is not None:
        raise ValueError("min_snr and loss_space both weight the loss: give one of them")
    alpha, sigma = _broadcast(levels, x0)
    x = alpha * x0 + sigma * noise
    output = predict(x * kind.scale(alpha, sigma), levels.time).to(x0.dtype)
    target = kind.target(x0, noise, alpha, sigma)
    errors = (output - target).square().flatten(1).mean(1)  # (B,)
    if loss_space is not None:
        errors = errors * loss_space_weight(levels, kind, loss_space)
    total = (errors if min_snr is None else errors * snr_weight(levels, kind, min_snr)).sum()
    return Loss(total, len(x0), {"mse": errors.detach().mean()})


def snr_weight(levels: Levels, kind: Parameterisation, gamma: float) -> Float[Tensor, " B"]:
    """The weight of the output's squared error that weights x0's by min(SNR, gamma).

    An error e of x0 is an error |d output / d x0| e of the output, so the weight is divided by that
    slope squared. Noise: min(SNR, gamma) / SNR; velocity: / (SNR + 1) (section 3.4).
    """
    slope = kind.output(0.0, 1.0, levels.alpha, levels.sigma)
    snr = (levels.alpha / levels.sigma).square()
    weight: Tensor = snr.clamp(max=gamma) / (slope**2 + torch.finfo(levels.alpha.dtype).tiny)
    return weight


def loss_space_weight(
    levels: Levels, kind: Parameterisation, loss_space: Parameterisation
) -> Float[Tensor, " B"]:
    """The factor from squared errors of the network's output to those of another prediction type.

    Both are linear in x0, so it is the squared ratio of their slopes in x0. For flow over x0 that
    is unbounded as sigma goes to 0: sigma is at least `LEAST_SIGMA` here (arXiv:2511.13720).
    """
    sigma = levels.sigma.clamp(min=LEAST_SIGMA)
    slopes = [k.output(0.0, 1.0, levels.alpha, sigma) for k in (loss_space, kind)]
    ratio: Tensor = (slopes[0] / slopes[1]) ** 2
    return ratio * torch.ones_like(levels.alpha)


def offset_noise(noise: Float[Tensor, "B C H W"], amount: float) -> Float[Tensor, "B C H W"]:
    """Noise plus a random constant per picture and channel, so that brightness is learned.

    N. Guttenberg, "Diffusion with offset noise", 2023. An amount of 0 makes no random draw.
    """
    if amount == 0:
        return noise
    shape = (*noise.shape[:2], *[1] * (noise.ndim - 2))
    return noise + amount * torch.randn(shape, device=noise.device, dtype=noise.dtype)


def gaussian_divergence(
    mean: Float[Tensor, "B ..."],
    log_variance: Float[Tensor, "B ..."],
    other_mean: Float[Tensor, "B ..."],
    other_log_variance: Float[Tensor, "B ..."],
) -> Float[Tensor, " B"]:
    """KL divergence of two diagonal Gaussians, in nats per dimension."""
    ratio = log_variance - other_log_variance
    distance = (mean - other_mean).square() * (-other_log_variance).exp()
    return ((ratio.exp() - 1 - ratio + distance) / 2).flatten(1).mean(1)


def discretised_likelihood(
    x0: Float[Tensor, "B ..."], mean: Float[Tensor, "B ..."], log_variance: Float[Tensor, "B ..."]
) -> Float[Tensor, " B"]:
    """-log p(x0) in nats per dimension, for bytes in [-1, 1] and a Gaussian cut into 256 bins.

    The last term of the bound (arXiv:2006.11239, equation 13); the outer bins extend to infinity.
    """
    width, scale = 1 / 255, (-log_variance / 2).exp()
    above = torch.where(x0 > 0.999, 1.0, ndtr((x0 - mean + width) * scale))
    below = torch.where(x0 < -0.999, 0.0, ndtr((x0 - mean - width) * scale))
    return -(above - below).clamp(min=1e-12).log().flatten(1).mean(1)


def learned_variance_loss(
    predict: Predict,
    schedule: Discrete,
    x0: Float[Tensor, "B C H W"],
    noise: Float[Tensor, "B C H W"],
    time: Int[Tensor, " B"],
    *,
    predicts: Predicts = "noise",
    noisiest: float = 1.0,
    bound_weight: float = 0.001,
) -> Loss:
    """The hybrid loss of a network whose output is a prediction of this type and v
    (arXiv:2102.09672, equation 16).

    The prediction has the simple loss. v has the variational bound, KL(q(x' | x, x0) || p(x' | x))
    with x' one timestep earlier, and at time 0 the likelihood of the bytes, without a gradient to
    the prediction. Terms: `mse`, `bound` (nats per dimension).

    The squared error is weighted by alpha^2 + `noisiest` sigma^2; of velocity this weights x0's by
    SNR + `noisiest`. The term `mse` is without weights.
    """
    table = schedule.signal.to(x0.device)
    before = torch.cat([table.new_ones(1), table[:-1]])
    added = 1 - table / before  # beta
    posterior = added * (1 - before) / (1 - table)
    posterior[0] = posterior[1]  # 0 has no logarithm: clipped as in the paper's code
    shape = (-1, *[1] * (x0.ndim - 1))
    now, then, beta, lower = (
        column[time].view(shape).to(x0.dtype) for column in (table, before, added, posterior)
    )
    alpha, sigma, kind = now.sqrt(), (1 - now).sqrt(), parameterisation(predicts, schedule)
    x = alpha * x0 + sigma * noise
    output, v = predict(x, time.to(x0.dtype)).to(x0.dtype).chunk(2, dim=1)
    errors = (output - kind.target(x0, noise, alpha, sigma)).square().flatten(1).mean(1)
    guess = kind.x0(x, output.detach(), alpha, sigma)
    log_variance = lower.log().lerp(beta.log(), (v + 1) / 2)

    def mean(clean: Tensor) -> Tensor:
        """Of q(x' | x, x0) (arXiv:2006.11239, equation 7)."""
        kept = (now / then).sqrt() * (1 - then) / (1 - now)
        return then.sqrt() * beta / (1 - now) * clean + kept * x

    true = lower.log().expand_as(log_variance)
    divergence = gaussian_divergence(mean(x0), true, mean(guess), log_variance)
    likelihood = discretised_likelihood(x0, mean(guess), log_variance)
    bound = torch.where(time > 0, divergence, likelihood)
    weights = (now + noisiest * (1 - now)).flatten()
    total = (weights * errors + bound_weight * bound).sum()
    terms = {"mse": errors.detach().mean(), "bound": bound.detach().mean()}
    return Loss(total, len(x0), terms)


def _broadcast(levels: Levels, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (-1, *[1] * (like.ndim - 1))
    return levels.alpha.view(shape), levels.sigma.view(shape)

"""What diffusion models minimise: matching losses, their weights, the learned variance's loss.

Dimensions: B pictures, C channels, H height, W width.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.special import ndtr

from triptych.diffusion.denoiser import Parameterisation
from triptych.diffusion.schedule import Discrete, Levels, Schedule
from triptych.nn.loss import Loss

LEAST_SIGMA = 0.05
Predict = Callable[[Tensor, Tensor], Tensor]
"""(x as the network takes it, time (B,)) to its prediction."""


def training_levels(schedule: Schedule, count: int, device: torch.device | str = "cpu") -> Levels:
    """One level for each picture of a batch, spread evenly over the schedule's training times.

    Each is distributed as the schedule says; together they leave no gap: one uniform number shifts
    a comb (arXiv:2107.00630, appendix I.1), which takes variance out of the loss.
    """
    comb = torch.arange(count, device=device) / count
    return schedule.drawn((comb + torch.rand((), device=device)) % 1)


def noised(
    x0: Float[Tensor, "B ..."], noise: Float[Tensor, "B ..."], levels: Levels
) -> Float[Tensor, "B ..."]:
    """alpha x0 + sigma noise, each picture at its level."""
    alpha, sigma = _broad(levels, x0)
    return alpha * x0 + sigma * noise


def matching(
    predict: Predict,
    kind: Parameterisation,
    x0: Float[Tensor, "B C H W"],
    noise: Float[Tensor, "B C H W"],
    levels: Levels,
    *,
    min_snr: float | None = None,
    measured: Parameterisation | None = None,
) -> Loss:
    """Squared distance between the network's prediction and its target, averaged over the picture.

    `min_snr` is the gamma of arXiv:2303.09556: the loss of x0 weighs min(SNR, gamma), whatever is
    predicted. `measured` is another quantity than the one predicted, whose error is squared in its
    place: a network that predicts x0 may learn from the loss of the flow. Terms: `mse`, of that
    quantity.

    Raises:
        ValueError: both are given; each is a weight of its own.
    """
    if min_snr is not None and measured is not None:
        raise ValueError("min_snr and measured are two weights of the same errors: give one")
    alpha, sigma = _broad(levels, x0)
    x = alpha * x0 + sigma * noise
    output = predict(x * kind.scale(alpha, sigma), levels.time).to(x0.dtype)
    target = kind.target(x0, noise, alpha, sigma)
    errors = (output - target).square().flatten(1).mean(1)  # (B,)
    if measured is not None:
        errors = errors * measured_weight(levels, kind, measured)
    total = (errors if min_snr is None else errors * snr_weight(levels, kind, min_snr)).sum()
    return Loss(total, len(x0), {"mse": errors.detach().mean()})


def snr_weight(levels: Levels, kind: Parameterisation, gamma: float) -> Float[Tensor, " B"]:
    """The weight of the loss in the network's own prediction that makes min(SNR, gamma) in x0.

    An error e of x0 is an error |d output / d x0| e of the output: the weight is divided by the
    square of that slope. Noise: min(SNR, gamma) / SNR; velocity: / (SNR + 1) (section 3.4).
    """
    slope = kind.output(0.0, 1.0, levels.alpha, levels.sigma)
    snr = (levels.alpha / levels.sigma).square()
    weight: Tensor = snr.clamp(max=gamma) / (slope**2 + torch.finfo(levels.alpha.dtype).tiny)
    return weight


def measured_weight(
    levels: Levels, kind: Parameterisation, measured: Parameterisation
) -> Float[Tensor, " B"]:
    """What turns squared errors of the network's prediction into those of another quantity.

    Both are linear in x0: it is the square of the ratio of their slopes. Near the picture the ratio
    of a flow to x0 has no bound; there the least noise counts as `LEAST_SIGMA`
    (arXiv:2511.13720).
    """
    sigma = levels.sigma.clamp(min=LEAST_SIGMA)
    slopes = [k.output(0.0, 1.0, levels.alpha, sigma) for k in (measured, kind)]
    ratio: Tensor = (slopes[0] / slopes[1]) ** 2
    return ratio * torch.ones_like(levels.alpha)


def offset_noise(noise: Float[Tensor, "B C H W"], amount: float) -> Float[Tensor, "B C H W"]:
    """Noise with a shift of its own for each picture and channel, so that brightness is learned.

    (N. Guttenberg, "Diffusion with offset noise", 2023.) 0 draws nothing.
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
    """KL between two Gaussians with independent dimensions, in nats a dimension."""
    ratio = log_variance - other_log_variance
    distance = (mean - other_mean).square() * (-other_log_variance).exp()
    return ((ratio.exp() - 1 - ratio + distance) / 2).flatten(1).mean(1)


def discretised_likelihood(
    x0: Float[Tensor, "B ..."], mean: Float[Tensor, "B ..."], log_variance: Float[Tensor, "B ..."]
) -> Float[Tensor, " B"]:
    """-log p(x0) in nats a dimension of bytes in [-1, 1] under a Gaussian cut into 256 bins.

    The last term of the bound (arXiv:2006.11239, equation 13); the outer bins reach to infinity.
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
    bound_weight: float = 0.001,
) -> Loss:
    """The hybrid loss of a network whose output is noise and v (arXiv:2102.09672, equation 16).

    The noise learns from the simple loss. v learns from the bound, KL(q(x' | x, x0) || p(x' | x))
    with x' one training time earlier, at time 0 the likelihood of the bytes; its gradient to the
    noise is stopped. Terms: `mse`, `bound` (nats a dimension).
    """
    table = schedule.signal.to(x0.device)
    before = torch.cat([table.new_ones(1), table[:-1]])
    added = 1 - table / before  # beta
    posterior = added * (1 - before) / (1 - table)
    posterior[0] = posterior[1]  # 0, which has no logarithm: clipped as in the paper's code
    shape = (-1, *[1] * (x0.ndim - 1))
    now, then, beta, lower = (
        column[time].view(shape).to(x0.dtype) for column in (table, before, added, posterior)
    )
    x = now.sqrt() * x0 + (1 - now).sqrt() * noise
    output, v = predict(x, time.to(x0.dtype)).to(x0.dtype).chunk(2, dim=1)
    errors = (output - noise).square().flatten(1).mean(1)
    guess = (x - (1 - now).sqrt() * output.detach()) / now.sqrt()
    log_variance = lower.log().lerp(beta.log(), (v + 1) / 2)

    def mean(clean: Tensor) -> Tensor:
        """Of q(x' | x, x0) (arXiv:2006.11239, equation 7)."""
        kept = (now / then).sqrt() * (1 - then) / (1 - now)
        return then.sqrt() * beta / (1 - now) * clean + kept * x

    true = lower.log().expand_as(log_variance)
    divergence = gaussian_divergence(mean(x0), true, mean(guess), log_variance)
    likelihood = discretised_likelihood(x0, mean(guess), log_variance)
    bound = torch.where(time > 0, divergence, likelihood)
    total = (errors + bound_weight * bound).sum()
    terms = {"mse": errors.detach().mean(), "bound": bound.detach().mean()}
    return Loss(total, len(x0), terms)


def _broad(levels: Levels, like: Tensor) -> tuple[Tensor, Tensor]:
    shape = (-1, *[1] * (like.ndim - 1))
    return levels.alpha.view(shape), levels.sigma.view(shape)

"""Losses against their definitions, exact likelihoods, and torch's own distributions."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from triptych.diffusion.denoiser import PARAMETERISATIONS
from triptych.diffusion.objective import (
    add_noise,
    discretised_likelihood,
    gaussian_divergence,
    learned_variance_loss,
    loss_space_weight,
    matching,
    offset_noise,
    snr_weight,
    training_levels,
)
from triptych.diffusion.schedule import Discrete, Edm, Flow, Levels, betas

SD = Discrete(tuple(betas("linear")))
SHAPE = (8, 3, 3, 2)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(SHAPE, generator=generator, dtype=torch.float64) * 2 - 1
    return x0, torch.randn(SHAPE, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [("noise", SD), ("velocity", SD), ("sample", SD), ("flow", Flow()), ("edm", Edm())],
)
def test_a_perfect_network_has_no_loss_and_an_error_its_square(name, schedule) -> None:
    kind = PARAMETERISATIONS[name]
    x0, noise = data()
    torch.manual_seed(0)
    levels = training_levels(schedule, len(x0))
    levels = Levels(*(column.double() for column in levels))
    alpha, sigma = (column.view(-1, 1, 1, 1) for column in levels[:2])
    seen = []

    def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        seen.append((x, time))
        return kind.target(x0, noise, alpha, sigma) + 0.5

    loss = matching(network, kind, x0, noise, levels)
    assert float(loss.total) == pytest.approx(0.25 * len(x0))
    assert loss.count == len(x0) and float(loss.terms["mse"]) == pytest.approx(0.25)
    x, time = seen[0]
    assert torch.equal(time, levels.time)
    assert torch.allclose(x, add_noise(x0, noise, levels) * kind.scale(alpha, sigma))


def test_min_snr_weights_are_the_published_ones() -> None:
    """arXiv:2303.09556, section 3.4: x0: min(SNR, g); noise: / SNR; velocity: / (SNR + 1)."""
    levels = SD.draw((torch.arange(20) + 0.5) / 20)
    snr = (levels.alpha / levels.sigma) ** 2
    for name, divisor in (("sample", 1.0), ("noise", snr), ("velocity", snr + 1)):
        weight = snr_weight(levels, PARAMETERISATIONS[name], 5.0)
        assert torch.allclose(weight, snr.clamp(max=5.0) / divisor, rtol=1e-4)


def test_min_snr_makes_all_predictions_one_loss() -> None:
    """The same wrong x0 costs the same whatever the network calls it."""
    x0, noise = data()
    levels = Levels(*(column.double() for column in SD.draw((torch.arange(8) + 0.5) / 8)))
    alpha, sigma = (column.view(-1, 1, 1, 1) for column in levels[:2])
    x = add_noise(x0, noise, levels)
    totals = []
    for name in ("sample", "noise", "velocity"):
        kind = PARAMETERISATIONS[name]
        wrong = kind.output(x, x0 + 0.1, alpha, sigma)
        loss = matching(lambda *_, w=wrong: w, kind, x0, noise, levels, min_snr=5.0)
        totals.append(float(loss.total))
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-6)


@pytest.mark.parametrize(
    ("network", "space", "factor"),
    [
        ("sample", "noise", lambda alpha, sigma: (alpha / sigma) ** 2),
        ("noise", "sample", lambda alpha, sigma: (sigma / alpha) ** 2),
        ("sample", "velocity", lambda alpha, sigma: ((alpha**2 + sigma**2) / sigma) ** 2),
        ("velocity", "noise", lambda alpha, sigma: (alpha / (alpha**2 + sigma**2)) ** 2),
        ("sample", "flow", lambda alpha, sigma: ((alpha + sigma) / sigma) ** 2),
        ("flow", "flow", lambda alpha, sigma: 1.0),
    ],
)
def test_the_weight_of_a_loss_space_in_closed_form(network, space, factor) -> None:
    """How much further apart two predictions are in one space than in the other; below the least
    sigma of arXiv:2511.13720 as at it.
    """
    kinds = PARAMETERISATIONS[network], PARAMETERISATIONS[space]
    for sigma in (0.01, 0.04, 0.05, 0.06, 0.3, 0.9):
        alpha = (1 - sigma**2) ** 0.5
        at = Levels(*torch.tensor([[alpha], [sigma], [0.0]], dtype=torch.float64))
        weight = loss_space_weight(at, *kinds)
        assert weight.tolist() == pytest.approx([factor(alpha, max(sigma, 0.05))])


def test_a_loss_space_weighs_the_error_of_the_network() -> None:
    x0, noise = data()
    levels = Levels(*(column.double() for column in SD.draw((torch.arange(8) + 0.5) / 8)))
    sample, flow = PARAMETERISATIONS["sample"], PARAMETERISATIONS["flow"]
    loss = matching(lambda *_: x0 + 0.1, sample, x0, noise, levels, loss_space=flow)
    weights = loss_space_weight(levels, sample, flow)
    assert float(loss.total) == pytest.approx(float(0.01 * weights.sum()))
    assert float(loss.terms["mse"]) == pytest.approx(float(0.01 * weights.mean()))
    with pytest.raises(ValueError, match="give one of them"):
        matching(lambda *_: x0, sample, x0, noise, levels, min_snr=5.0, loss_space=flow)


def test_training_levels_leave_no_gap() -> None:
    torch.manual_seed(0)
    times = training_levels(SD, 50).time.sort().values
    assert times.diff().max() <= 21  # of 1,000 times, a comb of 50
    counts = torch.zeros(10)
    for _ in range(200):  # over many batches every time is as likely
        counts += (
            training_levels(SD, 5)
            .time.long()
            .div(100, rounding_mode="floor")
            .bincount(minlength=10)
        )
    assert counts.min() > 70 and counts.max() < 130


def test_offset_noise_shifts_whole_channels() -> None:
    torch.manual_seed(0)
    noise = torch.randn(2000, 3, 4, 4)
    shifted = offset_noise(noise, 0.5) - noise
    assert shifted.flatten(2).std(2).max() < 1e-6
    assert shifted.mean((2, 3)).std() == pytest.approx(0.5, rel=0.05)
    assert offset_noise(noise, 0.0) is noise


def test_divergence_is_that_of_two_normals() -> None:
    a, b = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    u, v = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    exact = kl_divergence(Normal(a, (u / 2).exp()), Normal(b, (v / 2).exp())).mean(1)
    assert torch.allclose(gaussian_divergence(a, u, b, v), exact)


def test_the_likelihoods_of_all_bytes_sum_to_one() -> None:
    every = (torch.arange(256, dtype=torch.float64) / 127.5 - 1)[:, None]
    for mean, log_variance in ((0.1, -3.0), (-0.98, -1.0), (0.9, -6.0)):
        of = torch.full_like(every, mean), torch.full_like(every, log_variance)
        assert float((-discretised_likelihood(every, *of)).exp().sum()) == pytest.approx(
            1, abs=1e-8
        )


def test_the_learned_variance_loss_is_its_parts() -> None:
    """Against the reference's posterior and torch's divergence, at time 0 and above."""
    x0, noise = data()
    time = torch.tensor([0, 1, 2, 50, 400, 700, 998, 999])
    v = torch.linspace(-0.8, 0.8, 8, dtype=torch.float64).view(-1, 1, 1, 1).expand(SHAPE)
    guess = noise + 0.1

    def network(x: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
        assert torch.equal(told, time.double())
        return torch.cat([guess, v], 1)

    loss = learned_variance_loss(network, SD, x0, noise, time, bound_weight=1.0)
    bar = SD.signal
    bar_before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    bounds = []
    for i, t in enumerate(time.tolist()):
        beta = 1 - bar[t] / bar_before[t]
        posterior = (
            (1 - bar_before[max(t, 1)])
            / (1 - bar[max(t, 1)])
            * (1 - bar[max(t, 1)] / bar_before[max(t, 1)])
        )
        share = (v[i] + 1) / 2
        log_variance = share * beta.log() + (1 - share) * posterior.log()
        x = bar[t].sqrt() * x0[i] + (1 - bar[t]).sqrt() * noise[i]

        def mean(clean: torch.Tensor, x=x, t=t, beta=beta) -> torch.Tensor:
            a = bar_before[t].sqrt() * beta / (1 - bar[t])
            b = (1 - beta).sqrt() * (1 - bar_before[t]) / (1 - bar[t])
            return a * clean + b * x

        x0_guess = (x - (1 - bar[t]).sqrt() * guess[i]) / bar[t].sqrt()
        if t == 0:
            bounds.append(
                discretised_likelihood(x0[i][None], x0_guess[None], log_variance[None])[0]
            )
        else:
            ours = Normal(mean(x0_guess), (log_variance / 2).exp())
            bounds.append(kl_divergence(Normal(mean(x0[i]), posterior.sqrt()), ours).mean())
    assert float(loss.terms["bound"]) == pytest.approx(float(torch.stack(bounds).mean()), rel=1e-6)
    assert float(loss.total) == pytest.approx(8 * (0.01 + float(loss.terms["bound"])), rel=1e-6)


def test_velocity_has_the_bound_of_the_noise_it_implies() -> None:
    """The same x0, so the same bound; x0 that is off by d is a velocity off by d / sigma."""
    x0, noise = data()
    time = torch.tensor([1, 2, 50, 200, 400, 700, 900, 999])
    alpha, sigma = (
        s.view(-1, 1, 1, 1) for s in (SD.signal[time].sqrt(), (1 - SD.signal[time]).sqrt())
    )
    v, off = torch.zeros(SHAPE, dtype=torch.float64), 0.1
    outputs = {
        "noise": noise - off * alpha / sigma,
        "velocity": alpha * noise - sigma * x0 - off / sigma,
    }
    losses = {
        kind: learned_variance_loss(
            lambda x, time, output=output: torch.cat([output, v], 1),
            SD,
            x0,
            noise,
            time,
            predicts=kind,
        )
        for kind, output in outputs.items()
    }
    bounds = [float(loss.terms["bound"]) for loss in losses.values()]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-9)
    errors = float((off / sigma).square().mean())
    assert float(losses["velocity"].terms["mse"]) == pytest.approx(errors, rel=1e-9)
    weighted = learned_variance_loss(
        lambda x, time: torch.cat([outputs["velocity"], v], 1), SD, x0, noise, time,
        predicts="velocity", noisiest=0.3, bound_weight=0,
    )  # fmt: skip
    snr = (alpha / sigma) ** 2
    assert float(weighted.total) == pytest.approx(float((off**2 * (snr + 0.3)).sum()), rel=1e-9)
    assert weighted.terms["mse"] == losses["velocity"].terms["mse"]


def test_the_bound_teaches_only_the_variance() -> None:
    x0, noise = data()
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    v = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)

    def network(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return torch.cat([weight * x, v], 1)

    gradients = []
    for bound_weight in (0.0, 1.0):
        loss = learned_variance_loss(
            network, SD, x0, noise, torch.arange(8) * 100, bound_weight=bound_weight
        )
        gradients.append(torch.autograd.grad(loss.total, [weight, v], retain_graph=True))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert gradients[0][1].abs().max() == 0 < gradients[1][1].abs().max()

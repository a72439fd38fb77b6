"""Samplers by their names: which draw noise, how much, and from where."""

import pytest
import torch

from tests.diffusion.exact import even, gaussian
from triptych.diffusion.names import SAMPLERS
from triptych.diffusion.noise import BrownianNoise, PictureNoise
from triptych.diffusion.samplers import stochastic
from triptych.diffusion.sampling import (
    check_draws_batches,
    limited,
    run_sampler,
    track_progress,
)

LEVELS = even(12)
X = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
BY_STEP = [name for name in SAMPLERS if name not in ("restart", "tcd")]  # these need own levels


def run(name: str, seed: int = 7, **options) -> tuple[torch.Tensor, int]:
    """Where a sampler ends, and how many draws it took."""
    noise = PictureNoise([seed])
    *_, last = run_sampler(name, gaussian, X, LEVELS, noise, **options)
    return last.x, noise.streams[0].draws


@pytest.mark.parametrize("name", BY_STEP)
def test_noise_is_drawn_as_the_record_of_a_sampler_says(name: str) -> None:
    kind = SAMPLERS[name].noise
    (end, draws), (other, _) = run(name), run(name, seed=8)
    draws_noise = kind in ("scaled", "fixed")
    assert torch.equal(end, other) != draws_noise
    if name == "dpmpp_sde":
        assert draws == 0  # its path has generators of its own
    else:
        assert (draws > 0) == draws_noise


@pytest.mark.parametrize("name", BY_STEP)
def test_eta_is_how_much_noise_and_some_take_none(name: str) -> None:
    kind = SAMPLERS[name].noise
    if kind in ("none", "fixed"):
        with pytest.raises(ValueError, match="takes no eta"):
            run(name, eta=0.5)
    if kind == "fixed":
        with pytest.raises(ValueError, match="a fixed amount"):
            run(name, eta=0.0)
        return
    assert run(name, eta=0.0)[1] == 0
    if kind == "none":
        assert torch.equal(run(name, eta=0.0)[0], run(name)[0])
        return
    ends = [run(name, seed=seed, eta=eta)[0] for seed in (7, 8) for eta in (0.0, 0.5, 1.0)]
    assert torch.equal(ends[0], ends[3])
    assert not torch.equal(ends[1], ends[4]) and not torch.equal(ends[1], ends[2])
    usual = 0.0 if kind == "optional" else 1.0
    assert torch.equal(run(name)[0], run(name, eta=usual)[0])


def test_an_ancestral_sampler_is_called_by_three_names() -> None:
    expected = run("euler_ancestral", eta=0.7)[0]
    assert torch.equal(run("ddim", eta=0.7)[0], expected)
    assert torch.equal(run("ddpm", eta=0.7)[0], expected)
    assert torch.equal(run("ddim")[0], run("euler")[0])


def test_dpm_sde_goes_along_the_path_of_its_seed_to_the_first_finite_level() -> None:
    path = BrownianNoise([7], X, LEVELS[0].ratio)
    *_, expected = stochastic.dpmpp_sde(gaussian, X, LEVELS, path)
    assert torch.equal(run("dpmpp_sde")[0], expected.x)


def test_a_bound_holds_for_every_x0() -> None:
    seen = []

    def limit(x0: torch.Tensor) -> torch.Tensor:
        seen.append(x0)
        return x0.clamp(-0.1, 0.1)

    *_, last = run_sampler("dpmpp_2m", gaussian, X, LEVELS, PictureNoise([7]), limit=limit)
    assert len(seen) == 12 and float(last.x0.abs().max()) <= 0.1
    assert torch.equal(limited(gaussian, limit)(X, LEVELS[0]), limit(gaussian(X, LEVELS[0])))
    assert limited(gaussian, None) is gaussian


def test_a_sampler_that_adapts_to_the_picture_draws_no_grids() -> None:
    for name, record in SAMPLERS.items():
        if record.batched:
            check_draws_batches(name)
    assert [name for name, record in SAMPLERS.items() if not record.batched] == ["dpm_adaptive"]
    with pytest.raises(ValueError, match="dpm_adaptive draws one picture at a time"):
        check_draws_batches("dpm_adaptive")
    with pytest.raises(ValueError, match="no sampler 'eiler'"):
        run("eiler")


def test_every_step_is_an_equal_share_of_the_work() -> None:
    levels, x = even(4), torch.ones(1, 3)
    steps = run_sampler("euler", gaussian, x, levels, PictureNoise([0], x.device))
    shares = [share for share, _ in track_progress("euler", steps, levels)]
    assert shares == [0.25, 0.5, 0.75, 1.0]

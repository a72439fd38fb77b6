"""Our samplers and spacings against diffusers', step for step, on one denoiser and one noise.

The reference converts to float32 inside; to compare in float64 its modules get stand-ins of torch
and numpy whose float32 is float64. Known differences, each a choice here:

- DDIM, PNDM of the reference step to t - T // steps, whatever their next timestep is. Where the
  steps do not divide T evenly (linspace; trailing with 30 of 1000) they integrate over another
  stretch than they walk. Ours goes to the next level, so both are compared where the two agree.
- Karras, exponential and beta spacings of the Euler family start from the noise of their own
  spacing's first and last times; ours and DPM-Solver's from the model's. They agree on linspace.
- DPM-Solver and UniPC of the reference cut the times of exponential and beta spacings to whole
  numbers, towards zero, so the network is told of less noise than there is. Ours are not cut.
- PNDM of the reference combines the network's outputs of several x and then converts velocity to
  noise with the last x. The original PLMS, and ours, combine noise; only epsilon is the same.
- Heun of the reference for flows takes its slopes in t; ours, like k-diffusion's, in s.
- UniPC of the reference moves a start at pure flow noise by 1e-6 to keep a logarithm finite.
- SA-Solver and DEIS of the reference end spacings over sigma with a step of no length at the least
  sigma. Ours ends at the least sigma with a step that has one.
- IPNDM of the reference loses what the network says of the picture at pure noise, where it divides
  0 by 1e-8. Ours keeps it; the two agree where the network says nothing there.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.parity.scheduler_reference import (
    draws,
    network,
    reference,
    restored,  # noqa: F401  a fixture
    start,
    theirs,
)
from triptych.diffusion.denoiser import consistency, denoiser
from triptych.diffusion.samplers import deterministic, singlestep, stochastic
from triptych.diffusion.samplers.levels import downward_steps, sampler_levels
from triptych.diffusion.schedule import Discrete, Edm, Flow, betas, zero_terminal
from triptych.diffusion.spacing import Spacing, levels
from triptych.diffusion.steps import Level

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the reference's own

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTS = {"epsilon": "noise", "v_prediction": "velocity", "sample": "sample"}


def every(states: list[Tensor]) -> list[Tensor]:
    return states


def second(states: list[Tensor]) -> list[Tensor]:
    """Two calls a step, and one for the last."""
    return [*states[1::2], states[-1]]


def after_first(states: list[Tensor]) -> list[Tensor]:
    """PNDM's first step takes two calls."""
    return states[1:]


EULERISH: dict[str, Any] = {"whole_times": False}
SOLVER: dict[str, Any] = {"whole_times": True, "include_cleanest": False}
CASES: dict[str, tuple[Any, ...]] = {
    # ours, theirs, their settings, our spacing, scaled, which states
    "ddim": (deterministic.euler, "DDIMScheduler", {"clip_sample": False}, {}, False, every),
    "ddim eta": (stochastic.ancestral, "DDIMScheduler", {"clip_sample": False}, {}, False, every),
    "ddpm": (stochastic.ancestral, "DDPMScheduler", {"clip_sample": False}, {}, False, every),
    "euler": (deterministic.euler, "EulerDiscreteScheduler", {}, EULERISH, True, every),
    "euler a": (stochastic.ancestral, "EulerAncestralDiscreteScheduler", {}, EULERISH, True, every),
    "heun": (deterministic.heun, "HeunDiscreteScheduler", {}, EULERISH, True, second),
    "dpm2": (deterministic.dpm2, "KDPM2DiscreteScheduler", {}, EULERISH, True, second),
    "dpm2 a": (
        stochastic.dpm2_ancestral, "KDPM2AncestralDiscreteScheduler", {}, EULERISH, True, second,
    ),
    "lms": (deterministic.lms, "LMSDiscreteScheduler", {}, EULERISH, True, every),
    "pndm": (deterministic.plms, "PNDMScheduler", {"skip_prk_steps": True}, {}, False, after_first),
    "dpm++ 2m": (deterministic.dpmpp_2m, "DPMSolverMultistepScheduler", {}, SOLVER, False, every),
    "dpm++ 2m sde": (
        stochastic.dpmpp_2m_sde, "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"}, SOLVER, False, every,
    ),
    "dpm++ 2m sde heun": (
        stochastic.dpmpp_2m_sde_heun, "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}, SOLVER, False, every,
    ),
    "dpm++ 2s": (singlestep.dpmpp_2s, "DPMSolverSinglestepScheduler", {}, SOLVER, False, every),
    "dpm++ 3s": (
        singlestep.dpmpp_3s, "DPMSolverSinglestepScheduler", {"solver_order": 3}, SOLVER, False,
        every,
    ),
    "unipc": (deterministic.unipc, "UniPCMultistepScheduler", {}, SOLVER, False, every),
    "deis": (
        deterministic.deis, "DEISMultistepScheduler", {}, {**SOLVER, "end": "least"}, False, every,
    ),
    "sa-solver": (
        stochastic.sa_solver, "SASolverScheduler", {}, {**SOLVER, "end": "least"}, False, every,
    ),
    "dpm++ sde": (stochastic.dpmpp_sde, "DPMSolverSDEScheduler", {}, EULERISH, True, second),
}  # fmt: skip
LACKING = {(name, "sample") for name in ("euler a", "dpm2", "dpm2 a", "dpm++ sde")} | {
    ("pndm", "v_prediction"), ("pndm", "sample"), ("lms", "sample"),
}  # fmt: skip
ONE_SPACING = {"dpm++ 2s", "dpm++ 3s"}  # linspace, whatever they are told
EVENLY = {"ddim", "ddim eta", "pndm"}  # their steps are only consistent where steps divide T


def compare(
    name: str, steps: int, predicts: str, spacing: str, dtype: torch.dtype, monkeypatch, **more: Any
) -> float:
    """The largest difference over all steps."""
    ours, theirs_name, settings, ours_spacing, scaled, chosen = CASES[name]
    precise = dtype == torch.float64
    offset = 1 if spacing == "leading" else 0
    settings = settings | BETAS | {"prediction_type": predicts} | more
    if name not in ONE_SPACING:
        settings |= {"timestep_spacing": spacing, "steps_offset": offset}
    if name == "dpm++ sde":
        settings["noise_sampler_seed"] = 0
    scheduler = reference(theirs_name, monkeypatch, precise, **settings)
    noises = draws(dtype, 2 * steps)
    schedule = Discrete(tuple(betas("scaled_linear", 0.00085, 0.012)))
    if precise:
        _make_precise(scheduler, schedule)
    if name == "ddim eta":
        plain_step = scheduler.step
        scheduler.step = lambda *arguments, **more: plain_step(*arguments, eta=0.7, **more)
    mine = {"kind": spacing, "offset": offset} | ours_spacing
    if name in ("ddim", "ddim eta", "ddpm", "pndm"):
        mine["whole_times"] = True
    if name == "pndm":
        mine["end"] = "least"
    for flag, kind in (
        ("karras", "karras"),
        ("exponential", "exponential"),
        ("beta", "beta_sigma"),
    ):
        if more.get(f"use_{flag}_sigmas"):
            mine |= {"kind": kind, "include_cleanest": True}
            mine["whole_times"] = kind == "karras" and name in (
                "dpm2", "dpm2 a", "dpm++ 2m", "unipc", "dpm++ 2m sde", "dpm++ sde", "dpm++ 2s",
                "dpm++ 3s",
            )  # fmt: skip
    x = start(dtype)
    reached = chosen(theirs(scheduler, steps, noises, x, scaled))
    walked = levels(schedule, steps, Spacing(**mine))
    # a scaled reference starts from x / alpha
    first = x * float(scheduler.init_noise_sigma) * walked[0].alpha if scaled else x
    queue = iter(noises)
    denoise = denoiser(network, schedule, PREDICTS[predicts])
    arguments = [denoise, first, walked]
    if ours in vars(stochastic).values():
        arguments.append(lambda level, following: next(queue))
    if name == "ddim eta":
        arguments.append(0.7)
    mine_reached = [step.x for step in ours(*arguments)]
    assert len(reached) == len(mine_reached) == steps
    return max(float((a - b).abs().max()) for a, b in zip(mine_reached, reached, strict=True))


def _make_precise(scheduler: Any, schedule: Discrete) -> None:
    """Every table of the reference from betas in float64."""
    scheduler.betas = torch.tensor(schedule.betas, dtype=torch.float64)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    if hasattr(scheduler, "alpha_t"):
        scheduler.alpha_t = scheduler.alphas_cumprod.sqrt()
        scheduler.sigma_t = (1 - scheduler.alphas_cumprod).sqrt()
        scheduler.lambda_t = scheduler.alpha_t.log() - scheduler.sigma_t.log()
    if hasattr(scheduler, "final_alpha_cumprod"):
        whole = scheduler.config.get("set_alpha_to_one", True)
        scheduler.final_alpha_cumprod = (
            torch.tensor(1.0, dtype=torch.float64) if whole else scheduler.alphas_cumprod[0]
        )
        if type(scheduler).__name__ == "PNDMScheduler":
            scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]


COMBINATIONS = [
    (name, spacing, predicts)
    for name in CASES
    for spacing in ("leading", "trailing", "linspace")
    for predicts in PREDICTS
    if (name, predicts) not in LACKING
    and not (name in EVENLY and spacing == "linspace")
    and not (name in ONE_SPACING and spacing != "linspace")
]


@pytest.mark.parametrize(
    "steps", [5, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (20, 50))]
)
@pytest.mark.parametrize(("name", "spacing", "predicts"), COMBINATIONS)
def test_steps_equal_the_reference(name, steps, spacing, predicts, monkeypatch) -> None:
    assert compare(name, steps, predicts, spacing, torch.float64, monkeypatch) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_steps_equal_the_reference_as_it_ships(name, monkeypatch) -> None:
    """In float32, with the reference's own tables."""
    spacing = "linspace" if name in ONE_SPACING else "leading"
    assert compare(name, 20, "epsilon", spacing, torch.float32, monkeypatch) < 1e-4


SPACED_OVER_SIGMA = [
    (name, kind) for name in ("euler", "heun", "dpm2", "dpm2 a", "lms")
    for kind in ("karras", "exponential", "beta")
] + [
    (name, "karras") for name in ("dpm++ 2m", "dpm++ 2m sde", "dpm++ 2s", "dpm++ 3s", "unipc")
]  # fmt: skip


@pytest.mark.parametrize("steps", [5, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "kind"), SPACED_OVER_SIGMA)
def test_spacings_over_sigma_equal_the_reference(name, steps, kind, monkeypatch) -> None:
    flag = {f"use_{kind}_sigmas": True}
    error = compare(name, steps, "epsilon", "linspace", torch.float64, monkeypatch, **flag)
    assert error < 1e-6


def test_a_start_from_pure_noise_equals_the_reference(monkeypatch) -> None:
    """Zero terminal SNR; the reference caps its infinite ratio at 4096."""
    table = zero_terminal(betas("scaled_linear", 0.00085, 0.012))
    for name, ours, steps in (
        ("DDIM", deterministic.euler, 10),
        ("DPMSolverMultistep", deterministic.dpmpp_2m, 20),
    ):
        more = {"clip_sample": False} if name == "DDIM" else {}
        scheduler = reference(
            f"{name}Scheduler", monkeypatch, False, rescale_betas_zero_snr=True,
            timestep_spacing="trailing", prediction_type="v_prediction", **BETAS, **more,
        )  # fmt: skip
        walked = levels(Discrete(tuple(table)), steps, Spacing("trailing", whole_times=True))
        assert walked[0].alpha == 0
        x = start(torch.float32)
        reached = theirs(scheduler, steps, [], x, False)
        denoise = denoiser(network, Discrete(tuple(table)), "velocity")
        for step, state in zip(ours(denoise, x, walked), reached, strict=True):
            assert (step.x - state).abs().max() < 3e-3  # what the cap makes of the first step


@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine", "sigmoid"])
def test_betas_equal_the_reference(kind) -> None:
    from diffusers import DDPMScheduler

    theirs_name = {"cosine": "squaredcos_cap_v2"}.get(kind, kind)
    table = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=theirs_name).betas
    assert torch.allclose(torch.tensor(betas(kind, 0.00085, 0.012)), table, rtol=2e-6, atol=0)


def test_zero_terminal_betas_equal_the_reference() -> None:
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    table = torch.tensor(betas("linear", 1e-4, 0.02), dtype=torch.float64)
    ours = torch.tensor(zero_terminal(table.tolist()), dtype=torch.float64)
    assert torch.allclose(ours, rescale_zero_terminal_snr(table), atol=1e-12)
    assert ours[-1] == 1


@pytest.mark.parametrize("steps", [5, 18, 35])
@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("EDMEulerScheduler", deterministic.euler),
        ("EDMDPMSolverMultistepScheduler", deterministic.dpmpp_2m),
    ],
)
def test_edm_equals_the_reference(name, ours, steps, monkeypatch) -> None:
    scheduler = reference(name, monkeypatch, True, sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    reached = theirs(scheduler, steps, [], start(torch.float64), False)
    walked = levels(Edm(), steps, Spacing("karras"))
    x = start(torch.float64) * float(scheduler.init_noise_sigma)
    for step, state in zip(ours(denoiser(network, Edm(), "edm"), x, walked), reached, strict=True):
        assert (step.x - state).abs().max() < 1e-4  # their sigmas are float32, of 80


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [5, 28])
def test_flow_equals_the_reference(steps, shift, monkeypatch) -> None:
    scheduler = reference("FlowMatchEulerDiscreteScheduler", monkeypatch, True, shift=shift)
    reached = theirs(scheduler, steps, [], start(torch.float64), False)
    # their least time is shifted when the table is made and again when it is spread
    schedule = Flow(shift, least=shift * 1e-3 / (1 + (shift - 1) * 1e-3))
    walked = levels(schedule, steps, Spacing("linspace"))
    denoise = denoiser(network, schedule, "flow")
    for step, state in zip(
        deterministic.euler(denoise, start(torch.float64), walked), reached, strict=True
    ):
        assert (step.x - state).abs().max() < 1e-6


def test_lcm_equals_the_reference(monkeypatch) -> None:
    scheduler = reference("LCMScheduler", monkeypatch, True, **BETAS)
    schedule = Discrete(tuple(betas("scaled_linear", 0.00085, 0.012)))
    _make_precise(scheduler, schedule)
    for steps in (1, 4, 8):
        noises = draws(torch.float64, steps)
        reached = theirs(scheduler, steps, noises, start(torch.float64), False)
        walked = levels(schedule, steps, Spacing("lcm", whole_times=True))
        queue = iter(noises)
        denoise = consistency(denoiser(network, schedule, "noise"))
        ours = stochastic.lcm(denoise, start(torch.float64), walked, lambda a, b, q=queue: next(q))
        for step, state in zip(ours, reached, strict=True):
            assert (step.x - state).abs().max() < 1e-6 * state.abs().max()


@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("gamma", [None, 0.0, 0.8, 1.0])
def test_tcd_equals_the_reference(gamma, predicts, monkeypatch) -> None:
    scheduler = reference("TCDScheduler", monkeypatch, True, prediction_type=predicts, **BETAS)
    schedule = Discrete(tuple(betas("scaled_linear", 0.00085, 0.012)))
    _make_precise(scheduler, schedule)
    if gamma is not None:
        step = scheduler.step
        scheduler.step = lambda *arguments, **more: step(*arguments, eta=gamma, **more)
    for steps in (1, 4, 8, 50):
        noises = draws(torch.float64, steps)
        reached = theirs(scheduler, steps, noises, start(torch.float64), False)
        walked = sampler_levels(schedule, "tcd", steps, Spacing("lcm", whole_times=True), eta=gamma)
        queue = iter(noises)
        denoise = denoiser(network, schedule, PREDICTS[predicts])
        *ours, last = stochastic.tcd(
            denoise, start(torch.float64), walked, lambda a, b, q=queue: next(q)
        )
        # theirs goes on and back up in one step: where ours next goes down
        downwards = downward_steps(walked)[1:]
        mine = [*(ours[i - 1].x for i in downwards), last.x]
        assert len(mine) == len(reached) == steps
        for a, b in zip(mine, reached, strict=True):
            assert (a - b).abs().max() < 1e-6


@pytest.mark.parametrize("steps", [1, 3, 20, 50])
def test_ipndm_equals_the_reference_on_its_own_table(steps, monkeypatch) -> None:
    """Its sigma is sin(pi t / 2)^2 and its network predicts velocity (Dance Diffusion)."""
    scheduler = reference("IPNDMScheduler", monkeypatch, True)
    scheduler.set_timesteps(steps)
    table = zip(scheduler.alphas.tolist(), scheduler.betas.tolist(), strict=True)
    times = [*scheduler.timesteps.tolist(), 0.0]
    walked = [Level(*level, time) for level, time in zip(table, times, strict=True)]
    assert walked[0].alpha == 0 and walked[-1].sigma == 0

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        return (1 - float(time[0]) ** 2) * network(x, 300 * time)

    def denoise(x: Tensor, level: Level) -> Tensor:
        time = torch.full((len(x),), float(level.time or 0.0), dtype=x.dtype)
        return level.alpha * x - level.sigma * velocity(x, time)

    x = start(torch.float64)
    state = x
    for t, step in zip(scheduler.timesteps, deterministic.ipndm(denoise, x, walked), strict=True):
        output = velocity(state, torch.full((len(x),), float(t), dtype=x.dtype))
        state = scheduler.step(output, t, state, return_dict=False)[0]
        assert (step.x - state).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["SD", "SDXL"])
def test_align_your_steps_are_the_published_ones(kind) -> None:
    from diffusers.schedulers import AysSchedules

    name = {"SD": "StableDiffusionSigmas", "SDXL": "StableDiffusionXLSigmas"}[kind]
    ours = {"SD": "align_your_steps", "SDXL": "align_your_steps_sdxl"}[kind]
    walked = levels(Discrete(tuple(betas("scaled_linear", 0.00085, 0.012))), 10, Spacing(ours))
    assert [level.ratio for level in walked] == pytest.approx(AysSchedules[name])

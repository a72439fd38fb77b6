"""Every field of every scheduler configuration that we read: followed to diffusers' last state, or
refused or noted by its name.
"""

import inspect
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.parity.scheduler_reference import (
    draws,
    network,
    reference,
    restored,  # noqa: F401  a fixture
    start,
    theirs,
)
from triptych.diffusion import sampling as diffusion_sampling
from triptych.diffusion.denoiser import denoiser
from triptych.systems.stable_diffusion.model import run_as_diffusers, sampling_levels
from triptych.systems.stable_diffusion.published.folder.scheduler_fields import FIELDS
from triptych.systems.stable_diffusion.published.folder.schedulers import from_diffusers

pytestmark = pytest.mark.filterwarnings("ignore")  # the reference's own
STEPS = 5

VALUES: dict[str, list[Any]] = {
    "num_train_timesteps": [500],
    "beta_start": [0.0002],
    "beta_end": [0.015],
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2"],
    "trained_betas": [[0.01] * 1000],
    "prediction_type": ["epsilon", "v_prediction", "sample"],
    "clip_sample": [True, False],
    "clip_sample_range": [0.5],
    "thresholding": [True],
    "dynamic_thresholding_ratio": [0.9],
    "sample_max_value": [1.5],
    "timestep_spacing": ["linspace", "leading", "trailing"],
    "steps_offset": [1],
    "rescale_betas_zero_snr": [True],
    "set_alpha_to_one": [True, False],
    "variance_type": ["fixed_large", "fixed_small_log", "learned_range"],
    "interpolation_type": ["log_linear"],
    "timestep_type": ["continuous"],
    "use_karras_sigmas": [True],
    "use_exponential_sigmas": [True],
    "use_beta_sigmas": [True],
    "use_lu_lambdas": [True],
    "use_flow_sigmas": [True],
    "flow_shift": [3.0],
    "sigma_min": [0.1],
    "sigma_max": [10.0],
    "final_sigmas_type": ["zero", "sigma_min"],
    "skip_prk_steps": [True, False],
    "solver_order": [1, 2, 3],
    "algorithm_type": ["dpmsolver++", "sde-dpmsolver++", "noise_prediction"],
    "solver_type": ["midpoint", "heun", "bh1", "bh2", "logrho"],
    "lower_order_final": [True, False],
    "euler_at_final": [True],
    "lambda_min_clipped": [-3.0],
    "predictor_order": [1],
    "corrector_order": [1],
    "disable_corrector": [[0]],
    "predict_x0": [False],
    "original_inference_steps": [40],
    "timestep_scaling": [5.0],
    "shift": [3.0],
    "invert_sigmas": [True],
    "shift_terminal": [0.1],
    "stochastic_sampling": [True],
    "use_dynamic_shifting": [True],
    "time_shift_type": ["exponential"],
    "base_shift": [0.3],
    "max_shift": [1.3],
    "base_image_seq_len": [128],
    "max_image_seq_len": [2048],
    "noise_sampler_seed": [None, 0],
    "scale_factors": [None, [2.0]],
    "upscale_mode": ["nearest"],
    "tau_func": [None],
    "solver_p": [None],
}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", **SD}
# the reference's Euler a, DPM2 and DPM++ SDE have no prediction of the sample, PNDM neither
NO_SAMPLE = (
    "EulerAncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSDEScheduler", "PNDMScheduler",
)  # fmt: skip
WITH: dict[str, dict[str, Any]] = {  # what a field needs to have a meaning
    "clip_sample_range": {"clip_sample": True},
    "dynamic_thresholding_ratio": {"thresholding": True, "sample_max_value": 1.5},
    "sample_max_value": {"thresholding": True},
    "rescale_betas_zero_snr": {"prediction_type": "v_prediction", **SD},
    "steps_offset": {"timestep_spacing": "leading"},
    "final_sigmas_type": {"timestep_spacing": "trailing"},
    "euler_at_final": {"final_sigmas_type": "sigma_min"},
    "lower_order_final": {"final_sigmas_type": "sigma_min"},
}
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
TOGETHER: list[dict[str, Any]] = [
    *({flag: True, "timestep_spacing": "leading", "steps_offset": 1} for flag in SIGMAS),
    *({flag: True, "timestep_spacing": "trailing"} for flag in SIGMAS),
    *({flag: True, "final_sigmas_type": "sigma_min"} for flag in SIGMAS),
    *({flag: True, "shift": 3.0} for flag in SIGMAS),
    *({flag: True, **ZERO} for flag in SIGMAS),
    {"timestep_spacing": "trailing", **ZERO},
    *(
        {"set_alpha_to_one": False, "timestep_spacing": times, "steps_offset": offset}
        for times in ("leading", "trailing")
        for offset in (0, 1)
    ),
    *(
        {"algorithm_type": "sde-dpmsolver++", "solver_type": kind, "solver_order": order}
        for kind, order in (("midpoint", 2), ("heun", 2), ("midpoint", 3))
    ),
    {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "sigma_min"},
    {"solver_order": 3, "lower_order_final": True, "final_sigmas_type": "sigma_min"},
]
ALWAYS = {"clip_sample": False, "skip_prk_steps": True}  # where a class has them


def cases() -> list[Any]:
    found = []
    for name, fields in FIELDS.items():
        whole = {k: v for k, v in ALWAYS.items() if k in fields}
        changes = [{}] + [
            {k: v for k, v in WITH.get(field, {}).items() if k in fields} | {field: value}
            for field in fields
            for value in VALUES[field]
            if not (value == "sample" and name in NO_SAMPLE)
            and (value != fields[field] or field in WITH)  # else it is the first case
        ]
        changes += [change for change in TOGETHER if change.keys() <= fields.keys()]
        found += [
            pytest.param(name, whole | change, list(change), id=f"{name}-{describe(change)}")
            for change in changes
        ]
    return found


def describe(change: dict[str, Any]) -> str:
    return ",".join(f"{k}={str(v)[:16]}" for k, v in change.items()) or "default"


class Draws:
    """Given draws in place of a request's noise."""

    def __init__(self, noises):
        self.noises, self.streams = iter(noises), []

    def match(self, x):
        return self

    def __call__(self, *levels):
        return next(self.noises)


def ours(stored: dict[str, Any], monkeypatch) -> tuple[torch.Tensor, tuple[str, ...]]:
    """x after the last step, and the notes."""
    schedule, sampling, notes = from_diffusers(stored)
    model: Any = SimpleNamespace(
        schedule=schedule.schedule(),
        config=SimpleNamespace(sampling=replace(sampling, steps=STEPS)),
    )
    noises = Draws(draws(torch.float64, 2 * STEPS + 2))
    monkeypatch.setattr(diffusion_sampling, "BrownianNoise", lambda *_: noises)
    walked, scale = sampling_levels(model)
    denoise = denoiser(network, model.schedule, schedule.predicts)
    x = scale * start(torch.float64)
    *_, last = run_as_diffusers(model, sampling.sampler, denoise, x, walked, noises)
    return last.x, notes


@pytest.mark.parametrize(("name", "settings", "changed"), cases())
def test_a_field_is_followed_or_named(name, settings, changed, monkeypatch) -> None:
    try:
        mine, notes = ours({"_class_name": name} | settings, monkeypatch)
    except ValueError as error:
        assert any(field in str(error) for field in changed), error
        return
    if any(field in note for field in changed for note in notes):
        return
    scheduler = reference(name, monkeypatch, True, **settings)
    if "eta" in inspect.signature(scheduler.step).parameters:  # a pipeline gives it 0
        step = scheduler.step
        scheduler.step = lambda *arguments, **more: step(*arguments, eta=0.0, **more)
    noises = draws(torch.float64, 2 * STEPS + 2)
    reached = theirs(scheduler, STEPS, noises, start(torch.float64), False)[-1]
    if hasattr(scheduler, "sigmas") and getattr(scheduler, "init_noise_sigma", 1) != 1:
        reached = reached / (1 + float(scheduler.sigmas[-1]) ** 2) ** 0.5
    assert (mine - reached).abs().max() < 1e-5 * max(1, float(reached.abs().max()))


@pytest.mark.parametrize("name", FIELDS)
def test_the_fields_and_defaults_are_the_classes_own(name, monkeypatch) -> None:
    own = reference(name, monkeypatch, False).config
    stored = {field: value for field, value in own.items() if not field.startswith("_")}
    assert FIELDS[name] == stored

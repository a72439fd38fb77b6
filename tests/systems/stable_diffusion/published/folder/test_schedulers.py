"""Scheduler configurations against diffusers: the same defaults, the same tables of noise."""

import inspect
import json
import os
from pathlib import Path

import diffusers
import pytest
import torch

from triptych.diffusion.names import SAMPLERS
from triptych.systems.stable_diffusion.model import SamplingConfig, ScheduleConfig
from triptych.systems.stable_diffusion.published.folder import schedulers
from triptych.systems.stable_diffusion.published.folder.schedulers import (
    FLOW,
    from_diffusers,
    to_diffusers,
)

CLASSES = [
    "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler", "DEISMultistepScheduler", "LCMScheduler",
    "DPMSolverSinglestepScheduler", "TCDScheduler", "SASolverScheduler",
]  # fmt: skip
DATA = Path(os.environ.get("TRIPTYCH_DATA", "nowhere")) / "configs" / "diffusers"
REQUIRED = {"clip_sample": False, "skip_prk_steps": True}


def required(name):
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {field: value for field, value in REQUIRED.items() if field in known}


def without_private(config):
    return {name: value for name, value in config.items() if not name.startswith("_")}


def table(scheduler):
    signal = scheduler.alphas_cumprod.double().clone()
    return ((1 - signal) / signal).sqrt()


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_class_is_not_told_has_its_own_default(name):
    """Told everything that diffusers would fill in, or nothing, a class means the same."""
    kind = getattr(diffusers, name)
    bare = {"_class_name": name} | required(name)
    whole = bare | without_private(kind(**required(name)).config)
    assert len(whole) > 8 and from_diffusers(bare) == from_diffusers(whole)
    schedule, _, said = from_diffusers(bare)
    assert said == ()
    torch.testing.assert_close(
        torch.tensor(schedule.schedule().ratios, dtype=torch.float64),
        table(kind()), atol=0, rtol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing", "karras"])
def test_out_and_back(name, kind, spacing):
    """diffusers builds what we write, with the same noise; and it is read as it was."""
    sampler = next(s.name for s in SAMPLERS.values() if name in s.aliases)
    karras = spacing == "karras"
    if karras and name not in schedulers.SIGMA_SPACING:
        spacing = "linspace"
    spacing = "lcm" if name in schedulers.DISTILLED else spacing
    spacing = "linspace" if name == schedulers.SINGLESTEP and not karras else spacing
    zero = name in schedulers.ZERO_TERMINAL_SNR and kind == "scaled_linear"
    predicts = "velocity" if zero else "noise"
    schedule = ScheduleConfig(kind, 0.0009, 0.011, 900, zero, 1.0, predicts)
    sampling = SamplingConfig(sampler, 50, spacing, 3, "clean")
    stored = to_diffusers(schedule, sampling)
    assert stored["_class_name"] == name
    read = from_diffusers(json.loads(json.dumps(stored)))
    assert (read.schedule, read.sampling) == (schedule, sampling)
    theirs = getattr(diffusers, name).from_config(stored)
    ours = torch.tensor(schedule.schedule().ratios, dtype=torch.float64)
    if zero:
        assert torch.isinf(ours[-1]) and theirs.alphas_cumprod[-1] < 1e-6
        ours, noise = ours[:-1], table(theirs)[:-1]
    else:
        noise = table(theirs)
    torch.testing.assert_close(ours, noise, atol=0, rtol=2e-3)
    assert theirs.config.prediction_type == ("v_prediction" if zero else "epsilon")
    assert theirs.config.get("use_karras_sigmas", False) == (spacing == "karras")


@pytest.mark.parametrize(
    ("sampler", "fields"),
    [
        ("dpmpp_2m", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
        ("dpmpp_2m_sde", {"algorithm_type": "sde-dpmsolver++", "solver_type": "midpoint"}),
        ("dpmpp_2m_sde_heun", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
        ("dpmpp_3m_sde", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    ],
)
def test_variants_of_the_multistep_solver(sampler, fields):
    stored = to_diffusers(ScheduleConfig(), SamplingConfig(sampler))
    assert stored["_class_name"] == "DPMSolverMultistepScheduler"
    assert fields.items() <= stored.items()
    diffusers.DPMSolverMultistepScheduler.from_config(stored)
    assert from_diffusers(stored).sampling.sampler == sampler


@pytest.mark.parametrize(("sampler", "order"), [("dpmpp_2s", 2), ("dpmpp_3s", 3)])
def test_variants_of_the_singlestep_solver(sampler, order):
    stored = to_diffusers(ScheduleConfig(), SamplingConfig(sampler))
    assert (stored["_class_name"], stored["solver_order"]) == (schedulers.SINGLESTEP, order)
    theirs = diffusers.DPMSolverSinglestepScheduler.from_config(stored)
    theirs.set_timesteps(6)
    assert theirs.order_list == ([1, 2, 1, 2, 1, 1] if order == 2 else [1, 2, 3, 1, 2, 1])
    assert theirs.config.lower_order_final  # whatever it was told
    assert from_diffusers(stored | {"lower_order_final": False}).sampling.sampler == sampler


@pytest.mark.parametrize(
    ("schedule", "sampling", "name"),
    [
        (ScheduleConfig("sigmoid"), SamplingConfig("plms"), "DDPMScheduler"),
        (ScheduleConfig(zero_terminal_snr=True), SamplingConfig("plms"), "DDIMScheduler"),
        (ScheduleConfig(), SamplingConfig("dpmpp_2s_ancestral"), "DDIMScheduler"),
        (ScheduleConfig(), SamplingConfig("ipndm"), "DDIMScheduler"),
        (ScheduleConfig("flow", shift=3.0, predicts="flow"), SamplingConfig("heun"), FLOW),
    ],
)
def test_the_schedule_is_exact_where_the_sampler_cannot_be(schedule, sampling, name):
    stored = to_diffusers(schedule, sampling)
    assert stored["_class_name"] == name
    assert from_diffusers(stored).schedule == schedule
    theirs = getattr(diffusers, name).from_config(stored)
    assert theirs.config.get("shift", 1.0) == schedule.shift


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (ScheduleConfig("flow", predicts="velocity"), "flow scheduler for a network that predicts"),
        (ScheduleConfig(predicts="edm"), "scheduler with betas for a network that predicts edm"),
    ],
)
def test_what_diffusers_has_not_is_refused(schedule, words):
    with pytest.raises(ValueError, match=words):
        to_diffusers(schedule, SamplingConfig())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": None}, "has no _class_name"),
        ({"_class_name": "EDMEulerScheduler"}, "EDM's form"),
        ({"_class_name": "UnCLIPScheduler"}, "belongs to unCLIP"),
        ({"_class_name": "SASolverScheduler", "predictor_order": 3}, "predictor_order is 3"),
        (
            {"_class_name": "SASolverScheduler", "algorithm_type": "noise_prediction"},
            "algorithm_type is 'noise_prediction'",
        ),
        ({"_class_name": "IPNDMScheduler"}, "noise table of Dance Diffusion"),
        (
            {"_class_name": "FlowMatchHeunDiscreteScheduler"},
            "only FlowMatchEulerDiscreteScheduler is",
        ),
        ({"_class_name": "DDIMScheduler"}, "clip_sample is true"),
        ({"beta_schedule": "laplace"}, "beta_schedule is 'laplace'; supported: linear"),
        ({"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
        ({"timestep_spacing": "AYS"}, "timestep_spacing is 'AYS'"),
        ({"trained_betas": [0.1]}, r"trained_betas is \[0.1\]"),
        ({"thresholding": True}, "thresholding is True"),
        ({"never_heard_of": 7}, r"field never_heard_of \(7\) is not supported"),
        ({"final_sigmas_type": "sigma_min"}, "final_sigmas_type is 'sigma_min'"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True"),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "are both set"),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": False}, "skip_prk_steps is False"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 1},
            "are dpmsolver.. midpoint 1; supported",
        ),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, "are  bh1 2; supported"),
    ],
)
def test_what_is_not_supported_is_named_with_its_value(changes, words):
    with pytest.raises(ValueError, match=words):
        from_diffusers({"_class_name": "EulerDiscreteScheduler"} | changes)


def test_sigmas_between_leading_timesteps_are_noted():
    leading = {"timestep_spacing": "leading", "use_karras_sigmas": True}
    read = from_diffusers({"_class_name": "EulerDiscreteScheduler"} | leading)
    assert read.sampling.spacing == "karras"
    assert "between the leading timesteps" in read.notes[0]
    assert from_diffusers({"_class_name": "UniPCMultistepScheduler"} | leading).notes == ()


@pytest.mark.skipif(not DATA.is_dir(), reason="TRIPTYCH_DATA is not set")
def test_the_published_ones():
    said = {}
    for path in sorted(DATA.glob("stable-diffusion-[!3]*/scheduler/scheduler_config.json")):
        read = from_diffusers(json.loads(path.read_text()))
        again = from_diffusers(to_diffusers(read.schedule, read.sampling))
        assert again == read
        said[path.parent.parent.name.removeprefix("stable-diffusion-")] = (
            read.schedule.predicts, read.sampling.sampler, read.sampling.spacing,
            read.sampling.offset, read.sampling.end, read.schedule.beta_end,
        )  # fmt: skip
    plms, ddim = ("plms", "leading", 1, "least", 0.012), ("ddim", "leading", 1, "least", 0.012)
    euler = ("euler", "leading", 1, "least", 0.012)
    assert said == {
        "v1-4": ("noise", *plms), "v1-5": ("noise", *plms), "2-1-base": ("noise", *plms),
        "2-1": ("velocity", *ddim), "inpainting": ("noise", *ddim),
        "x4-upscaler": ("velocity", *ddim[:-1], 0.02),
        "xl-base-1.0": ("noise", *euler), "xl-refiner-1.0": ("noise", *euler),
    }  # fmt: skip

"""Scheduler configurations against diffusers: the same defaults, the same tables of noise."""

import inspect
import json
import os
from itertools import product
from pathlib import Path

import diffusers
import pytest
import torch

from triptych.diffusion.names import SAMPLERS
from triptych.systems.stable_diffusion.model import SamplingConfig, ScheduleConfig
from triptych.systems.stable_diffusion.published.folder.scheduler_fields import FIELDS
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


BY_DAY = {
    ("linspace", "linear"), ("leading", "scaled_linear"), ("trailing", "cosine"),
    ("karras", "scaled_linear"),
}  # fmt: skip
"""Of the spacings and kinds of schedule: each once."""


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize(
    ("spacing", "kind"),
    [
        pytest.param(*pair, marks=() if pair in BY_DAY else pytest.mark.slow)
        for pair in product(
            ("linspace", "leading", "trailing", "karras"), ("linear", "scaled_linear", "cosine")
        )
    ],
)
def test_out_and_back(name, spacing, kind):
    """diffusers builds what we write, with the same noise; and it is read as it was."""
    sampler = next(s.name for s in SAMPLERS.values() if name in s.aliases)
    karras = spacing == "karras"
    own = SAMPLERS[sampler].own_spacing
    if karras and "use_karras_sigmas" not in FIELDS[name]:
        spacing = "linspace"
    spacing = own if own and spacing != "karras" else spacing
    zero = "rescale_betas_zero_snr" in FIELDS[name] and kind == "scaled_linear"
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
    assert stored["_class_name"] == "DPMSolverSinglestepScheduler"
    assert stored["solver_order"] == order
    theirs = diffusers.DPMSolverSinglestepScheduler.from_config(stored)
    theirs.set_timesteps(6)
    assert theirs.order_list == ([1, 2, 1, 2, 1, 1] if order == 2 else [1, 2, 3, 1, 2, 1])
    assert theirs.config.lower_order_final  # whatever it was told
    assert from_diffusers(stored | {"lower_order_final": False}).sampling.sampler == sampler


@pytest.mark.parametrize(
    ("schedule", "sampling", "name"),
    [
        (ScheduleConfig("sigmoid"), SamplingConfig("plms"), "DDPMScheduler"),
        (
            ScheduleConfig(zero_terminal_snr=True, predicts="velocity"),
            SamplingConfig("plms"),
            "DDIMScheduler",
        ),
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
            "FlowMatchEulerDiscreteScheduler and FlowMatchLCMScheduler are",
        ),
        ({"_class_name": "MyScheduler"}, "MyScheduler"),
        (
            {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "clip_sample": False},
            "rescale_betas_zero_snr is True with the prediction_type 'epsilon'",
        ),
        ({"_class_name": "DPMSolverSDEScheduler", "noise_sampler_seed": 3}, "seed is 3"),
        ({"beta_start": "small"}, "beta_start is 'small'; it must be a number"),
        ({"num_train_timesteps": 99.5}, "num_train_timesteps is 99.5; it must be a whole number"),
        ({"beta_end": float("nan")}, "beta_end is nan"),
        ({"beta_schedule": "laplace"}, "beta_schedule is 'laplace'; supported: linear"),
        ({"prediction_type": "flow_prediction"}, "prediction_type is 'flow_prediction'"),
        ({"timestep_spacing": "AYS"}, "timestep_spacing is 'AYS'"),
        ({"trained_betas": [0.1]}, r"trained_betas is \[0.1\]"),
        ({"never_heard_of": 7}, r"field never_heard_of \(7\) is not supported"),
        ({"final_sigmas_type": "sigma_max"}, "final_sigmas_type is 'sigma_max'"),
        (
            {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True},
            "use_flow_sigmas is True",
        ),
        (
            {"_class_name": "UniPCMultistepScheduler", "lower_order_final": False},
            "lower_order_final is False",
        ),
        ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "are both set"),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": False}, "skip_prk_steps is False"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 1},
            "are dpmsolver.. midpoint 1; supported",
        ),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, "are  bh1 2; supported"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 500},
            "num_train_timesteps is 500",
        ),
    ],
)
def test_what_is_not_supported_is_named_with_its_value(changes, words):
    with pytest.raises(ValueError, match=words):
        from_diffusers({"_class_name": "EulerDiscreteScheduler"} | changes)


def test_sigmas_lie_between_the_timesteps_of_eulers_kin():
    leading = {"timestep_spacing": "leading", "use_karras_sigmas": True}
    read = from_diffusers({"_class_name": "EulerDiscreteScheduler"} | leading)
    assert (read.sampling.spacing, read.sampling.between) == ("karras", "leading")
    whole = from_diffusers({"_class_name": "UniPCMultistepScheduler"} | leading)
    assert (whole.sampling.spacing, whole.sampling.between) == ("karras", "")
    assert read.notes == whole.notes == ()


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("EulerDiscreteScheduler", "clip_sample", True),
        ("EulerDiscreteScheduler", "thresholding", True),
        ("DDIMScheduler", "use_karras_sigmas", True),
        ("HeunDiscreteScheduler", "rescale_betas_zero_snr", True),
        ("EulerDiscreteScheduler", "use_flow_sigmas", True),
    ],
)
def test_a_field_of_another_class_changes_nothing_and_is_noted(name, field, value):
    bare = {"_class_name": name, "clip_sample": False}
    with_it = from_diffusers(bare | {field: value})
    assert len(with_it.notes) == 1 and f"{field} is {value}" in with_it.notes[0]
    assert with_it.schedule == from_diffusers(bare).schedule
    assert with_it.sampling.spacing == from_diffusers(bare).sampling.spacing


def test_what_another_class_reads_waits_for_it():
    """`DDIMScheduler.from_config` of an Euler configuration clips where that says so."""
    read = from_diffusers({"_class_name": "EulerDiscreteScheduler", "clip_sample": True}).sampling
    assert (read.clip, "clip" in SAMPLERS["euler"].reads, "clip" in SAMPLERS["ddim"].reads) == (
        1.0, False, True,
    )  # fmt: skip


SETTINGS = {
    "between": ("leading", "euler"),
    "final": ("least", "dpmpp_2m"),
    "ending": ("always", "dpmpp_2m"),
    "clip": (0.7, "ddim"),
    "threshold": (0.9, "dpmpp_2m"),
    "threshold_most": (1.7, "dpmpp_2m"),
}


@pytest.mark.parametrize("field", SETTINGS)
def test_settings_go_out_and_back(field):
    value, sampler = SETTINGS[field]
    spacing = "karras" if field == "between" else "linspace"
    threshold = {"threshold": 0.9} if field == "threshold_most" else {}
    sampling = SamplingConfig(sampler, spacing=spacing, **{field: value} | threshold)
    stored = to_diffusers(ScheduleConfig(), sampling)
    assert from_diffusers(json.loads(json.dumps(stored))).sampling == sampling
    getattr(diffusers, stored["_class_name"]).from_config(stored)


@pytest.mark.parametrize(
    ("name", "field", "sampler"),
    [
        ("DPMSolverSDEScheduler", "noise_sampler_seed", "dpmpp_sde"),
        ("FlowMatchLCMScheduler", "scale_factors", "lcm"),
    ],
)
def test_what_diffusers_saves_is_read(name, field, sampler):
    """Of every field its default, which tests/parity compares with the class's own: null of one."""
    whole = {"_class_name": name} | FIELDS[name]
    assert whole[field] is None
    read = from_diffusers(whole)
    assert read == from_diffusers({"_class_name": name})
    assert (read.notes, read.sampling.sampler) == ((), sampler)


@pytest.mark.parametrize("name", ["DDIMParallelScheduler", "DDPMParallelScheduler"])
def test_parallel_classes_have_the_defaults_of_the_others(name):
    read = from_diffusers({"_class_name": name}).sampling
    assert (read.spacing, read.clip) == ("leading", 1.0)
    assert read == from_diffusers({"_class_name": name.replace("Parallel", "")}).sampling


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

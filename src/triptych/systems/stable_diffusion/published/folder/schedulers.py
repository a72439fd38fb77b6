"""A diffusers `scheduler_config.json` as our schedule and sampling settings, and back.

The file mixes three things: how the network was trained (betas, prediction type), which sampler the
publisher prefers, and how that sampler spaces its timesteps. A field that is missing has the
default of its scheduler class.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from triptych.diffusion.denoiser import Predicts
from triptych.diffusion.names import find_sampler, parse_sampler
from triptych.diffusion.spacing import Kind
from triptych.systems.stable_diffusion.model import SamplingConfig, ScheduleConfig
from triptych.weights.diffusers_names import check_fields

PREDICTS: dict[str, Predicts] = {
    "epsilon": "noise",
    "v_prediction": "velocity",
    "sample": "sample",
}
BETAS = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
FLOW = "FlowMatchEulerDiscreteScheduler"
SINGLESTEP = "DPMSolverSinglestepScheduler"
"""Always spaces timesteps by linspace and always ends with a first-order step: diffusers sets
`lower_order_final` where the final sigma is 0.
"""
IPNDM = "IPNDMScheduler"
"""Has a fixed noise table (Dance Diffusion's) instead of betas."""
LEADING_BY_DEFAULT = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
"""Classes whose default `timestep_spacing` is "leading"; the others have "linspace"."""
DISTILLED = ("LCMScheduler", "TCDScheduler")
"""Classes that always use the timesteps of a consistency distillation."""
SD_BETAS_BY_DEFAULT = (
    "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler", "TCDScheduler",
)  # fmt: skip
"""Classes whose default betas are Stable Diffusion's, 0.00085 to 0.012; others: 0.0001 to 0.02."""
ZERO_TERMINAL_SNR = (
    "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "LCMScheduler", "TCDScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
"""Classes that support `rescale_betas_zero_snr`."""
SIGMA_SPACING = (
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler", "DEISMultistepScheduler", SINGLESTEP,
    "SASolverScheduler",
)  # fmt: skip
"""Classes that read the flags in `SIGMAS`; the others ignore them."""
CLIPS_BY_DEFAULT = ("DDIMScheduler", "DDPMScheduler")
"""Classes whose `clip_sample` is true unless it is set."""

SIGMAS: dict[str, Kind] = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta_sigma",
}
TIMESTEP_SPACINGS: tuple[Kind, ...] = ("linspace", "leading", "trailing")
READ = {
    *("_class_name", "beta_start", "beta_end", "beta_schedule", "num_train_timesteps"),
    *("prediction_type", "rescale_betas_zero_snr", "timestep_spacing", "steps_offset"),
    *("set_alpha_to_one", "clip_sample", "algorithm_type", "solver_type", "solver_order"),
    *("shift", *SIGMAS),
}
SUPPORTED: dict[str, tuple[Any, ...]] = {  # values with which a field changes nothing
    "trained_betas": (None,),
    "thresholding": (False,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "final_sigmas_type": ("zero",),
    "lower_order_final": (True,),
    "euler_at_final": (False,),
    "use_lu_lambdas": (False,),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "invert_sigmas": (False,),
    "stochastic_sampling": (False,),
    "shift_terminal": (None,),
    "predict_x0": (True,),
    "disable_corrector": ([],),
    "solver_p": (None,),
    "predictor_order": (2,),
    "corrector_order": (2,),
    "tau_func": (None,),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "original_inference_steps": (50,),
    "timestep_scaling": (10, 10.0),
    "variance_type": (None, "fixed_small"),
    "lambda_min_clipped": (float("-inf"), None),
    "skip_prk_steps": (True,),
}
IGNORED = {  # parameters of features that SUPPORTED turns off
    *("dynamic_thresholding_ratio", "clip_sample_range", "sample_max_value", "flow_shift"),
    *("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"),
}


class Scheduler(NamedTuple):
    """A parsed scheduler configuration."""

    schedule: ScheduleConfig
    sampling: SamplingConfig
    """Only sampler, spacing, offset and end are set."""
    notes: tuple[str, ...] = ()
    """Differences from diffusers, for the user."""


class Solver(NamedTuple):
    """`algorithm_type`, `solver_type` and `solver_order` of a solver's configuration."""

    algorithm: str
    kind: str
    order: int


SOLVERS: dict[str, dict[Solver, str]] = {  # the first one is the default of the class
    "DPMSolverMultistepScheduler": {
        Solver("dpmsolver++", "midpoint", 2): "dpmpp_2m",
        Solver("sde-dpmsolver++", "midpoint", 2): "dpmpp_2m_sde",
        Solver("sde-dpmsolver++", "heun", 2): "dpmpp_2m_sde_heun",
        Solver("sde-dpmsolver++", "midpoint", 3): "dpmpp_3m_sde",
    },
    SINGLESTEP: {
        Solver("dpmsolver++", "midpoint", 2): "dpmpp_2s",
        Solver("dpmsolver++", "midpoint", 3): "dpmpp_3s",
    },
    "UniPCMultistepScheduler": {Solver("", "bh2", 2): "unipc"},
    "DEISMultistepScheduler": {Solver("deis", "logrho", 2): "deis"},
}


def from_diffusers(stored: Mapping[str, Any]) -> Scheduler:
    """Parse a `scheduler_config.json`.

    Raises:
        ValueError: the scheduler, or the value of a field, is not supported.
    """
    name = stored.get("_class_name")
    if not isinstance(name, str):
        raise ValueError("the scheduler's configuration has no _class_name")
    if name.startswith("EDM") or "sigma_data" in stored:
        raise ValueError(
            f"the scheduler {name} is for a network trained in EDM's form (Playground 2.5), which "
            "is not supported"
        )
    others = READ | IGNORED | ({"lower_order_final"} if name == SINGLESTEP else set())
    check_fields(stored, SUPPORTED, others, "the scheduler's ")
    if name == "PNDMScheduler" and not stored.get("skip_prk_steps", False):
        raise ValueError(
            "the scheduler's skip_prk_steps is False, which starts with Runge-Kutta steps; "
            "supported: True"
        )
    if name == IPNDM:
        raise ValueError(
            f"the scheduler {name} is for a network trained on the noise table of Dance Diffusion, "
            "not on betas; to use its sampler, ask for ipndm"
        )
    if name.startswith("FlowMatch") and name != FLOW:
        raise ValueError(
            f"the scheduler {name} is not supported; of the schedulers of flow models only {FLOW} "
            "is. Its sampler can be asked for by name"
        )
    if name == FLOW:
        sampling = SamplingConfig(sampler="euler", spacing="linspace", offset=0, end="clean")
        shift = float(stored.get("shift", 1.0))
        return Scheduler(ScheduleConfig(kind="flow", shift=shift, predicts="flow"), sampling)
    sampler = _sampler(stored, name)
    if stored.get("clip_sample", name in CLIPS_BY_DEFAULT):
        raise ValueError("the scheduler's clip_sample is true, which would clip latents to [-1, 1]")
    default = "scaled_linear" if name in DISTILLED else "linear"
    schedule = ScheduleConfig(
        kind=_lookup(BETAS, stored, "beta_schedule", default),  # type: ignore[arg-type]
        beta_start=stored.get("beta_start", 0.00085 if name in SD_BETAS_BY_DEFAULT else 0.0001),
        beta_end=stored.get("beta_end", 0.012 if name in SD_BETAS_BY_DEFAULT else 0.02),
        times=stored.get("num_train_timesteps", 1000),
        zero_terminal_snr=bool(stored.get("rescale_betas_zero_snr", False)),
        predicts=_lookup(PREDICTS, stored, "prediction_type", "epsilon"),  # type: ignore[arg-type]
    )
    ends_clean = stored.get("set_alpha_to_one", name != "PNDMScheduler")
    sampling = SamplingConfig(
        sampler=sampler,
        spacing=_spacing(stored, name),
        offset=stored.get("steps_offset", 0),
        end="clean" if ends_clean else "least",
    )
    return Scheduler(schedule, sampling, _spacing_notes(stored, name, sampling.spacing))


def _spacing_notes(stored: Mapping[str, Any], name: str, spacing: Kind) -> tuple[str, ...]:
    """Where sigmas are spaced, most classes of diffusers start at the first timestep of
    `timestep_spacing`; we always start at the largest sigma.
    """
    timesteps = stored.get("timestep_spacing", "linspace")
    if spacing not in SIGMAS.values() or timesteps == "linspace" or name in SOLVERS:
        return ()
    return (
        f"in diffusers {name} spaces its {spacing} sigmas between the {timesteps} timesteps; here "
        "they cover the whole schedule",
    )


def to_diffusers(schedule: ScheduleConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """Write a `scheduler_config.json`.

    The schedule is exact. The sampler is, too, where diffusers has a class with it on that
    schedule; otherwise DDIM or DDPM takes its place.

    Raises:
        ValueError: diffusers has no such schedule or prediction type.
    """
    if schedule.kind == "flow":
        if schedule.predicts != "flow":
            raise ValueError(
                f"diffusers has no flow scheduler for a network that predicts {schedule.predicts}"
            )
        return {"_class_name": FLOW, "num_train_timesteps": 1000, "shift": schedule.shift}
    kinds = {ours: theirs for theirs, ours in PREDICTS.items()}
    if schedule.predicts not in kinds:
        raise ValueError(
            f"diffusers has no scheduler with betas for a network that predicts {schedule.predicts}"
        )
    tables = {ours: theirs for theirs, ours in BETAS.items()}
    name, own = _scheduler(schedule, sampling)
    stored: dict[str, Any] = {
        "_class_name": name,
        "beta_end": schedule.beta_end,
        "beta_schedule": tables[schedule.kind],
        "beta_start": schedule.beta_start,
        "clip_sample": False,
        "num_train_timesteps": schedule.times,
        "prediction_type": kinds[schedule.predicts],
        "set_alpha_to_one": sampling.end == "clean",
        "skip_prk_steps": True,
        "steps_offset": sampling.offset,
        "trained_betas": None,
        **own,
    }
    if schedule.zero_terminal_snr:
        stored["rescale_betas_zero_snr"] = True
    sigmas = next((flag for flag, kind in SIGMAS.items() if kind == sampling.spacing), None)
    if sampling.spacing in TIMESTEP_SPACINGS:
        stored["timestep_spacing"] = sampling.spacing
    elif sigmas is not None and name in SIGMA_SPACING:
        stored |= {"timestep_spacing": "linspace", sigmas: True}
    return stored


def _scheduler(schedule: ScheduleConfig, sampling: SamplingConfig) -> tuple[str, dict[str, Any]]:
    """The scheduler class and its own fields; DDIM or DDPM where no class has both the sampler and
    the schedule.
    """
    name = ""
    own: dict[str, Any] = {}
    for scheduler, variants in SOLVERS.items():
        for (algorithm, kind, order), sampler in variants.items():
            if sampler == sampling.sampler:
                name, own = scheduler, {"solver_type": kind, "solver_order": order}
                if algorithm:
                    own["algorithm_type"] = algorithm
    if not name:
        aliases = find_sampler(sampling.sampler).aliases
        name = next((alias for alias in aliases if alias.endswith("Scheduler")), "DDIMScheduler")
        name = "DDIMScheduler" if name == IPNDM else name
    if schedule.zero_terminal_snr and name not in ZERO_TERMINAL_SNR:
        name, own = "DDIMScheduler", {}
    if schedule.kind == "sigmoid":
        name, own = "DDPMScheduler", {}
    return name, own


def _sampler(stored: Mapping[str, Any], name: str) -> str:
    variants = SOLVERS.get(name)
    if name == "SASolverScheduler" and stored.get("algorithm_type") == "noise_prediction":
        raise ValueError(
            f"the scheduler's algorithm_type is 'noise_prediction'; supported for {name}: "
            "'data_prediction'"
        )
    if variants is None:
        return parse_sampler(name)[0]
    default = next(iter(variants))
    solver = Solver(
        stored.get("algorithm_type", default.algorithm) if default.algorithm else "",
        stored.get("solver_type", default.kind),
        stored.get("solver_order", default.order),
    )
    if solver not in variants:
        supported = ", ".join(" ".join(map(str, variant)).strip() for variant in variants)
        raise ValueError(
            f"the scheduler's algorithm_type, solver_type and solver_order are "
            f"{' '.join(map(str, solver))}; supported for {name}: {supported}"
        )
    return variants[solver]


def _spacing(stored: Mapping[str, Any], name: str) -> Kind:
    flags = [flag for flag in SIGMAS if stored.get(flag)]
    if len(flags) > 1:
        raise ValueError(f"the scheduler's {' and '.join(flags)} are both set")
    if flags and name in SIGMA_SPACING:
        return SIGMAS[flags[0]]
    if name in DISTILLED:
        return "lcm"
    if name == SINGLESTEP:
        return "linspace"
    spacing = stored.get(
        "timestep_spacing", "leading" if name in LEADING_BY_DEFAULT else "linspace"
    )
    if spacing not in TIMESTEP_SPACINGS:
        raise ValueError(
            f"the scheduler's timestep_spacing is {spacing!r}; supported: "
            f"{', '.join(TIMESTEP_SPACINGS)}"
        )
    return spacing  # type: ignore[no-any-return]


def _lookup(names: Mapping[str, str], stored: Mapping[str, Any], field: str, default: str) -> str:
    value = stored.get(field, default)
    if value not in names:
        raise ValueError(f"the scheduler's {field} is {value!r}; supported: {', '.join(names)}")
    return names[value]

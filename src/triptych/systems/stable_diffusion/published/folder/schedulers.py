"""A diffusers `scheduler_config.json` as our schedule and sampling, and back.

Three things stand mixed there: how the network was trained (the betas, what it predicts), which
sampler the publisher prefers, and how that spreads its steps. What a class is not told has that
class's own default.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from triptych.diffusion.denoiser import Predicts
from triptych.diffusion.names import find_sampler, parse_sampler
from triptych.diffusion.spacing import Kind
from triptych.systems.stable_diffusion.model import SamplingConfig, ScheduleConfig

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
"""Goes evenly over times whatever it is told, and ends with a step of first order whatever it is
told: diffusers turns lower_order_final on where the end is the clean picture.
"""
OWN_TABLE = "IPNDMScheduler"
"""Its noise is a table of its own (Dance Diffusion's), not betas."""
TABULAR = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
"""What spreads its steps in strides where it is not told otherwise; the others: evenly."""
DISTILLED = ("LCMScheduler", "TCDScheduler")
"""What walks the times of a distillation, whatever it is told."""
LATE = (
    "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler", "TCDScheduler",
)  # fmt: skip
"""What has Stable Diffusion's betas where it is told none."""
TERMINAL = (
    "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "LCMScheduler", "TCDScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
"""What can end in pure noise."""
KARRAS = (
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler", "DEISMultistepScheduler", SINGLESTEP,
    "SASolverScheduler",
)  # fmt: skip
"""What can spread its steps over sigma."""
CLIPPED = ("DDIMScheduler", "DDPMScheduler")
"""What clips the picture where it is not told to leave it, which would cut latents."""

SIGMAS: dict[str, Kind] = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta_sigma",
}
SPACED: tuple[Kind, ...] = ("linspace", "leading", "trailing")
READ = {
    *("_class_name", "beta_start", "beta_end", "beta_schedule", "num_train_timesteps"),
    *("prediction_type", "rescale_betas_zero_snr", "timestep_spacing", "steps_offset"),
    *("set_alpha_to_one", "clip_sample", "algorithm_type", "solver_type", "solver_order"),
    *("shift", *SIGMAS),
}
PLAIN: dict[str, tuple[Any, ...]] = {  # what a field may say without changing what is computed
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
SILENT = {  # numbers of what PLAIN turns off
    *("dynamic_thresholding_ratio", "clip_sample_range", "sample_max_value", "flow_shift"),
    *("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type"),
}


class Scheduler(NamedTuple):
    """What a scheduler's configuration says."""

    schedule: ScheduleConfig
    sampling: SamplingConfig
    """Of it: sampler, spacing, offset and end."""
    notes: tuple[str, ...] = ()
    """What someone should know."""


class Solver(NamedTuple):
    """A variant of a multistep solver, as a class's own fields say it."""

    algorithm: str
    kind: str
    order: int


SOLVERS: dict[str, dict[Solver, str]] = {  # the first one is the class's default
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
    """Schedule and sampling of a `scheduler_config.json`.

    Raises:
        ValueError: a scheduler, or a field of it, that means something not known here; names the
            field and its value.
    """
    name = stored.get("_class_name")
    if not isinstance(name, str):
        raise ValueError("the scheduler's configuration has no _class_name that says which it is")
    if name.startswith("EDM") or "sigma_data" in stored:
        raise ValueError(
            f"the scheduler {name} is of a network trained in EDM's form (Playground 2.5 is), "
            "which is not Stable Diffusion's"
        )
    _check(stored)
    if name == OWN_TABLE:
        raise ValueError(
            f"the scheduler {name} is of a network trained on a table of noise of its own (Dance "
            "Diffusion's), not on betas; the sampler can be asked for by name, ipndm"
        )
    if name.startswith("FlowMatch") and name != FLOW:
        raise ValueError(
            f"the scheduler {name} is of a flow model, of whose schedulers only {FLOW} is read; "
            "the sampler can be asked for by name"
        )
    if name == FLOW:
        sampling = SamplingConfig(sampler="euler", spacing="linspace", offset=0, end="clean")
        shift = float(stored.get("shift", 1.0))
        return Scheduler(ScheduleConfig(kind="flow", shift=shift, predicts="flow"), sampling)
    sampler = _sampler(stored, name)
    if stored.get("clip_sample", name in CLIPPED):
        raise ValueError(
            "clip_sample is true: the scheduler would clip latents as if they were pictures"
        )
    default = "scaled_linear" if name in DISTILLED else "linear"
    schedule = ScheduleConfig(
        kind=_of(BETAS, stored, "beta_schedule", default),  # type: ignore[arg-type]
        beta_start=stored.get("beta_start", 0.00085 if name in LATE else 0.0001),
        beta_end=stored.get("beta_end", 0.012 if name in LATE else 0.02),
        times=stored.get("num_train_timesteps", 1000),
        zero_terminal_snr=bool(stored.get("rescale_betas_zero_snr", False)),
        predicts=_of(PREDICTS, stored, "prediction_type", "epsilon"),  # type: ignore[arg-type]
    )
    whole = stored.get("set_alpha_to_one", name != "PNDMScheduler")
    sampling = SamplingConfig(
        sampler=sampler,
        spacing=_spacing(stored, name),
        offset=stored.get("steps_offset", 0),
        end="clean" if whole else "least",
    )
    return Scheduler(schedule, sampling, _said(stored, name, sampling.spacing))


def _said(stored: Mapping[str, Any], name: str, spacing: Kind) -> tuple[str, ...]:
    """Sigmas that are spread begin where the times do, but in solvers; here always at the most."""
    evenly = stored.get("timestep_spacing", "linspace") == "linspace"
    if spacing not in SIGMAS.values() or evenly or name in SOLVERS:
        return ()
    return (f"{name} would spread {spacing} sigmas between its {stored['timestep_spacing']} times; "
            "here they go over the whole schedule",)  # fmt: skip


def to_diffusers(schedule: ScheduleConfig, sampling: SamplingConfig) -> dict[str, Any]:
    """A `scheduler_config.json` of the schedule, exactly; and of the sampling, as far as diffusers
    has a class with that sampler on that schedule, else a plain one.

    Raises:
        ValueError: diffusers has no such schedule, or no such prediction.
    """
    if schedule.kind == "flow":
        if schedule.predicts != "flow":
            raise ValueError(
                f"diffusers has no flow schedule of a network that predicts {schedule.predicts}"
            )
        return {"_class_name": FLOW, "num_train_timesteps": 1000, "shift": schedule.shift}
    kinds = {ours: theirs for theirs, ours in PREDICTS.items()}
    if schedule.predicts not in kinds:
        raise ValueError(
            f"diffusers has no table of betas of a network that predicts {schedule.predicts}"
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
    if sampling.spacing in SPACED:
        stored["timestep_spacing"] = sampling.spacing
    elif sigmas is not None and name in KARRAS:
        stored |= {"timestep_spacing": "linspace", sigmas: True}
    return stored


def _scheduler(schedule: ScheduleConfig, sampling: SamplingConfig) -> tuple[str, dict[str, Any]]:
    """The class for a sampler, or a plain one where the schedule asks for more than it has."""
    name, own = "", {}
    for known, variants in SOLVERS.items():
        for (algorithm, kind, order), sampler in variants.items():
            if sampler == sampling.sampler:
                notes = {"algorithm_type": algorithm} if algorithm else {}
                name, own = known, notes | {"solver_type": kind, "solver_order": order}
    if not name:
        of = (n for n in find_sampler(sampling.sampler).aliases if n.endswith("Scheduler"))
        name = next(of, "DDIMScheduler")
        name = "DDIMScheduler" if name == OWN_TABLE else name
    if schedule.zero_terminal_snr and name not in TERMINAL:
        name, own = "DDIMScheduler", {}
    if schedule.kind == "sigmoid":
        name, own = "DDPMScheduler", {}
    return name, own


def _check(stored: Mapping[str, Any]) -> None:
    """Nothing in a configuration is passed over."""
    for field, value in stored.items():
        if field in READ or field in SILENT or field.startswith("_"):
            continue
        if field not in PLAIN:
            raise ValueError(f"the scheduler's {field} is {value!r}: a field that is unknown here")
        if field == "lower_order_final" and stored.get("_class_name") == SINGLESTEP:
            continue
        if value not in PLAIN[field]:
            known = " or ".join(map(repr, PLAIN[field]))
            raise ValueError(f"the scheduler's {field} is {value!r}; known here is {known}")
    if stored.get("_class_name") == "PNDMScheduler" and not stored.get("skip_prk_steps", False):
        raise ValueError(
            "the scheduler's skip_prk_steps is False: it would begin with Runge-Kutta steps, which "
            "no published Stable Diffusion does"
        )


def _sampler(stored: Mapping[str, Any], name: str) -> str:
    variants = SOLVERS.get(name)
    if name == "SASolverScheduler" and stored.get("algorithm_type") == "noise_prediction":
        raise ValueError(
            f"the scheduler's algorithm_type is 'noise_prediction'; known of {name} is "
            "'data_prediction'"
        )
    if variants is None:
        return parse_sampler(name)[0]
    default = next(iter(variants))
    notes = Solver(
        stored.get("algorithm_type", default.algorithm) if default.algorithm else "",
        stored.get("solver_type", default.kind),
        stored.get("solver_order", default.order),
    )
    if notes not in variants:
        known = ", ".join(f"{s.algorithm} {s.kind} {s.order}".strip() for s in variants)
        raise ValueError(
            f"the scheduler's algorithm_type, solver_type and solver_order are "
            f"{notes.algorithm} {notes.kind} {notes.order}; known of {name} are {known}"
        )
    return variants[notes]


def _spacing(stored: Mapping[str, Any], name: str) -> Kind:
    flags = [flag for flag in SIGMAS if stored.get(flag)]
    if len(flags) > 1:
        raise ValueError(f"the scheduler's {' and '.join(flags)} are both true")
    if flags and name in KARRAS:  # others are not asked for it, and ignore it
        return SIGMAS[flags[0]]
    if name in DISTILLED:
        return "lcm"  # it has its own, whatever is said
    if name == SINGLESTEP:
        return "linspace"
    spacing = stored.get("timestep_spacing", "leading" if name in TABULAR else "linspace")
    if spacing not in SPACED:
        raise ValueError(
            f"the scheduler's timestep_spacing is {spacing!r}; known are {', '.join(SPACED)}"
        )
    return spacing  # type: ignore[no-any-return]


def _of(known: Mapping[str, str], stored: Mapping[str, Any], field: str, default: str) -> str:
    value = stored.get(field, default)
    if value not in known:
        raise ValueError(f"the scheduler's {field} is {value!r}; known are {', '.join(known)}")
    return known[value]

"""A diffusers `scheduler_config.json` as our schedule and sampling settings, and back.

The file mixes three things: how the network was trained (betas, prediction type), which sampler the
publisher prefers, and how that sampler spaces its timesteps. A field that is missing has the
default of its scheduler class.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

from triptych.diffusion.denoiser import Predicts
from triptych.diffusion.names import find_sampler, parse_sampler
from triptych.diffusion.samplers.deterministic import Ending
from triptych.diffusion.spacing import Kind
from triptych.systems.stable_diffusion.model import SamplingConfig, ScheduleConfig
from triptych.systems.stable_diffusion.published.folder.scheduler_fields import FIELDS
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
IPNDM = "IPNDMScheduler"
"""Has a fixed noise table (Dance Diffusion's) instead of betas."""
SIGMAS: dict[str, Kind] = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta_sigma",
}
LU = "use_lu_lambdas"
TIMESTEP_SPACINGS: tuple[Kind, ...] = ("linspace", "leading", "trailing")
ENDS: dict[str, Literal["clean", "least"]] = {"zero": "clean", "sigma_min": "least"}
SUPPORTED: dict[str, tuple[Any, ...]] = {  # values with which a field changes nothing
    "trained_betas": (None,),
    "interpolation_type": ("linear",),
    "timestep_type": ("discrete",),
    "use_flow_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "invert_sigmas": (False,),
    "stochastic_sampling": (False,),
    "shift_terminal": (None,),
    "scale_factors": (None, []),
    "noise_sampler_seed": (None,),
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
QUIET = {  # of another class: these alone do not say that a picture was to be drawn otherwise
    *("skip_prk_steps", "set_alpha_to_one", "steps_offset", "timestep_spacing", "variance_type"),
    *("algorithm_type", "solver_type", "solver_order", "lower_order_final", "clip_sample_range"),
    *("dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"),
}
REPLACED = {  # what a solver takes for its own value
    "DPMSolverSinglestepScheduler": {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"),
    },
    "DPMSolverMultistepScheduler": {
        "algorithm_type": {"deis": "dpmsolver++"},
        "solver_type": dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"),
    },
    "UniPCMultistepScheduler": {
        "solver_type": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2"),
    },
    "DEISMultistepScheduler": {
        "algorithm_type": dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis"),
        "solver_type": dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho"),
    },
}
WHOLE = ("num_train_timesteps", "steps_offset")
NUMBERS = (
    *("beta_start", "beta_end", "clip_sample_range", "dynamic_thresholding_ratio"),
    *("sample_max_value", "shift", *WHOLE),
)


class Scheduler(NamedTuple):
    """A parsed scheduler configuration."""

    schedule: ScheduleConfig
    sampling: SamplingConfig
    """What the scheduler's configuration says of sampling; the rest are defaults."""
    notes: tuple[str, ...] = ()
    """Differences from diffusers, for the user."""


class Solver(NamedTuple):
    """`algorithm_type`, `solver_type` and `solver_order` of a solver's configuration."""

    algorithm: str
    kind: str
    order: int


SOLVERS: dict[str, dict[Solver, str]] = {
    "DPMSolverMultistepScheduler": {
        Solver("dpmsolver++", "midpoint", 2): "dpmpp_2m",
        Solver("sde-dpmsolver++", "midpoint", 2): "dpmpp_2m_sde",
        Solver("sde-dpmsolver++", "heun", 2): "dpmpp_2m_sde_heun",
        Solver("sde-dpmsolver++", "midpoint", 3): "dpmpp_3m_sde",
    },
    "DPMSolverSinglestepScheduler": {
        Solver("dpmsolver++", "midpoint", 2): "dpmpp_2s",
        Solver("dpmsolver++", "midpoint", 3): "dpmpp_3s",
    },
    "UniPCMultistepScheduler": {Solver("", "bh2", 2): "unipc"},
    "DEISMultistepScheduler": {Solver("deis", "logrho", 2): "deis"},
}


def from_diffusers(stored: Mapping[str, Any]) -> Scheduler:
    """Parse a `scheduler_config.json`.

    A field that its class does not have changes nothing, as in diffusers, and is noted; but where
    another sampler is asked for that reads it, it applies to that one.

    Raises:
        ValueError: the scheduler, or the value of a field, is not supported.
    """
    name = stored.get("_class_name")
    if not isinstance(name, str):
        raise ValueError("the scheduler's configuration has no _class_name")
    _check_class(stored, name)
    known = FIELDS[name]
    every = set().union(*FIELDS.values())
    own = {field: value for field, value in stored.items() if field in known}
    elsewhere = every - known.keys()
    check_fields(known | own, SUPPORTED, known.keys() - SUPPORTED.keys(), "the scheduler's ")
    check_fields(stored, {}, every, "the scheduler's ")
    values = known | {field: value for field, value in own.items() if value is not None}
    others = {field: value for field, value in stored.items() if field in elsewhere}
    _check_numbers(values | others)
    notes = [
        f"the scheduler's {field} is {value!r}: ignored, as in diffusers; {name} has no such field"
        for field, value in others.items()
        if field not in QUIET and not _is_default(field, value)
    ]
    sampler = _sampler(values, name)
    sampling = _sampling(values, others, sampler)
    if name.startswith("FlowMatch"):
        if values["num_train_timesteps"] != 1000:
            raise ValueError(
                f"the scheduler's num_train_timesteps is {values['num_train_timesteps']!r}; "
                f"supported for {name}: 1000"
            )
        schedule = ScheduleConfig(kind="flow", shift=float(values["shift"]), predicts="flow")
    else:
        schedule = _schedule(values)
    notes += _departures(schedule, sampling)
    return Scheduler(schedule, sampling, tuple(notes))


def _departures(schedule: ScheduleConfig, sampling: SamplingConfig) -> list[str]:
    """Where our sampler is not that of diffusers (docs/diffusion.md says why)."""
    notes = []
    if sampling.sampler == "plms" and schedule.predicts != "noise":
        notes.append(
            f"the scheduler's prediction_type is that of {schedule.predicts}: in diffusers "
            "PNDMScheduler combines the network's outputs of several steps, here the noise in them"
        )
    if sampling.sampler in ("ddim", "plms") and sampling.spacing == "linspace":
        notes.append(
            "the scheduler's timestep_spacing is linspace: in diffusers a step goes T // steps "
            "timesteps down, whatever the next one is; here it goes to the next one"
        )
    if sampling.sampler == "dpmpp_3m_sde":
        notes.append(
            "the scheduler's solver_order is 3: here the third-order term is k-diffusion's, in "
            "which a constant has the opposite sign of that in diffusers"
        )
    return notes


def _check_class(stored: Mapping[str, Any], name: str) -> None:
    """Raises ValueError for a scheduler of which networks or algorithm are not built here."""
    if name.startswith("EDM") or "sigma_data" in stored:
        raise ValueError(
            f"the scheduler {name} is for a network trained in EDM's form (Playground 2.5), which "
            "is not supported"
        )
    if name == IPNDM:
        raise ValueError(
            f"the scheduler {name} is for a network trained on the noise table of Dance Diffusion, "
            "not on betas; to use its sampler, ask for ipndm"
        )
    if name.startswith("FlowMatch") and name not in FIELDS:
        flows = " and ".join(known for known in FIELDS if known.startswith("FlowMatch"))
        raise ValueError(
            f"the scheduler {name} is not supported; of the schedulers of flow models {flows} are. "
            "Its sampler can be asked for by name"
        )
    if name not in FIELDS:
        parse_sampler(name)  # says what it is, where it is another program's
        raise ValueError(f"the scheduler {name} is no class of diffusers that is supported")


def _check_numbers(values: Mapping[str, Any]) -> None:
    for field in NUMBERS:
        value = values.get(field, 0)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or (field in WHOLE and value != int(value)):
            kind = "a whole number" if field in WHOLE else "a number"
            raise ValueError(f"the scheduler's {field} is {value!r}; it must be {kind}")


def _is_default(field: str, value: Any) -> bool:
    """Whether a class would do the same without the field; clipping is the default of some only."""
    if field == "clip_sample":
        return not value
    return not value or value in [f[field] for f in FIELDS.values() if field in f]


def _schedule(values: Mapping[str, Any]) -> ScheduleConfig:
    schedule = ScheduleConfig(
        kind=_lookup(BETAS, values, "beta_schedule"),  # type: ignore[arg-type]
        beta_start=values["beta_start"],
        beta_end=values["beta_end"],
        times=int(values["num_train_timesteps"]),
        zero_terminal_snr=bool(values.get("rescale_betas_zero_snr", False)),
        predicts=_lookup(PREDICTS, values, "prediction_type"),  # type: ignore[arg-type]
    )
    if schedule.zero_terminal_snr and schedule.predicts == "noise":
        raise ValueError(
            "the scheduler's rescale_betas_zero_snr is True with the prediction_type 'epsilon': at "
            "pure noise the noise does not determine the picture; supported: v_prediction"
        )
    return schedule


def _sampling(values: Mapping[str, Any], others: Mapping[str, Any], sampler: str) -> SamplingConfig:
    """Sampler, spacing, ends and limits, from the fields of the class and from all others."""
    both = {**others, **values}
    spacing, between = _spacing(values, sampler)
    ending: Ending = "few" if both.get("lower_order_final", True) else "never"
    final = both.get("final_sigmas_type", "zero")
    if final not in ENDS:
        raise ValueError(
            f"the scheduler's final_sigmas_type is {final!r}; supported: {', '.join(ENDS)}"
        )
    if ending == "never" and sampler == "unipc" and final == "zero":
        raise ValueError(
            "the scheduler's lower_order_final is False with the final_sigmas_type 'zero', to "
            "which UniPC has no step of second order; supported: True"
        )
    quantile = float(both.get("dynamic_thresholding_ratio", 0.995))
    return SamplingConfig(
        sampler=sampler,
        spacing=spacing,
        offset=int(both.get("steps_offset", 0)),
        end="clean" if both.get("set_alpha_to_one", True) else "least",
        between=between,
        final=ENDS[final],
        ending="always" if both.get("euler_at_final") else ending,
        clip=float(both.get("clip_sample_range", 1.0)) if both.get("clip_sample") else 0.0,
        threshold=quantile if both.get("thresholding") else 0.0,
        threshold_most=float(both.get("sample_max_value", 1.0)),
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
        name = "FlowMatchLCMScheduler" if sampling.sampler == "lcm" else FLOW
        flow = {"_class_name": name, "num_train_timesteps": 1000, "shift": schedule.shift}
        return flow | {flag: True for flag, kind in SIGMAS.items() if kind == sampling.spacing}
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
        "num_train_timesteps": schedule.times,
        "prediction_type": kinds[schedule.predicts],
        "set_alpha_to_one": sampling.end == "clean",
        "skip_prk_steps": True,
        "steps_offset": sampling.offset,
        "trained_betas": None,
        **_limits(sampling),
        **own,
    }
    if schedule.zero_terminal_snr:
        stored["rescale_betas_zero_snr"] = True
    flags = [flag for flag, kind in SIGMAS.items() if kind == sampling.spacing]
    flags += [LU] if sampling.spacing == "lu" else []
    if sampling.spacing in TIMESTEP_SPACINGS:
        stored["timestep_spacing"] = sampling.spacing
    elif flags and flags[0] in FIELDS[name]:
        stored |= {"timestep_spacing": sampling.between or "linspace", flags[0]: True}
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
    if schedule.zero_terminal_snr and "rescale_betas_zero_snr" not in FIELDS[name]:
        name, own = "DDIMScheduler", {}
    if schedule.kind == "sigmoid":
        name, own = "DDPMScheduler", {}
    return name, own


def _limits(sampling: SamplingConfig) -> dict[str, Any]:
    """The fields of what is not the default of every class."""
    stored: dict[str, Any] = {"clip_sample": sampling.clip > 0}
    if sampling.clip:
        stored["clip_sample_range"] = sampling.clip
    if sampling.threshold:
        stored |= {"thresholding": True, "dynamic_thresholding_ratio": sampling.threshold}
        stored["sample_max_value"] = sampling.threshold_most
    if sampling.final == "least":
        stored["final_sigmas_type"] = "sigma_min"
    if sampling.ending != "few":
        stored["lower_order_final"] = sampling.ending == "always"
        stored["euler_at_final"] = sampling.ending == "always"
    elif "ending" in find_sampler(sampling.sampler).reads:
        stored["lower_order_final"] = True
    return stored


def _sampler(values: Mapping[str, Any], name: str) -> str:
    algorithm = values.get("algorithm_type", "")
    if name == "SASolverScheduler" and algorithm != "data_prediction":
        raise ValueError(
            f"the scheduler's algorithm_type is {algorithm!r}; supported for {name}: "
            "'data_prediction'"
        )
    variants = SOLVERS.get(name)
    if variants is None:
        return parse_sampler(name)[0]
    kind, replaced = values["solver_type"], REPLACED[name]
    algorithm = replaced.get("algorithm_type", {}).get(algorithm, algorithm)
    solver = Solver(algorithm, replaced["solver_type"].get(kind, kind), values["solver_order"])
    if solver not in variants:
        supported = ", ".join(" ".join(map(str, variant)).strip() for variant in variants)
        raise ValueError(
            f"the scheduler's algorithm_type, solver_type and solver_order are "
            f"{' '.join(map(str, solver))}; supported for {name}: {supported}"
        )
    return variants[solver]


def _spacing(
    values: Mapping[str, Any], sampler: str
) -> tuple[Kind, Literal["", "leading", "trailing"]]:
    """The spacing; and where it is over sigma, between which timesteps."""
    flags = [flag for flag in (*SIGMAS, LU) if values.get(flag)]
    if len(flags) > 1:
        raise ValueError(f"the scheduler's {' and '.join(flags)} are both set")
    times = values.get("timestep_spacing", "linspace")
    if times not in TIMESTEP_SPACINGS:
        raise ValueError(
            f"the scheduler's timestep_spacing is {times!r}; supported: "
            f"{', '.join(TIMESTEP_SPACINGS)}"
        )
    record = find_sampler(sampler)
    if flags:
        narrowed = record.diffusers == "sigmas" and times != "linspace"
        return (SIGMAS | {LU: "lu"})[flags[0]], times if narrowed else ""  # type: ignore[return-value]
    if record.own_spacing and "shift" not in values:
        return cast(Kind, record.own_spacing), ""
    return times, ""


def _lookup(names: Mapping[str, str], values: Mapping[str, Any], field: str) -> str:
    value = values[field]
    if value not in names:
        raise ValueError(f"the scheduler's {field} is {value!r}; supported: {', '.join(names)}")
    return names[value]

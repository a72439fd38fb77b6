"""Every sampler and spacing by name, with its aliases, cost and conventions. No torch.

The algorithms are in `samplers/`; `sampling.py` maps a name to its function.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

from triptych.diffusion.foreign_samplers import FOREIGN

Noise = Literal["none", "optional", "scaled", "fixed", "gamma"]
Setting = Literal["end", "final", "ending", "clip", "threshold"]
"""Of a model's scheduler configuration: where DDIM and PNDM end (set_alpha_to_one), where the
others do (final_sigmas_type), the order of the last steps, and how x0 is limited.
"""


@dataclass(frozen=True)
class Automatic1111:
    """How AUTOMATIC1111 uses a sampler."""

    spacing: str
    """What its schedule type Automatic is for this sampler."""
    fixed: bool = False
    """No other schedule type can be chosen."""
    discards_sigma_min: bool = False
    """The spacing has one level more, and its last one above 0 is left out."""


@dataclass(frozen=True)
class Sampler:
    """A sampler's names, cost and conventions."""

    name: str
    aliases: tuple[str, ...]
    """What AUTOMATIC1111 calls it, then the scheduler classes of diffusers."""
    order: int | None = None
    """Global order of the ODE solver; None for a sampler that always adds noise."""
    noise: Noise = "none"
    """Fresh noise in each step: `none`; `optional`, with eta above 0; `scaled` by eta, which is 1
    by default; a `fixed` amount, without eta; or as `gamma` says, TCD's eta, through the timesteps.
    """
    calls: int = 1
    """Calls of the denoiser in a step; PLMS needs one more in total."""
    batched: bool = True
    """False where the step sizes adapt to the picture: drawn in a batch it would be another one."""
    diffusers: Literal["sigmas", "betas", "solver"] = "sigmas"
    """How its class in diffusers reads a schedule: `sigmas` between timesteps as in k-diffusion;
    `betas` at integer timesteps; `solver`, integer timesteps without a call at the last one.
    """
    ends_at_least_noise: bool = False
    """In diffusers it ends at the least noise of the table, not at the clean picture."""
    reads: tuple[Setting, ...] = ()
    """The settings of a model's scheduler configuration that its class in diffusers follows."""
    own_spacing: str = ""
    """The one spacing over times that its class in diffusers has, whatever is configured."""
    automatic1111: Automatic1111 | None = None
    """None where AUTOMATIC1111 does not have it."""


_LINSPACE = Automatic1111("linspace")
_KARRAS = Automatic1111("karras")
_EXPONENTIAL = Automatic1111("exponential")
_LEADING = Automatic1111("leading", fixed=True)
_SOLVER: tuple[Setting, ...] = ("final", "ending", "threshold")

SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler(
            "ddim", ("DDIM", "DDIMScheduler", "DDIMParallelScheduler"),
            order=1, noise="optional", diffusers="betas", automatic1111=_LEADING,
            reads=("end", "clip", "threshold"),
        ),
        Sampler(
            "ddpm", ("DDPM", "DDPMScheduler", "DDPMParallelScheduler"),
            noise="scaled", diffusers="betas", reads=("clip", "threshold"),
        ),
        Sampler(
            "euler",
            (
                "Euler", "EulerDiscreteScheduler", "EDMEulerScheduler",
                "FlowMatchEulerDiscreteScheduler",
            ),
            order=1, automatic1111=_LINSPACE, reads=("final",),
        ),
        Sampler(
            "euler_ancestral", ("Euler a", "EulerAncestralDiscreteScheduler"),
            noise="scaled", automatic1111=_LINSPACE,
        ),
        Sampler(
            "heun", ("Heun", "HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
            order=2, calls=2, automatic1111=_LINSPACE, reads=("clip",),
        ),
        Sampler(
            "restart", ("Restart",),
            noise="fixed", calls=2, automatic1111=Automatic1111("karras", fixed=True),
        ),
        Sampler(
            "dpm_fast", ("DPM fast",),
            order=3, noise="optional", automatic1111=Automatic1111("exponential", fixed=True),
        ),
        Sampler(
            "dpm_adaptive", ("DPM adaptive",),
            order=3, noise="optional", batched=False,
            automatic1111=Automatic1111("exponential", fixed=True),
        ),
        Sampler(
            "dpm2", ("DPM2", "KDPM2DiscreteScheduler"),
            order=2, calls=2, automatic1111=Automatic1111("karras", discards_sigma_min=True),
        ),
        Sampler(
            "dpm2_ancestral", ("DPM2 a", "KDPM2AncestralDiscreteScheduler"),
            noise="scaled", calls=2, automatic1111=Automatic1111("karras", discards_sigma_min=True),
        ),
        Sampler("lms", ("LMS", "LMSDiscreteScheduler"), order=2, automatic1111=_LINSPACE),
        Sampler(
            "plms", ("PLMS", "PNDM", "PNDMScheduler"),
            order=2, diffusers="betas", automatic1111=_LEADING, reads=("end",),
        ),
        Sampler("ipndm", ("IPNDM", "IPNDMScheduler"), order=2),
        Sampler(
            "dpmpp_2s", ("DPM++ 2S", "DPMSolverSinglestepScheduler"), order=2, diffusers="solver",
            reads=_SOLVER, own_spacing="linspace",
        ),
        Sampler(
            "dpmpp_3s", ("DPM++ 3S",), order=3, diffusers="solver",
            reads=_SOLVER, own_spacing="linspace",
        ),
        Sampler(
            "dpmpp_2s_ancestral", ("DPM++ 2S a",), noise="scaled", calls=2, automatic1111=_KARRAS,
        ),
        Sampler(
            "dpmpp_2m",
            ("DPM++ 2M", "DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"),
            order=2, diffusers="solver", automatic1111=_KARRAS, reads=_SOLVER,
        ),
        Sampler(
            "dpmpp_sde", ("DPM++ SDE", "DPMSolverSDEScheduler"),
            noise="scaled", calls=2, automatic1111=_KARRAS,
        ),
        Sampler(
            "dpmpp_2m_sde", ("DPM++ 2M SDE",),
            noise="scaled", diffusers="solver", automatic1111=_EXPONENTIAL, reads=_SOLVER,
        ),
        Sampler(
            "dpmpp_2m_sde_heun", ("DPM++ 2M SDE Heun",),
            noise="scaled", diffusers="solver", automatic1111=_EXPONENTIAL, reads=_SOLVER,
        ),
        Sampler(
            "dpmpp_3m_sde", ("DPM++ 3M SDE",),
            noise="scaled", diffusers="solver", automatic1111=_EXPONENTIAL, reads=_SOLVER,
        ),
        Sampler(
            "sa_solver", ("SA-Solver", "SASolver", "SASolverScheduler"),
            noise="scaled", diffusers="solver", ends_at_least_noise=True,
            reads=("ending", "threshold"),
        ),
        Sampler(
            "unipc", ("UniPC", "UniPCMultistepScheduler"),
            order=3, diffusers="solver", automatic1111=_LEADING, reads=_SOLVER,
        ),
        Sampler(
            "deis", ("DEIS", "DEISMultistepScheduler"),
            order=2, diffusers="solver", ends_at_least_noise=True,
            reads=("ending", "threshold"),
        ),
        Sampler(
            "lcm", ("LCM", "LCMScheduler", "FlowMatchLCMScheduler"),
            noise="fixed", diffusers="betas", automatic1111=_LINSPACE,
            reads=("clip", "threshold"), own_spacing="lcm",
        ),
        Sampler(
            "tcd", ("TCD", "TCDScheduler"), noise="gamma", diffusers="betas", own_spacing="lcm",
        ),
    )
}  # fmt: skip

SPACINGS: dict[str, str] = {  # with AUTOMATIC1111's schedule type, where it has one
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "beta": "Beta",
    "align_your_steps": "Align Your Steps",
    "align_your_steps_sdxl": "",
    "kl_optimal": "KL Optimal",
    "simple": "Simple",
    "ddim_uniform": "DDIM",
    "turbo": "Turbo",
    "lu": "",
    "linspace": "Uniform",
    "leading": "",
    "trailing": "",
    "lcm": "",
    "beta_sigma": "",
}

SPACING_ALIASES = {  # what AUTOMATIC1111, Forge and ComfyUI also call them
    "normal": "linspace",  # even in time from the noisiest to the cleanest, which Uniform is too
    "sgmuniform": "sgm_uniform",
    "beta_scheduler": "beta",
}


def parse_spacing(text: str) -> str:
    """The name here of a spacing by our name, AUTOMATIC1111's "Schedule type", or ComfyUI's, in any
    case; spaces and underscores are the same.

    Raises:
        ValueError: there is none; suggests the nearest.
    """
    names = SPACING_ALIASES | {name: name for name in SPACINGS}
    known = names | {label.lower().replace(" ", "_"): name for name, label in SPACINGS.items()}
    written = "_".join(text.lower().replace("_", " ").split())
    if written and written in known:
        return known[written]
    close = difflib.get_close_matches(written, [name for name in known if name], n=1, cutoff=0.5)
    suggestion = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"no spacing {text!r}.{suggestion} There are: {', '.join(SPACINGS)}")


def find_sampler(name: str) -> Sampler:
    """The record of a sampler by our name of it.

    Raises:
        ValueError: there is none.
    """
    if name not in SAMPLERS:
        raise ValueError(f"no sampler {name!r}; there are {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def parse_sampler(text: str) -> tuple[str, str]:
    """The names here of a sampler and of its spacing suffix, which is empty where there is none.

    Takes our names, AUTOMATIC1111's and diffusers', in any case: "DPM++ 2M Karras" is
    ("dpmpp_2m", "karras").

    Raises:
        ValueError: an unknown sampler; suggests the nearest name, or says what a sampler of another
            program is and what to use instead.
    """
    names = {alias.lower(): s.name for s in SAMPLERS.values() for alias in (s.name, *s.aliases)}
    suffixes = {label.lower(): name for name, label in SPACINGS.items() if label}
    written = " ".join(text.lower().split())
    if written in names:
        return names[written], ""
    for suffix, spacing in suffixes.items():
        stem = written.removesuffix(f" {suffix}")
        if stem != written and stem in names:
            return names[stem], spacing
    for name, why in FOREIGN.items():
        if written in (name.lower(), name.lower().removesuffix("scheduler")):
            raise ValueError(f"the sampler {name} {why}")
    close = difflib.get_close_matches(written, names, n=1, cutoff=0.4)
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"no sampler {text!r}.{suggestion} There are: {', '.join(SAMPLERS)}")

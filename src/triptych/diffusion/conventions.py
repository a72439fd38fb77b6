"""Where a sampler of diffusers starts, what it walks and where it ends.

A sampler's name is the algorithm alone; the rest is the scheduler configuration of the model, but
each family of schedulers reads it in its own way. These are their readings, so that the same
settings give the same picture.
"""

from typing import Literal

from triptych.diffusion.samplers import Level
from triptych.diffusion.schedule import Discrete, Schedule
from triptych.diffusion.spacing import Kind, Spacing, levels, start_scale

SOLVERS = (
    "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "unipc", "deis",
)  # fmt: skip
"""They never ask at the cleanest level, and tell the network whole times."""
TABULAR = ("ddim", "ddpm", "plms", "lcm")
"""They walk the table of betas itself, to its first entry or to the clean picture."""


def diffusers_walk(
    schedule: Schedule,
    sampler: str,
    steps: int,
    kind: Kind,
    *,
    offset: int = 0,
    end: Literal["clean", "least"] = "clean",
) -> tuple[list[Level], float]:
    """The levels of a sampler, and what standard normal noise is multiplied with at the first.

    `offset` and `end` are steps_offset and set_alpha_to_one of a scheduler's configuration. Both
    mean something to a table of betas only.

    Raises:
        ValueError: the schedule has no such spacing, or not so many steps.
    """
    if not isinstance(schedule, Discrete):
        walked = levels(schedule, steps, Spacing(kind))
        return walked, start_scale(walked, "sigma")
    if sampler in TABULAR:
        # where the walk reaches time 0 by itself, its first entry is no further step
        least = end == "least" and (kind == "leading" and offset > 0)
        spacing = Spacing(kind, offset, True, end="least" if least else "clean")
        return levels(schedule, steps, spacing), 1.0
    if sampler in SOLVERS:
        last: Literal["clean", "least"] = "least" if sampler == "deis" else "clean"
        spacing = Spacing(kind, offset, True, include_cleanest=False, end=last)
        return levels(schedule, steps, spacing), 1.0
    walked = levels(schedule, steps, Spacing(kind, offset))
    return walked, start_scale(walked, "one" if kind == "leading" else "sigma")

"""The records of samplers against the classes of diffusers that they stand for."""

import inspect

import diffusers
import pytest

from triptych.diffusion.names import SAMPLERS

ARGUMENTS = {  # of the classes' constructors, by our names of them
    "end": "set_alpha_to_one", "final": "final_sigmas_type", "ending": "lower_order_final",
    "clip": "clip_sample", "threshold": "thresholding",
}  # fmt: skip
UNUSED = {"lcm": {"end"}, "tcd": {"end", "clip", "threshold"}}
"""Arguments that a class has and its steps do not look at."""
SAME_CLASS = {"dpmpp_3s": "dpmpp_2s", "dpmpp_2m_sde": "dpmpp_2m", "dpmpp_2m_sde_heun": "dpmpp_2m",
              "dpmpp_3m_sde": "dpmpp_2m"}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_reads_the_settings_that_its_class_has(name: str) -> None:
    named = [a for a in SAMPLERS[SAME_CLASS.get(name, name)].aliases if a.endswith("Scheduler")]
    first = next((alias for alias in named if not alias.startswith(("FlowMatch", "EDM"))), None)
    known = inspect.signature(getattr(diffusers, first)).parameters if first else {}
    expected = {ours for ours, theirs in ARGUMENTS.items() if theirs in known}
    assert set(SAMPLERS[name].reads) == expected - UNUSED.get(name, set())

"""Every sampler that AUTOMATIC1111 and diffusers have is known here, or refused with its reason."""

import importlib
import inspect
import pkgutil

import pytest

from triptych.diffusion.foreign_samplers import FOREIGN
from triptych.diffusion.names import SAMPLERS, parse_sampler

AUTOMATIC1111 = [
    "DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a", "DPM++ 3M SDE",
    "Euler a", "Euler", "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast", "DPM adaptive", "Restart",
    "DDIM", "DDIM CFG++", "PLMS", "UniPC", "LCM",
]  # fmt: skip
"""Its version 1.10."""


def diffusers_classes() -> list[str]:
    """Every class that steps, of every module of schedulers, retired ones included."""
    package = importlib.import_module("diffusers.schedulers")
    base = importlib.import_module("diffusers.schedulers.scheduling_utils").SchedulerMixin
    found = set()
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        try:
            members = vars(importlib.import_module(module.name))
        except ImportError:  # wants a package that is not installed
            continue
        for name, value in members.items():
            if inspect.isclass(value) and issubclass(value, base) and value is not base:
                found.add(name)
    return sorted(found)


@pytest.mark.parametrize("name", AUTOMATIC1111 + diffusers_classes())
def test_every_name_is_an_algorithm_or_has_a_reason(name) -> None:
    if name in FOREIGN:
        with pytest.raises(ValueError, match=r"^the sampler") as error:
            parse_sampler(name)
        said = str(error.value)
        assert name in said and "Did you mean" not in said
        assert any(word in said for word in SAMPLERS) or "mask" in said or "replaces it" in said
    else:
        ours, spacing = parse_sampler(name)
        assert ours in SAMPLERS and spacing == ""


def test_the_whole_list_was_read() -> None:
    assert len(diffusers_classes()) >= 45


def test_no_name_means_two_things() -> None:
    names = [n for s in SAMPLERS.values() for n in {s.name, *map(str.lower, s.aliases)}]
    assert len(set(names)) == len(names)
    assert not {name.lower() for name in FOREIGN} & set(names)


def test_a_class_is_known_without_its_last_word() -> None:
    with pytest.raises(ValueError, match="CogVideoX, a model of video"):
        parse_sampler("cogvideoxddim")

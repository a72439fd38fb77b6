"""Every SYSTEM record names modules that exist and have what the role asks of them."""

import pytest

from triptych.systems import SYSTEMS

ROLES = {
    "model": ("KINDS",),
    "load": ("recognise", "load_published"),
    "summary": ("summary",),
    "pipeline": ("run",),
    "report": ("evaluate",),
    "recipe": ("build",),
    "export": ("WRITERS",),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_modules_have_what_their_role_asks(name: str) -> None:
    system = SYSTEMS[name]
    roles = [role for role in ROLES if getattr(system, role)]
    assert roles
    for role in roles:
        module = system.module(role)
        assert [each for each in ROLES[role] if not hasattr(module, each)] == []
    if system.model:
        assert tuple(system.module("model").KINDS) == system.kinds


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_role_that_a_system_lacks_is_an_error(name: str) -> None:
    for role in ROLES:
        if not getattr(SYSTEMS[name], role):
            with pytest.raises(ValueError, match=f"has no {role}"):
                SYSTEMS[name].module(role)

"""`constraints.txt` is the lock: it has the version of every package that an installation takes."""

import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK = Path(__file__).parents[1] / "constraints.txt"
LEFT_OUT = {"torch", "setuptools"}  # one of several builds; of the environment
PINNED = re.compile(r"([\w.-]+)==(\S+)")


def needed(name: str, extras: set[str], found: dict[str, str]) -> dict[str, str]:
    """The installed version of a package's requirements, and of theirs."""
    for text in requires(name) or []:
        requirement = Requirement(text)
        wanted = extras or {""}
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in wanted
        ):
            continue
        package = canonicalize_name(requirement.name)
        if package in found and not requirement.extras:
            continue
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
        needed(package, requirement.extras, found)
    return found


def test_the_lock_is_what_is_installed() -> None:
    lines = [line for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    locked = {canonicalize_name(m[1]): m[2] for m in map(PINNED.fullmatch, lines) if m}
    assert len(locked) == len(lines), "every line of constraints.txt is NAME==VERSION"
    found = needed("triptych", {"dev"}, {})
    found = {n: v.split("+")[0] for n, v in found.items() if n not in LEFT_OUT | {"triptych"}}
    assert len(found) > 60
    assert {
        name: (locked.get(name), now) for name, now in found.items() if locked.get(name) != now
    } == {}

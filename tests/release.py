"""Checks a wheel and a source distribution as somebody meets them who has nothing else:
`make release`.

    python -m tests.release dist

The files are compared with the checkout: every module, the bundled models, the built page, the
size, the version. Then the wheel is installed into an environment of its own, and used from an
empty folder: it draws with bundled models and serves the studio.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import urllib.request
import venv
import zipfile
from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
MOST_BYTES = 95_000_000
"""Of a wheel."""
PAGE = "triptych/server/studio/index.html"
BUNDLED = "src/triptych/weights/bundled"
PORT = 7913


def main(folder: Path) -> int:
    """Returns the exit code; prints what is wrong."""
    wheels, archives = list(folder.glob("*.whl")), list(folder.glob("*.tar.gz"))
    if len(wheels) != 1 or len(archives) != 1:
        return _fail([f"{folder} has {len(wheels)} wheels and {len(archives)} source archives"])
    wheel, archive = wheels[0], archives[0]
    found = check_versions(wheel, archive) + check_wheel(wheel) + check_archive(archive)
    found += compare(wheel, archive)
    if found:
        return _fail(found)
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes")
    print(f"{archive.name}: {archive.stat().st_size:,} bytes")
    with tempfile.TemporaryDirectory() as fresh:
        use(wheel, Path(fresh))
    print("the wheel draws and serves by itself")
    return 0


def check_versions(wheel: Path, archive: Path) -> list[str]:
    """The version is the same everywhere, and the changelog has it."""
    number = version()
    where = {
        wheel.name: wheel.name.split("-")[1] == number,
        archive.name: archive.name == f"triptych-{number}.tar.gz",
        "CITATION.cff": f"\nversion: {number}\n" in (ROOT / "CITATION.cff").read_text(),
        "CHANGELOG.md": f"## [{number}] - " in (ROOT / "CHANGELOG.md").read_text(),
    }
    return [f"{name} is not of version {number}" for name, same in where.items() if not same]


def version() -> str:
    """That of pyproject.toml."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def check_wheel(wheel: Path) -> list[str]:
    """Every tracked file of the package and the built page with all that it names, and no more
    bytes than allowed.
    """
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
        page = opened.read(PAGE).decode() if PAGE in names else ""
    missing = [name for name in tracked("src/triptych") if name.removeprefix("src/") not in names]
    missing += [] if page else [PAGE]
    for asset in re.findall(r'(?:src|href)="/?\.?/?(assets/[^"]+)"', page):
        missing += [] if f"triptych/server/studio/{asset}" in names else [asset]
    wrong = [f"{wheel.name} has no {name}" for name in missing]
    if wheel.stat().st_size > MOST_BYTES:
        wrong.append(f"{wheel.name} has {wheel.stat().st_size:,} bytes: at most {MOST_BYTES:,}")
    return wrong


def check_archive(archive: Path) -> list[str]:
    """Every tracked file, and the built page: it installs without Node."""
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    missing = [name for name in [*tracked(), f"src/{PAGE}"] if name not in names]
    return [f"{archive.name} has no {name}" for name in missing]


def compare(wheel: Path, archive: Path) -> list[str]:
    """A wheel that is built of the source distribution has the files of the wheel."""
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(archive) as sources:
            sources.extractall(unpacked, filter="data")
        (project,) = Path(unpacked).iterdir()
        files = WheelBuilder(str(project)).recurse_included_files()
        built = {file.distribution_path for file in files}
    return [f"{name} is in one of wheel and source archive alone" for name in names ^ built]


def tracked(*folders: str) -> list[str]:
    """The files of the repository."""
    done = subprocess.run(
        ["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def use(wheel: Path, fresh: Path) -> None:
    """Install the wheel into an environment of its own; draw and serve from an empty folder.

    Raises:
        subprocess.CalledProcessError: a command failed.
        AssertionError: it did not do what it should.
    """
    venv.create(fresh / "venv", with_pip=True)
    bin_, work = fresh / "venv" / "bin", fresh / "work"
    work.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"XDG_CACHE_HOME": str(fresh / "cache"), "HF_HUB_OFFLINE": "1"}

    def call(*words: str) -> str:
        done = subprocess.run(
            [str(bin_ / words[0]), *words[1:]], cwd=work, env=environment, text=True,
            stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        return done.stdout

    call("pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"),
         f"{wheel}[server]")  # fmt: skip
    place = call("python", "-c", "import triptych; print(triptych.__file__)").strip()
    assert place.startswith(str(fresh)), f"{place} was imported"
    there = {json.loads(line)["name"] for line in call("triptych", "models", "--json").splitlines()}
    bundled = {path.parent.name for path in (ROOT / BUNDLED).glob("*/card.json")}
    assert bundled <= there, f"{bundled - there} cannot be named"
    for words in (["--label", "7", "--n", "2"], ["red apple", "--n", "1"]):
        said = json.loads(call("triptych", "generate", *words, "--seed", "0", "--json"))
        for picture in said["pictures"]:
            assert (work / picture["file"]).stat().st_size > 100
    serve(bin_ / "triptych", work, environment)


def serve(command: Path, work: Path, environment: dict[str, str]) -> None:
    """Start the service; its page and a script of the page must come."""
    words = [str(command), "serve", "--port", str(PORT), "--home", str(work / "home")]
    process = subprocess.Popen(words, cwd=work, env=environment)
    try:
        page = _fetch("/", patience=120)
        script = re.search(r'src="\.?(/?assets/[^"]+\.js)"', page)
        assert script, "the page names no script"
        assert len(_fetch("/" + script[1].lstrip("/"))) > 10_000
    finally:
        process.terminate()
        process.wait(60)


def _fetch(path: str, patience: float = 1.0) -> str:
    until = time.monotonic() + patience
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=30) as answer:
                return str(answer.read().decode())
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def _fail(wrong: list[str]) -> int:
    for line in wrong:
        print(line, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))

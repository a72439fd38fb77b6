"""What `make release` refuses. Nothing is built: archives of empty files stand for real ones."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests import release

PAGE = '<script type="module" src="./assets/index-1.js"></script>'
EMOJI = "triptych/weights/bundled/emoji/model.safetensors"


def wheel(folder: Path, without: str = "", version: str = "0.2.0") -> Path:
    """A wheel with every file that it should have but one."""
    names = [name.removeprefix("src/") for name in release.tracked("src/triptych")]
    path = folder / f"triptych-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in {*names, release.PAGE, "triptych/server/studio/assets/index-1.js"} - {without}:
            archive.writestr(name, PAGE if name == release.PAGE else "")
    return path


def source(folder: Path, without: str = "", version: str = "0.2.0") -> Path:
    """The same of a source distribution."""
    path = folder / f"triptych-{version}.tar.gz"
    with tarfile.open(path, "w") as archive:
        for name in {*release.tracked(), f"src/{release.PAGE}"} - {without}:
            archive.addfile(tarfile.TarInfo(f"triptych-{version}/{name}"), io.BytesIO())
    return path


def test_a_complete_wheel_and_source_distribution_pass(tmp_path: Path) -> None:
    assert release.check_wheel(wheel(tmp_path)) == []
    assert release.check_archive(source(tmp_path)) == []


@pytest.mark.parametrize(
    ("without", "named"),
    [
        (EMOJI, f"has no src/{EMOJI}"),
        (release.PAGE, f"has no {release.PAGE}"),
        ("triptych/server/studio/assets/index-1.js", "has no assets/index-1.js"),
        ("triptych/cli/main.py", "has no src/triptych/cli/main.py"),
    ],
)
def test_a_wheel_without_a_file_is_refused(without: str, named: str, tmp_path: Path) -> None:
    (wrong,) = release.check_wheel(wheel(tmp_path, without))
    assert wrong.endswith(named)


def test_a_source_distribution_without_the_page_is_refused(tmp_path: Path) -> None:
    (wrong,) = release.check_archive(source(tmp_path, f"src/{release.PAGE}"))
    assert wrong.endswith(f"has no src/{release.PAGE}")


def test_a_wheel_that_is_too_large_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(release, "MOST_BYTES", 1000)
    (wrong,) = release.check_wheel(wheel(tmp_path))
    assert "at most 1,000" in wrong


def test_versions_agree_with_citation_and_changelog(tmp_path: Path) -> None:
    number = release.version()
    built = tmp_path / f"triptych-{number}-py3-none-any.whl", tmp_path / f"triptych-{number}.tar.gz"
    assert release.check_versions(*built) == []
    old = tmp_path / "triptych-0.1.0-py3-none-any.whl", tmp_path / "triptych-0.1.0.tar.gz"
    assert len(release.check_versions(*old)) == 2


def test_both_must_build_the_same_wheel(tmp_path: Path) -> None:
    """Of a project with our settings and two modules, one of which the wheel has not."""
    archive, wheel = tmp_path / "triptych-1.tar.gz", tmp_path / "triptych-1-py3-none-any.whl"
    with tarfile.open(archive, "w:gz") as files:
        for name in ("pyproject.toml", ".gitignore", "README.md", "LICENSE"):
            files.add(release.ROOT / name, f"triptych-1/{name}")
        for name in ("__init__.py", "new.py", "server/studio/index.html"):
            files.addfile(tarfile.TarInfo(f"triptych-1/src/triptych/{name}"), io.BytesIO())
    with zipfile.ZipFile(wheel, "w") as files:
        for name in ("__init__.py", "server/studio/index.html"):
            files.writestr(f"triptych/{name}", "")
    (wrong,) = release.compare(wheel, archive)
    assert wrong.startswith("triptych/new.py is in one")

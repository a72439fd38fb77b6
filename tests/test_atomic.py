"""Files and folders appear complete or not at all; a lock belongs to one process."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.faults.interruption import Disk, deaths, dies
from triptych.atomic import (
    lock_folder,
    make_parents,
    remove_temporary,
    replace_file,
    replace_folder,
)


def read(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_folders_made_for_what_then_fails_are_removed_again(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "c"
    for opened in (make_parents, replace_folder):
        with pytest.raises(ValueError, match="no"), opened(target):
            raise ValueError("no")
        assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no"), make_parents(target):
        (tmp_path / "a" / "other").touch()
        raise ValueError("no")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["a", "a/other"]


def test_a_file_that_fails_leaves_the_old_one_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replace_file(path) as temporary:
        temporary.write_text("new")
        _ = 1 / 0
    with pytest.raises(OSError, match=rf"No space left.*{path}'"), replace_file(path) as temporary:
        temporary.write_text("new")
        raise OSError(28, "No space left on device")
    assert read(tmp_path) == {"file": "old"}
    with replace_file(path) as temporary:
        temporary.write_text("new")
    assert read(tmp_path) == {"file": "new"}


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "below" / "folder"
    for content in ("old", "new"):
        with replace_folder(folder) as temporary:
            (temporary / "file").write_text(content)
        assert read(tmp_path) == {"below/folder/file": content}
    with pytest.raises(ZeroDivisionError), replace_folder(folder) as temporary:
        (temporary / "file").write_text("newer")
        _ = 1 / 0
    assert read(tmp_path) == {"below/folder/file": "new"}


def test_a_folder_is_there_under_one_of_two_names_whenever_it_is_interrupted(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "folder"

    def replace(content: str) -> None:
        with replace_folder(folder) as temporary:
            (temporary / "file").write_text(content)

    replace("old")
    points = deaths(lambda: replace("new"), tmp_path)
    for at, how in points:
        if how == "cut":  # the test's file is not synced
            continue
        for path in tmp_path.glob("folder*"):
            shutil.rmtree(path)
        replace("old")
        dies(lambda: replace("new"), Disk(tmp_path, at, how))
        (one,) = [folder] if folder.exists() else tmp_path.glob("folder-old-*")
        assert (one / "file").read_text() in ("old", "new")
        remove_temporary(tmp_path)
        assert not list(tmp_path.glob("*.tmp-*"))
    assert len(points) > 5


def test_what_safetensors_leaves_when_it_is_killed_is_removed(tmp_path: Path) -> None:
    """Its own temporary files, seen after one of 200 kills, and nothing that only looks alike."""
    kept = {"model.safetensors", ".tmp", ".tmp-notes.txt", "notes.tmp", ".tmp6oLT7O.txt"}
    for name in (*kept, ".tmp6oLT7O"):
        (tmp_path / name).touch()
    remove_temporary(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept - {".tmp-notes.txt"}


def test_a_lock_is_refused_or_waited_for(tmp_path: Path) -> None:
    order: list[str] = []

    def wait() -> None:
        with lock_folder(tmp_path) as waited:
            order.append(f"second {waited}")

    with lock_folder(tmp_path) as waited:
        assert not waited
        refused = pytest.raises(RuntimeError, match=f"in use by process {os.getpid()}.*or go away")
        with refused, lock_folder(tmp_path, instead="go away"):
            pass
        second = threading.Thread(target=wait)
        second.start()
        order.append("first")
    second.join()
    assert order[0] == "first" and order[1].startswith("second")


def test_a_generator_that_holds_a_lock_may_be_closed_by_another_thread(tmp_path: Path) -> None:
    def hold():
        with lock_folder(tmp_path):
            yield

    holder = hold()
    next(holder)
    closer = threading.Thread(target=holder.close)
    closer.start()
    closer.join()
    with lock_folder(tmp_path, instead="go away"):
        pass

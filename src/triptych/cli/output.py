"""What a command prints: messages, progress bars, previews of pictures."""

import errno
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress
    from rich.text import Text

    from triptych.systems.stable_diffusion.pipeline import Drawing

WIDTH = 40  # characters of a preview in a terminal
EVERY = 0.5  # seconds between two previews
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
NUMBERED = re.compile(r"(\d{4,9})-\d")  # how the names of numbered pictures begin
SKIPPED = 5  # pictures that could not be read and are listed


class UsageError(Exception):
    """A command line that cannot be carried out: its text is one sentence for people."""


class Step(Protocol):
    """An item of work that knows the share that is done, 0 to 1."""

    @property
    def done(self) -> float: ...


AnyStep = TypeVar("AnyStep", bound=Step)


def say(*lines: str) -> None:
    """Print messages to stderr; stdout belongs to data."""
    for line in lines:
        print(printable(line), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Without the control characters that a file name could send to a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def require_folder(flag: str, folder: Path) -> None:
    """Check, before the work, that a folder for results exists or can be made.

    Raises:
        UsageError: the path, or a part of it, is a file.
        PermissionError: it is a folder that cannot be written.
    """
    there = next(part for part in (folder, *folder.parents) if os.path.lexists(part))
    if not there.is_dir():
        below = f": {there} is a file" if there != folder else " is a file"
        raise UsageError(f"{flag} {folder}{below}; give a folder, new or existing")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "is not writable", str(there))


def require_file(flag: str, file: Path, endings: Collection[str] = ()) -> None:
    """Check, before the work, that a file can be written, and its ending.

    Raises:
        UsageError: the path is a folder, a part of it is a file, or it ends otherwise.
        PermissionError: its folder cannot be written.
    """
    if endings and file.suffix.lower() not in endings:
        *others, last = endings
        listed = f"{', '.join(others)} or {last}" if others else last
        raise UsageError(f"{flag} {file} should end in {listed}")
    if file.is_dir():
        raise UsageError(f"{flag} {file} is a folder; give the name of a file")
    require_folder(flag, file.parent)


def next_number(folder: Path) -> int:
    """The number of the next picture of a folder: one above those there, such as 0012-7.png."""
    names = [path.name for path in folder.glob("*")]
    return max((int(m[1]) + 1 for m in map(NUMBERED.match, names) if m), default=0)


def free_path(path: Path) -> Path:
    """The path; where it exists, the first of NAME-2.png, NAME-3.png, ... that does not."""
    numbered = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return next(one for one in chain([path], numbered) if not one.exists())


def say_skipped(skipped: Mapping[str, str]) -> None:
    """Print the first pictures that could not be read, and the reasons."""
    for name, reason in list(skipped.items())[:SKIPPED]:
        say(f"  skipped {name}: {reason}")
    if (more := len(skipped) - SKIPPED) > 0:
        say(f"  and {more:,} more pictures that could not be read (--json lists all)")


def finish(work: Iterator[AnyStep], label: Callable[[AnyStep], str], lines: int = 0) -> AnyStep:
    """Run to the last item under a progress bar; not on a terminal, print so many lines on the way.

    `label` says of an item what has been done.
    """
    first, printed = next(work), 0
    item = first
    if sys.stderr.isatty() and first.done < 1:
        with bar() as progress:
            task = progress.add_task(label(first), total=1.0)
            for item in work:
                progress.update(task, completed=item.done, description=label(item))
        return item
    for item in chain([first], work):
        if int(lines * item.done) > printed and item.done < 1:
            printed = int(lines * item.done)
            say(f"  {item.done:.0%}: {label(item)}")
    return item


def bar(*columns: Any, transient: bool = True) -> "Progress":
    """A progress bar on stderr: by default the share that is done, a label and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    share = TextColumn("{task.percentage:3.0f} %"), BarColumn(24)
    columns = columns or (*share, TextColumn("{task.description}"), TimeRemainingColumn())
    console = Console(stderr=True)
    disable = not console.is_terminal
    return Progress(
        *columns, console=console, transient=transient, disable=disable, refresh_per_second=4
    )


def watch(
    work: "Iterator[Drawing]", project: "Callable[[Drawing], np.ndarray | None]", file: Path | None
) -> "Iterator[Drawing]":
    """The same items, with a progress bar and a small preview of each on a terminal. `file` is
    rewritten with the previews, which `project` makes of the items.
    """
    terminal = sys.stderr.isatty()
    if not terminal and file is None:
        yield from work
        return
    from rich.console import Console, Group
    from rich.live import Live

    from triptych.vision.images import save_picture

    progress = bar()
    task = progress.add_task("", total=1.0)
    last = -EVERY
    console = Console(stderr=True, quiet=not terminal)
    with Live(progress, console=console, transient=True, refresh_per_second=4) as live:
        for item in work:
            count = f"{len(item.pictures)} pictures"
            progress.update(task, completed=item.done, description=count)
            if time.monotonic() - last >= EVERY and (picture := project(item)) is not None:
                last = time.monotonic()
                if file is not None:
                    save_picture(file, picture)
                if terminal:
                    live.update(Group(progress, blocks(picture)))
            yield item


def blocks(picture: "np.ndarray") -> "Text":
    """A picture as half-block characters: upper pixels as their colour, lower as background."""
    import numpy as np
    from PIL import Image
    from rich.text import Text

    height, width = picture.shape[:2]
    rows = max(2, round(WIDTH * height / width / 2) * 2)
    image = Image.fromarray(picture if picture.shape[2] == 3 else picture[:, :, 0]).convert("RGB")
    small = np.asarray(image.resize((WIDTH, rows)))
    text = Text()
    for upper, lower in zip(small[::2].tolist(), small[1::2].tolist(), strict=True):
        for above, below in zip(upper, lower, strict=True):
            style = "rgb({},{},{}) on rgb({},{},{})".format(*above, *below)
            text.append("\N{UPPER HALF BLOCK}", style)
        text.append("\n")
    return text

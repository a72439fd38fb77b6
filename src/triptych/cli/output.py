"""What a command prints: messages, progress bars, previews of pictures."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress
    from rich.text import Text

    from triptych.systems.stable_diffusion.pipeline import Drawing

WIDTH = 40  # characters of a preview in a terminal
EVERY = 0.5  # seconds between two previews
PAUSE = 10.0  # seconds between two lines of progress
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


def counted(number: int, noun: str) -> str:
    """`1 picture`, `2,000 pictures`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def printable(text: str) -> str:
    """Without the control characters that a file name could send to a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)


def say_skipped(skipped: Mapping[str, str]) -> None:
    """Print the first pictures that could not be read, and the reasons."""
    for name, reason in list(skipped.items())[:SKIPPED]:
        say(f"  skipped {name}: {reason}")
    if (more := len(skipped) - SKIPPED) > 0:
        say(f"  and {more:,} more pictures that could not be read (--json lists all)")


class Lines:
    """Progress without a terminal: at most a line every ten seconds, with what a bar shows."""

    def __init__(self, *, at_once: bool = False, say: Callable[..., None] = say) -> None:
        """With `at_once` there is a line at the first call, else at the first after ten seconds."""
        self.say = say
        self.began = time.monotonic()
        self.last = -PAUSE if at_once else 0.0  # seconds from the beginning to the last line
        self.start: float | None = None

    def show(self, done: float, text: str) -> None:
        """`done` is the share of the work, 0 to 1; what was done before the first call takes no
        part in the estimate of the time left.
        """
        passed = time.monotonic() - self.began
        if self.start is None:
            self.start, self.began, passed = done, time.monotonic(), 0.0
        if passed - self.last < PAUSE or done >= 1:
            return
        self.last = passed
        rate = (done - self.start) / passed if passed > 0 else 0.0
        left = f", {timedelta(seconds=round((1 - done) / rate))} left" if rate > 0 else ""
        self.say(f"  {done:.0%}{left}: {text}" if text else f"  {done:.0%}{left}")


def finish(work: Iterator[AnyStep], label: Callable[[AnyStep], str]) -> AnyStep:
    """Run to the last item under a progress bar, or with lines where there is no terminal.

    `label` says of an item what has been done.
    """
    item = first = next(work)
    if sys.stderr.isatty() and first.done < 1:
        with bar() as progress:
            task = progress.add_task(label(first), total=1.0)
            for item in work:
                progress.update(task, completed=item.done, description=label(item))
        return item
    lines = Lines()
    for item in chain([first], work):
        lines.show(item.done, label(item))
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
    terminal, lines = sys.stderr.isatty(), Lines()
    if not terminal and file is None:
        for item in work:
            lines.show(item.done, f"{len(item.pictures)} pictures")
            yield item
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
            if not terminal:
                lines.show(item.done, count)
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

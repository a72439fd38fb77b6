"""A bar for work that comes step by step, with a picture of what is being made."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from rich.progress import Progress
    from rich.text import Text

    from triptych.systems.stable_diffusion.pipeline import Drawing

WIDTH = 40  # characters of a preview in a terminal
EVERY = 0.5  # seconds between two previews
Work = TypeVar("Work")


def bar() -> "Progress":
    """The share that is done, how many pictures are there, and the time that is left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.percentage:3.0f} %"),
        BarColumn(24),
        TextColumn("{task.fields[drawn]} pictures"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def watched(
    work: "Iterator[Drawing]", look: "Callable[[Drawing], np.ndarray | None]", file: Path | None
) -> "Iterator[Drawing]":
    """The same items, shown as they pass: on a terminal a bar above a small picture in coloured
    blocks, and in `file`, where there is one, the picture itself, rewritten.
    """
    terminal = sys.stderr.isatty()
    if not terminal and file is None:
        yield from work
        return
    from rich.console import Console, Group
    from rich.live import Live

    from triptych.vision.images import save_picture

    progress = bar()
    task = progress.add_task("", total=1.0, drawn=0)
    last = -EVERY
    console = Console(stderr=True, quiet=not terminal)
    with Live(progress, console=console, transient=True, refresh_per_second=4) as live:
        for item in work:
            progress.update(task, completed=item.done, drawn=len(item.pictures))
            if time.monotonic() - last >= EVERY and (picture := look(item)) is not None:
                last = time.monotonic()
                if file is not None:
                    save_picture(file, picture)
                if terminal:
                    live.update(Group(progress, blocks(picture)))
            yield item


def blocks(picture: "np.ndarray") -> "Text":
    """A picture as characters, each of two pixels: the upper in its own colour, on the lower."""
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

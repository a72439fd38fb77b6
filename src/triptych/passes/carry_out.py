"""A whole pass: planned or found, computed, and entered part by part."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triptych.atomic import lock_folder, remove_temporary
from triptych.data.disk.parquet import require_pyarrow
from triptych.passes.manifest import Manifest
from triptych.passes.outputs import Failed
from triptych.passes.plan import write_or_read_plan
from triptych.passes.settings import Pass
from triptych.passes.workers import Order, compute_parts


@dataclass(frozen=True)
class Progress:
    """How far a pass is."""

    parts: int
    """Done, those of earlier runs included."""
    total: int
    rows: int
    errors: int
    """Rows without a result."""
    found: int
    """Parts that were done when this run began."""
    lost: int
    """Parts whose file was gone or cut short, and that are computed again."""
    failed: tuple[str, ...] = ()
    """Why the input of some parts could not be read."""

    @property
    def done(self) -> float:
        """The share of the parts."""
        return (self.parts + len(self.failed)) / self.total


def carry_out(request: Any, options: Pass) -> Iterator[Progress]:
    """Compute what is not there yet; yields at the start and after each part.

    It may be killed at any moment; called again with the same request it does the rest. A part
    whose input cannot be read is left out, and said.

    Raises:
        ValueError: nothing to read, another pass in the folder, or another model than before.
        RuntimeError: another process works in the folder; or processes are killed again and again.
        OSError: the result cannot be written.
    """
    require_pyarrow()
    folder = Path(options.out)
    with lock_folder(folder, instead="give another --out"):
        slices = write_or_read_plan(request, options, folder)
        remove_temporary(folder)
        manifest = Manifest(folder)
        there = manifest.done.values()
        rows, errors = sum(each.rows for each in there), sum(each.errors for each in there)
        progress = Progress(len(there), len(slices), rows, errors, len(there), len(manifest.lost))
        yield progress
        left = [pair for pair in enumerate(slices) if pair[0] not in manifest.done]
        if not left:
            return
        for outcome in compute_parts(Order(request, options), left):
            if isinstance(outcome, Failed):
                progress = replace(progress, failed=(*progress.failed, outcome.reason))
            else:
                manifest.enter(outcome)
                progress = replace(
                    progress,
                    parts=progress.parts + 1,
                    rows=progress.rows + outcome.rows,
                    errors=progress.errors + outcome.errors,
                )
            yield progress

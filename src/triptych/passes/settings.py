"""The options of a pass. No torch."""

from dataclasses import dataclass
from typing import Literal

On = Literal["here", "processes", "ray"]
HERE = "the row"
"""In place of the picture or the prompt of a request, which comes from the input."""
MOST_ROWS = 1_000_000


@dataclass(frozen=True)
class Pass:
    """What a pass reads, where it writes, and who computes."""

    batch: str = ""
    """Folder, tars such as pictures-{000..099}.tar, Parquet, JSONL or .txt; a path, or a URL of
    fsspec such as s3://bucket/pictures.
    """
    out: str = ""
    """Folder of the result: Parquet, or tars of pictures, in parts, and manifest.jsonl."""
    on: On = "here"
    """here: in this process. processes: in `workers` processes. ray: on a Ray cluster, or on this
    machine if there is none.
    """
    workers: int = 2
    """Processes, or actors of Ray, that hold the model."""
    part_size: int = 1000
    """Rows of a part, which is what a stopped pass may have to compute again; a tar is one part."""
    columns: tuple[str, ...] = ()
    """Columns of Parquet and JSONL to write beside the result."""

    def __post_init__(self) -> None:
        if not self.batch or not self.out:
            raise ValueError("give an input and a folder: --batch INPUT --out DIR")
        if "://" in self.out:
            raise ValueError(
                f"--out {self.out}: parts are renamed once they are complete, which needs a folder "
                "of a file system, not a URL"
            )
        if not 1 <= self.workers <= 10_000:
            raise ValueError(f"--workers is 1 to 10000, not {self.workers}")
        if not 1 <= self.part_size <= MOST_ROWS:
            raise ValueError(f"--part-size is 1 to {MOST_ROWS:,} rows, not {self.part_size}")

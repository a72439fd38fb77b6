"""The request for a search among the pictures of a folder."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Search:
    """Find pictures of a folder by texts, by pictures, or by sums and differences of both.

    A text or picture written as (it:0.5) counts half.
    """

    folder: str
    """The pictures, in any depth of subfolders."""
    text: tuple[str, ...] = ()
    """What the pictures show."""
    image: tuple[str, ...] = ()
    """Picture files that they are like."""
    minus: tuple[str, ...] = ()
    """Texts that lead away."""
    minus_image: tuple[str, ...] = ()
    """Picture files that lead away."""
    model: str = "runs/clip"
    """A CLIP or SigLIP: a run folder, a published checkpoint, or OWNER/NAME on the hub."""
    k: int = 10
    """How many pictures to find."""
    duplicates: float | None = None
    """Instead: groups of pictures whose cosine is at least this, such as 0.95."""
    index: str = ""
    """A folder for the vectors, which are computed once; empty is one in the user's cache."""
    backend: Literal["auto", "exact", "faiss"] = "auto"
    """auto is exact up to 300,000 pictures; beyond, faiss where it is installed."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= 100_000:
            raise ValueError(f"k must be 1 to 100000, not {self.k}")
        if self.duplicates is not None and not 0 < self.duplicates <= 1:
            raise ValueError(f"duplicates is a cosine above 0, at most 1, not {self.duplicates}")
        asked = self.text or self.image or self.minus or self.minus_image
        if self.duplicates is not None and asked:
            raise ValueError("duplicates are looked for without a query: leave out one of them")
        if asked and not (self.text or self.image):
            raise ValueError("a query only leads away: give something to look for, too")

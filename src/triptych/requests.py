"""Everything one can ask of the package, on one page.

A request is a Python argument, a set of command-line flags, a JSON body, and the record stored
inside its result. This file imports nothing heavy, so `--help` is quick.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassToImage:
    """Generate pictures of a class, with attributes, that complete one, or of nothing special."""

    model: str = "runs/demo"
    """A run folder."""
    label: str = ""
    """A class by its name or number; empty takes every class in turn."""
    attributes: tuple[str, ...] = ()
    """Attributes that the pictures have, by name."""
    vector: tuple[float, ...] = ()
    """One number per continuous condition, in the order of the model's columns."""
    image: str = ""
    """A picture file whose visible quadrants the model completes."""
    n: int = 10
    """How many pictures."""
    seed: int | None = None
    """Picture i uses seed + i. None draws one, and says which."""
    truncation: float = 0.0
    """Above 0, no number of the noise exceeds it: more typical, less varied pictures."""

    def __post_init__(self) -> None:
        if not 1 <= self.n <= 100_000:
            raise ValueError(f"n must be 1 to 100000, not {self.n}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be 0 to 2**63 - 1, not {self.seed}")
        if not 0 <= self.truncation < float("inf"):
            raise ValueError(f"truncation must be 0 (none) or more, not {self.truncation}")

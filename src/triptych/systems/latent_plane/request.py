"""The request for pictures of points on a plane of latent codes. No torch."""

import math
from dataclasses import dataclass

from triptych.fields import set_fields
from triptych.given import ModelName, Words, take_text

MOST_POINTS = 1024
FARTHEST = 8.0
"""In standard deviations of the latent code: no training has seen a code beyond that."""


@dataclass(frozen=True)
class LatentPlane:
    """Draw points on the plane of latent codes on which pictures change most."""

    model: ModelName = "digits-cvae"
    """A conditional VAE or GAN: a run folder, or a bundled model."""
    label: Words = ""
    """The class of all pictures, by name or number; empty: the first one."""
    points: tuple[tuple[float, float], ...] = ()
    """Points of the plane, each two numbers in standard deviations. Default: a grid of `side` by
    `side` points at equal steps of probability, row by row from the top left.
    """
    side: int = 9
    """Points along a side of that grid."""

    def __post_init__(self) -> None:
        set_fields(self, label=take_text("label", self.label))
        if not 1 <= self.side**2 <= MOST_POINTS or self.side < 1:
            raise ValueError(f"side must be 1 to {math.isqrt(MOST_POINTS)}, not {self.side}")
        if len(self.points) > MOST_POINTS:
            raise ValueError(f"points must be at most {MOST_POINTS:,}, not {len(self.points):,}")
        for point in self.points:
            if len(point) != 2 or not all(abs(number) <= FARTHEST for number in point):
                raise ValueError(
                    f"points are two numbers each, -{FARTHEST:g} to {FARTHEST:g}, not {point}"
                )

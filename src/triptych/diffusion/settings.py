"""Checks that every request for pictures has to pass. No torch."""

from typing import Any

from triptych.diffusion.names import SPACINGS, parse_sampler

MOST_PICTURES = 100_000  # of one request


def check_sampling(request: Any) -> None:
    """Raises a ValueError for a field of a request for pictures that is out of range: n, seed,
    guidance, rescale, steps, sampler or spacing.
    """
    if not 1 <= request.n <= MOST_PICTURES:
        raise ValueError(f"n must be 1 to {MOST_PICTURES}, not {request.n}")
    check_seed("seed", request.seed)
    if request.guidance is not None and not 0 <= request.guidance <= 100:
        raise ValueError(f"guidance must be 0 to 100, not {request.guidance}")
    if not 0 <= request.rescale <= 1:
        raise ValueError(f"rescale is a share, 0 to 1, not {request.rescale}")
    if not 0 <= request.steps <= 1000:
        raise ValueError(f"steps must be 1 to 1000, or 0 for the model's, not {request.steps}")
    if request.sampler:
        parse_sampler(request.sampler)
    if request.spacing and request.spacing not in SPACINGS:
        raise ValueError(f"no spacing {request.spacing!r}; there are: {', '.join(SPACINGS)}")


def check_seed(name: str, seed: int | None) -> None:
    if seed is not None and not 0 <= seed < 2**63:
        raise ValueError(f"{name} must be 0 to 2**63 - 1, not {seed}")

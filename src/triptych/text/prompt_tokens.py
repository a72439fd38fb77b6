"""A prompt as tokens, for people."""

from collections.abc import Sequence
from typing import NamedTuple

from triptych.text.tokenizer import Tokenizer


class SpelledToken(NamedTuple):
    """A token for people."""

    text: str
    token: int
    weight: float


class PromptTokens(NamedTuple):
    """A prompt as a model reads it."""

    windows: list[list[SpelledToken]]
    limit: int
    """Tokens of a window."""
    cut: str = ""
    """The end of the prompt, where it is not read."""
    notes: tuple[str, ...] = ()


def spell(
    tokenizer: Tokenizer, row: Sequence[int], weights: Sequence[float] = ()
) -> list[SpelledToken]:
    """The tokens of a row of `encode`, without start, end and padding."""
    config = tokenizer.config
    first = int(config.start is not None)
    end = config.pad if config.end is None else config.end
    last = next((at for at, token in enumerate(row) if at >= first and token == end), len(row))
    return [
        SpelledToken(
            tokenizer.decode([[token]])[0] or tokenizer.name(token),
            token,
            weights[at] if weights else 1.0,
        )
        for at, token in enumerate(row[first:last], first)
    ]

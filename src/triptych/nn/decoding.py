"""One token after another, for every model that predicts the next one: of words or of other codes.

The loop knows no tokenizer and no model: it gets the logits of the first new token and a function
that turns the tokens just chosen into the next logits, most of the time by a `triptych.nn.cache`.

Dimensions: B rows, V vocabulary, N candidates.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from triptych import runtime

PANEL = 64
"""Scores of which the maximum is taken at a time."""
Next = Callable[[Int64[Tensor, " B"]], Float[Tensor, "B V"]]
"""From the tokens just chosen, one for each row, to the logits of the tokens after them."""
Grammar = Callable[[int, Sequence[int], Float[Tensor, " V"]], Bool[Tensor, " V"] | None]
"""From a row, what was generated in it so far, and the logits of what follows, to the tokens that
may follow; None: all.
"""
Stop = Callable[[int, int], bool]
"""Called once with every row and its new token, in order; whether the row ends with it."""
Reason = Literal["", "end", "stop", "limit"]
"""Why a row ends with this token: it is an end token, the caller stopped, no more are allowed."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen, in this order: penalty, temperature, top k, top p."""

    temperature: float = 0.0
    """0 takes the most likely token; 1 draws from the model's own probabilities."""
    top_k: int = 0
    """Draws from this many of the most likely tokens; 0: from all."""
    top_p: float = 1.0
    """Draws from the fewest tokens that have this probability together (arXiv:1904.09751)."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that occurred already, where positive, else multiplies them
    (arXiv:1909.05858).
    """
    seed: int = 0
    """Row i draws from a generator of its own, seeded `seed + i`."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise ValueError(f"temperature must be from 0 to 100, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise ValueError(
                f"repetition_penalty must be from 0.01 to 100, not {self.repetition_penalty}"
            )


class Token(NamedTuple):
    """A new token of a row."""

    row: int
    id: int
    log_prob: float
    """The model's own, in nats: before penalty, temperature, top k, top p and grammar."""
    reason: Reason = ""


def decode(
    logits: Float[Tensor, "B V"],
    step: Next,
    *,
    limit: int,
    sampling: Sampling = Sampling(),  # frozen
    ends: Collection[int] = (),
    prompts: Sequence[Sequence[int]] = (),
    grammar: Grammar | None = None,
    stop: Stop | None = None,
) -> Iterator[list[Token]]:
    """Yield the new token of every row that has not ended, until all have.

    A row gives the same tokens in any batch, up to the rounding of the logits. Closing the iterator
    stops the work; `step` is not called for a token after which nothing follows.

    Args:
        logits: of the first new token of each row.
        step: called with the tokens of all rows, also of those that have ended.
        limit: the most tokens of a row.
        ends: tokens that end a row, the last of which is one of them then.
        prompts: the tokens before, for `repetition_penalty`.
        grammar: limits what may follow.
        stop: ends a row for other reasons, such as a text.

    Raises:
        ValueError: a grammar permits nothing.
        FloatingPointError: the logits are no numbers.
    """
    rows = len(logits)
    made: list[list[int]] = [[] for _ in range(rows)]
    live = list(range(rows))
    generators = [runtime.generator(sampling.seed + row) for row in range(rows)]
    occurred = _occurred(logits, prompts) if sampling.repetition_penalty != 1 else None
    for number in range(1, limit + 1):
        scores = logits.float()
        chosen = _choose(
            scores if grammar is None else _permit(scores, grammar, made, live),
            sampling,
            generators,
            occurred,
        )
        log_probs = (scores.gather(1, chosen[:, None])[:, 0] - scores.logsumexp(1)).tolist()
        tokens = []
        for row in live:
            token, log_prob = int(chosen[row]), log_probs[row]
            if log_prob != log_prob:
                raise FloatingPointError("the model's output is not a number")
            made[row].append(token)
            tokens.append(Token(row, token, log_prob, _reason(row, token, ends, stop)))
        live = [token.row for token in tokens if not token.reason]
        if number == limit:
            tokens = [t if t.reason else t._replace(reason="limit") for t in tokens]
        yield tokens
        if not live or number == limit:
            return
        if occurred is not None:
            occurred.scatter_(1, chosen[:, None], True)
        logits = step(chosen)


def _reason(row: int, token: int, ends: Collection[int], stop: Stop | None) -> Reason:
    if token in ends:
        return "end"
    return "stop" if stop is not None and stop(row, token) else ""


def _occurred(logits: Tensor, prompts: Sequence[Sequence[int]]) -> Bool[Tensor, "B V"]:
    """The tokens of the prompts as a mask over the vocabulary."""
    occurred = torch.zeros_like(logits, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        occurred[row, list(prompt)] = True
    return occurred


def _permit(
    scores: Float[Tensor, "B V"], grammar: Grammar, made: list[list[int]], live: list[int]
) -> Float[Tensor, "B V"]:
    """Scores of -inf where the grammar of a row permits no token."""
    scores = scores.clone()
    for row in live:
        permitted = grammar(row, made[row], scores[row])
        if permitted is None:
            continue
        if not bool(permitted.any()):
            raise ValueError(f"the grammar permits no token after {made[row][-20:]}")
        scores[row, ~permitted.to(scores.device)] = -torch.inf
    return scores


def _choose(
    scores: Float[Tensor, "B V"],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    occurred: Bool[Tensor, "B V"] | None,
) -> Int64[Tensor, " B"]:
    if occurred is not None:
        penalty = sampling.repetition_penalty
        penalised = torch.where(scores > 0, scores / penalty, scores * penalty)
        scores = torch.where(occurred, penalised, scores)
    if sampling.temperature == 0:
        return most_likely(scores)
    weights, tokens = candidates(scores, sampling)
    # float64 sums: the last of 262,144 float32 sums would be off by more than a rare token's share
    sums = weights.double().cumsum(1)
    draws = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    points = draws.to(sums.device)[:, None] * sums[:, -1:]
    at = torch.searchsorted(sums, points, right=True).clamp(max=sums.shape[1] - 1)
    return (at if tokens is None else tokens.gather(1, at))[:, 0]


def most_likely(scores: Float[Tensor, "B V"]) -> Int64[Tensor, " B"]:
    """`argmax`, the first of equals, by the maxima of panels: torch vectorises a maximum, not where
    it is (262,144 scores on one core of a Xeon: 0.06 and 0.47 ms).
    """
    if scores.shape[1] % PANEL or not scores.is_contiguous():
        return scores.argmax(1)
    panels = scores.view(len(scores), -1, PANEL)
    chosen = panels.amax(2).argmax(1)
    within = panels[torch.arange(len(scores), device=scores.device), chosen].argmax(1)
    return chosen * PANEL + within


def candidates(
    scores: Float[Tensor, "B V"], sampling: Sampling
) -> tuple[Float[Tensor, "B N"], Int64[Tensor, "B N"] | None]:
    """The probabilities of the tokens that may be drawn, up to a factor, and which tokens they are;
    None for all of the vocabulary in its order.
    """
    scores = scores / sampling.temperature
    every = scores.shape[1]
    if sampling.top_p == 1 and not 0 < sampling.top_k < every:
        return scores.softmax(1), None
    if 0 < sampling.top_k < every:
        scores, tokens = scores.topk(sampling.top_k)
    else:
        scores, tokens = scores.sort(descending=True, stable=True)
    weights = scores.softmax(1)
    if sampling.top_p < 1:  # those before which less than top_p was reached; always the first
        weights = weights * (weights.cumsum(1) - weights < sampling.top_p)
    return weights, tokens

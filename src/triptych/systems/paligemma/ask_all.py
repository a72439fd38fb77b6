"""Answers to a batch of questions about pictures, and the objects in them.

Dimensions: B pictures, C channels, H height, W width, T tokens of a question, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from triptych.nn.decoding import Grammar, decode
from triptych.systems.gemma.model import pad_left
from triptych.text.language import LanguageTokenizer
from triptych.text.locations import LOCATION_NAMES, Located, ObjectGrammar, parse_objects


class Answering(Protocol):
    """A model that answers about pictures, one token after another."""

    config: Any

    def read(
        self,
        pixels: Float[Tensor, "B C H W"],
        tokens: Int64[Tensor, "B T"],
        pads: Int64[Tensor, " B"],
    ) -> tuple[Float[Tensor, "B V"], Any]:
        """The logits of the first token of each answer, and a cache for those that follow."""

    def step(self, tokens: Int64[Tensor, " B"], cache: Any) -> Float[Tensor, "B V"]:
        """The logits after one more token of each answer."""


@dataclass(frozen=True)
class Written:
    """A complete answer."""

    text: str
    tokens: tuple[int, ...] = ()
    """Without the end token."""
    log_probs: tuple[float, ...] = ()


def ask_all(
    model: Answering,
    tokenizer: LanguageTokenizer,
    images: Float[Tensor, "B C H W"],
    prefixes: Sequence[str],
    limit: int,
    grammar: Grammar | None = None,
) -> list[Written]:
    """The most likely answers to a question about each image, in one batch."""
    tokens, pads = pad_left([tokenizer.question(prefix) for prefix in prefixes], tokenizer.pad)
    made: list[list[int]] = [[] for _ in prefixes]
    log_probs: list[list[float]] = [[] for _ in prefixes]
    with torch.inference_mode():
        logits, cache = model.read(images, tokens.to(images.device), pads)
        steps = decode(
            logits,
            lambda token: model.step(token, cache),
            limit=limit,
            ends=(tokenizer.end,),
            grammar=grammar,
        )
        for step in steps:
            for token in step:
                if token.reason != "end":
                    made[token.row].append(token.id)
                    log_probs[token.row].append(token.log_prob)
    return [
        Written(tokenizer.decode(row), tuple(row), tuple(sure))
        for row, sure in zip(made, log_probs, strict=True)
    ]


def permit_objects(
    tokenizer: LanguageTokenizer,
    labels: Sequence[Sequence[str]],
    limit: int,
    masks: bool,
    greedy: bool = True,
) -> Grammar:
    """What answers of objects may be, with the labels of each row; with `masks` each object has
    sixteen codes.

    Where the most likely token is taken, `greedy`, an answer is empty only if that is likelier than
    all locations together: who knows that something is there, but not where to the pixel, spreads
    that over many of them.

    Raises:
        ValueError: the vocabulary has no locations or codes, or there is no room for an object.
    """
    known: dict[tuple[str, ...], ObjectGrammar] = {}
    for row in map(tuple, labels):
        if row not in known:
            known[row] = ObjectGrammar(tokenizer, row, (tokenizer.end,), limit, masks)

    def permit(row: int, made: Sequence[int], scores: Float[Tensor, " V"]) -> Bool[Tensor, " V"]:
        allowed = known[tuple(labels[row])].allowed(made)
        if greedy and not made:
            begin = [token for token in allowed if token != tokenizer.end]
            empty = scores[tokenizer.end] > scores[begin].logsumexp(0)
            allowed = [tokenizer.end] if empty else begin
        mask = torch.zeros(tokenizer.vocabulary, dtype=torch.bool)
        mask[allowed] = True
        return mask

    return permit


@dataclass(frozen=True)
class Objects:
    """The objects in an answer."""

    located: tuple[Located, ...] = ()
    scores: tuple[float, ...] = ()
    """How likely the model found the four locations of each box: the geometric mean of their
    probabilities.
    """
    ignored: tuple[str, ...] = ()
    """What of the answer is no object."""


def find_objects(
    tokenizer: LanguageTokenizer,
    text: str,
    tokens: Sequence[int],
    log_probs: Sequence[float],
    steps: int,
) -> Objects:
    """The objects in an answer, with the scores of their boxes."""
    parsed = parse_objects(text, steps)
    numbers = {tokenizer.require(name): place for place, name in enumerate(LOCATION_NAMES)}
    scores: list[float] = []
    places: list[int] = []
    sure = 0.0
    for token, log_prob in zip(tokens, log_probs, strict=True):
        if token not in numbers:
            places = []
            continue
        sure = log_prob if not places else sure + log_prob
        places.append(numbers[token])
        if len(places) == 4:
            top, left, bottom, right = places
            if bottom > top and right > left:  # as `parse_objects` counts it
                scores.append(math.exp(sure / 4))
            places = []
    return Objects(parsed.objects, tuple(scores[: len(parsed.objects)]), parsed.ignored)

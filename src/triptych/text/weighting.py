r"""Prompts with weights on their words, and prompts longer than a text encoder's window.

The grammar is the one that AUTOMATIC1111 documents: `(word)` has weight 1.1, `((word))` 1.1 * 1.1,
`(word:1.3)` 1.3, `[word]` 1 / 1.1; `\(`, `\)`, `\[`, `\]` and `\\` are plain characters; `BREAK`
starts a new window. A prompt with more tokens than a window holds is split into several windows,
which are encoded one by one and concatenated for cross-attention. Prompts that change from step to
step are in `prompt_schedule.py`.

Dimensions: N windows, T tokens of a window, D width.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from triptych.text.limits import MAX_PROMPT, MAX_WEIGHT
from triptych.text.tokenizer import Tokenizer

Unclosed = Literal["literal", "weighs"]
"""An unclosed bracket is a plain character, or (as AUTOMATIC1111) weighs all that follows it."""

STEP = 1.1
BACKTRACK = 20  # tokens; AUTOMATIC1111's default

TOKEN = re.compile(  # possessive, so that no branch backtracks and scanning is linear
    r"\\[()\[\]\\]"
    r"|:\s*+[+-]?(?:\d++(?:\.\d*+)?|\.\d++)\s*+\)"  # the end of (word:1.3)
    r"|[()\[\]]"
    r"|[^\\()\[\]:]++|[\\:]"
)
BREAK = re.compile(r"\bBREAK\b")


class Part(NamedTuple):
    """Text of a prompt with one weight."""

    text: str
    weight: float


class PromptWindows(NamedTuple):
    """A prompt as tokens of a text encoder, window by window."""

    tokens: Int64[Tensor, "N T"]
    weights: Float[Tensor, "N T"]  # 1 for the start, the end and the padding
    notes: tuple[str, ...]  # for the user: where windows begin


def parse(prompt: str, *, unclosed: Unclosed = "literal") -> list[list[Part]]:
    r"""The weighted parts of a prompt, one list for each block between `BREAK`s.

    Neighbours of equal weight are merged. Round and square brackets may cross. Time is linear in
    the length.

    Raises:
        ValueError: a weight outside -100 to 100.
    """
    scanned: list[str] = TOKEN.findall(prompt)  # match objects would cost a second per MB
    factors, closing = _match_brackets(scanned, unclosed)
    nested: dict[str, list[float]] = {"(": [1.0], "[": [1.0]}
    blocks: list[list[Part]] = [[]]
    texts: list[str] = []  # the current part and its weight
    current = 1.0
    for place, text in enumerate(scanned):
        if place in factors:
            levels = nested[text]
            levels.append(levels[-1] * factors[place])
        elif place in closing:
            nested["[" if text == "]" else "("].pop()
        else:
            weight = nested["("][-1] * nested["["][-1]
            if weight != current:
                _end_part(blocks[-1], texts, current)
                texts, current = [], weight
            escaped = len(text) == 2 and text[0] == "\\"
            first, *others = BREAK.split(text[1:] if escaped else text)
            texts.append(first)
            for after_break in others:
                _end_part(blocks[-1], texts, current)
                blocks.append([])
                texts = [after_break]
    _end_part(blocks[-1], texts, current)
    return blocks


def _end_part(block: list[Part], texts: list[str], weight: float) -> None:
    text = "".join(texts)
    if not text:
        return
    if not abs(weight) <= MAX_WEIGHT:
        raise ValueError(
            f"the prompt gives {text[:40]!r} the weight {weight:g}, outside -{MAX_WEIGHT:g} to "
            f"{MAX_WEIGHT:g}: remove some brackets, or write (text:1.3)"
        )
    block.append(Part(text, weight))


def _match_brackets(
    scanned: Sequence[str], unclosed: Unclosed
) -> tuple[dict[int, float], set[int]]:
    """The positions of opening brackets with their factors, and those of closing brackets."""
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    factors: dict[int, float] = {}
    closing: set[int] = set()
    for place, text in enumerate(scanned):
        if text in waiting:
            waiting[text].append(place)
        elif text == "]" and waiting["["]:
            factors[waiting["["].pop()] = 1 / STEP
            closing.add(place)
        elif (text == ")" or (text[0] == ":" and len(text) > 1)) and waiting["("]:
            factors[waiting["("].pop()] = STEP if text == ")" else float(text[1:-1])
            closing.add(place)
    if unclosed == "weighs":
        factors |= dict.fromkeys(waiting["("], STEP) | dict.fromkeys(waiting["["], 1 / STEP)
    return factors, closing


def write_prompt(blocks: Sequence[Sequence[Part]]) -> str:
    """The prompt that `parse` reads as these parts, none of which may contain `BREAK`."""
    return " BREAK ".join("".join(map(_write_part, block)) for block in blocks)


def _write_part(part: Part) -> str:
    text = re.sub(r"[()\[\]\\]", r"\\\g<0>", part.text)
    if part.weight == 1:
        return text
    return f"({text}:{Decimal(repr(part.weight)):f})"


def prompt_windows(
    prompt: str,
    tokenizer: Tokenizer,
    *,
    unclosed: Unclosed = "literal",
    backtrack: int = BACKTRACK,
) -> PromptWindows:
    """Tokens and weights of a prompt, in as many windows as it needs; nothing is cut off.

    A full window ends after its last comma, if that is among its last `backtrack` tokens, so that
    phrases between commas stay together; 0 ignores commas. An empty prompt is one empty window.

    Raises:
        ValueError: more than MAX_PROMPT characters, or a weight out of range.
    """
    if len(prompt) > MAX_PROMPT:
        raise ValueError(
            f"the prompt has {len(prompt):,} characters, more than the limit of {MAX_PROMPT:,}: "
            "shorten it"
        )
    room = tokenizer.room
    comma = tokenizer.pieces(",")
    rows: list[tuple[list[int], list[float]]] = []
    blocks = parse(prompt, unclosed=unclosed)
    for number, block in enumerate(blocks):
        tokens: list[int] = []
        weights: list[float] = []
        for text, weight in block:
            pieces = tokenizer.pieces(text)
            tokens += pieces
            weights += [weight] * len(pieces)
        if tokens or not rows or number < len(blocks) - 1:
            for start, end in _split_windows(tokens, room, comma, backtrack):
                rows.append((tokens[start:end], weights[start:end]))
    padded = [_pad_window(*row, tokenizer) for row in rows]
    return PromptWindows(
        torch.tensor([tokens for tokens, _ in padded], dtype=torch.int64),
        torch.tensor([weights for _, weights in padded], dtype=torch.float32),
        _notes([tokens for tokens, _ in rows], tokenizer, room),
    )


def _split_windows(
    tokens: list[int], room: int, comma: list[int], backtrack: int
) -> list[tuple[int, int]]:
    """Start and end of each window."""
    windows, start = [], 0
    while len(tokens) - start > room:
        end = start + room
        if [tokens[end]] != comma:  # a comma right after the window already ends a phrase
            for place in range(end - 1, max(end - backtrack, start) - 1, -1):
                if [tokens[place]] == comma:
                    end = place + 1
                    break
        windows.append((start, end))
        start = end
    return [*windows, (start, len(tokens))]


def _pad_window(
    tokens: list[int], weights: list[float], tokenizer: Tokenizer
) -> tuple[list[int], list[float]]:
    config = tokenizer.config
    before = [] if config.start is None else [config.start]
    after = [] if config.end is None else [config.end]
    row = before + tokens + after
    padding = config.length - len(row)
    ones = [1.0] * (len(after) + padding)
    return row + [config.pad] * padding, [1.0] * len(before) + weights + ones


def _notes(rows: Sequence[list[int]], tokenizer: Tokenizer, room: int) -> tuple[str, ...]:
    if len(rows) == 1:
        return ()
    begins = [
        f"{number} begins with {tokenizer.decode([row[:6]])[0]!r}" if row else f"{number} is empty"
        for number, row in enumerate(rows[1:9], 2)
    ]
    more = "" if len(rows) <= 9 else f", and {len(rows) - 9} more"
    return (
        f"the prompt has {sum(map(len, rows))} tokens and is split into {len(rows)} windows of "
        f"{room}: window {', window '.join(begins)}{more}",
    )


def pad_windows(windows: PromptWindows, count: int, tokenizer: Tokenizer) -> PromptWindows:
    """Append empty windows until there are `count`.

    The prompt and the negative prompt go through the network as one batch of one length.
    """
    missing = count - len(windows.tokens)
    if missing < 0:
        raise ValueError(f"the prompt has {len(windows.tokens)} windows, more than {count}")
    tokens, weights = _pad_window([], [], tokenizer)
    return PromptWindows(
        torch.cat([windows.tokens, torch.tensor([tokens], dtype=torch.int64).expand(missing, -1)]),
        torch.cat([windows.weights, torch.tensor([weights]).expand(missing, -1)]),
        windows.notes,
    )


def emphasise(
    hidden: Float[Tensor, "N T D"], weights: Float[Tensor, "N T"]
) -> Float[Tensor, "N T D"]:
    """Hidden states times their weights, rescaled so that each window keeps its mean.

    AUTOMATIC1111's "Original" emphasis; the pooled vector is left unchanged. Where the mean is
    close to 0 the scale can be extreme: for Stable Diffusion XL AUTOMATIC1111 recommends "No norm",
    `emphasise_plainly`. Weights of 1 change nothing, to the bit.
    """
    states = hidden.float()
    weighted = states * weights[..., None]
    before, after = (x.mean(dim=(1, 2), keepdim=True) for x in (states, weighted))
    scale = torch.where(after == 0, torch.ones_like(after), before / after)
    return (weighted * scale).to(hidden.dtype)


def emphasise_plainly(
    hidden: Float[Tensor, "N T D"], weights: Float[Tensor, "N T"]
) -> Float[Tensor, "N T D"]:
    """Hidden states times their weights: AUTOMATIC1111's "No norm" emphasis."""
    return (hidden.float() * weights[..., None]).to(hidden.dtype)

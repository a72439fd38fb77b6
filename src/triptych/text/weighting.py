r"""Weighted prompts: some words count more than others, and no prompt is too long for its window.

The grammar is the one that AUTOMATIC1111 documents: `(word)` counts 1.1 times, `((word))` 1.1 * 1.1
times, `(word:1.3)` 1.3 times, `[word]` 1 / 1.1 times; `\(`, `\)`, `\[`, `\]` and `\\` are
themselves; `BREAK` begins a new window of tokens. A text of more tokens than a window has is read
in several windows, which a tower encodes one by one and the network attends to as one long text.

Dimensions: N windows, T tokens of a window, D width.
"""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from triptych.text.limits import MAX_PROMPT
from triptych.text.tokenizer import Tokenizer

Unclosed = Literal["literal", "weighs"]
"""What a bracket without its partner is: a character of the text, or, where AUTOMATIC1111's reading
is asked for, a weight of everything that follows it.
"""

STEP = 1.1
MAX_WEIGHT = 100.0  # fifty brackets deep; beyond, the text encoder's states are noise
BACKTRACK = 20  # tokens: AUTOMATIC1111's default

SCAN = re.compile(  # every branch consumes what it looked at, so scanning is linear
    r"\\[()\[\]\\]"
    r"|:\s*+[+-]?(?:\d++(?:\.\d*+)?|\.\d++)\s*+\)"  # the end of (word:1.3)
    r"|[()\[\]]"
    r"|[^\\()\[\]:]++|[\\:]"
)
BREAK = re.compile(r"\bBREAK\b")
LORA = re.compile(r"<lora:([^<>:]+)(?::([^<>:]*))?>")
SCHEDULE = re.compile(
    r"(?<!\\)\[[^\[\]:|]*+(?::[^\[\]:|]*+:\s*+[\d.]++\s*+|:\s*+[\d.]++\s*+|\|[^\[\]]*+)\]"
)


class Part(NamedTuple):
    """A stretch of a prompt and how much it counts."""

    text: str
    weight: float


class PromptWindows(NamedTuple):
    """A prompt as a text tower reads it, window by window."""

    tokens: Int64[Tensor, "N T"]
    weights: Float[Tensor, "N T"]  # 1 for the start, the end and the padding
    notes: tuple[str, ...]  # what someone should know: where windows begin, what is not obeyed


def parse(prompt: str, *, unclosed: Unclosed = "literal") -> list[list[Part]]:
    r"""The weighted parts of a prompt, in a list for each stretch between `BREAK`s.

    Neighbours of equal weight are one part. Brackets of the two kinds may cross. Time is linear in
    the length.

    Raises:
        ValueError: a weight beyond -100 to 100.
    """
    found: list[str] = SCAN.findall(prompt)  # strings: match objects would cost a second per MB
    factors, closing = _pairs(found, unclosed)
    nested: dict[str, list[float]] = {"(": [1.0], "[": [1.0]}
    blocks: list[list[Part]] = [[]]
    texts: list[str] = []  # of the part that is being read, and its weight
    counts = 1.0
    for place, text in enumerate(found):
        if place in factors:
            levels = nested[text]
            levels.append(levels[-1] * factors[place])
        elif place in closing:
            nested["[" if text == "]" else "("].pop()
        else:
            weight = nested["("][-1] * nested["["][-1]
            if weight != counts:
                _end_part(blocks[-1], texts, counts)
                texts, counts = [], weight
            escaped = len(text) == 2 and text[0] == "\\"
            first, *others = BREAK.split(text[1:] if escaped else text)
            texts.append(first)
            for stretch in others:
                _end_part(blocks[-1], texts, counts)
                blocks.append([])
                texts = [stretch]
    _end_part(blocks[-1], texts, counts)
    return blocks


def _end_part(block: list[Part], texts: list[str], weight: float) -> None:
    text = "".join(texts)
    if not text:
        return
    if not abs(weight) <= MAX_WEIGHT:
        raise ValueError(
            f"{text[:40]!r} is to count {weight:g} times; weights are -{MAX_WEIGHT:g} to "
            f"{MAX_WEIGHT:g}: take brackets away, or write (text:1.3)"
        )
    block.append(Part(text, weight))


def _pairs(found: Sequence[str], unclosed: Unclosed) -> tuple[dict[int, float], set[int]]:
    """The factor of each bracket that opens a pair, and the brackets that close one."""
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    factors: dict[int, float] = {}
    closing: set[int] = set()
    for place, text in enumerate(found):
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


def written(blocks: Sequence[Sequence[Part]]) -> str:
    """The prompt that `parse` reads as these parts; a text with `BREAK` in it has none."""
    return " BREAK ".join("".join(map(_written, block)) for block in blocks)


def _written(part: Part) -> str:
    text = re.sub(r"[()\[\]\\]", r"\\\g<0>", part.text)
    if part.weight == 1:
        return text
    return f"({text}:{Decimal(repr(part.weight)):f})"


def loras_in(prompt: str) -> tuple[str, tuple[str, ...]]:
    """A prompt without its `<lora:NAME:WEIGHT>` marks, and those as `NAME:WEIGHT`.

    AUTOMATIC1111 keeps its low-rank updates inside the prompt; without a weight they count once.
    """
    loras = tuple(f"{name.strip()}:{weight or 1}" for name, weight in LORA.findall(prompt))
    return (LORA.sub("", prompt), loras) if loras else (prompt, ())


def prompt_windows(
    prompt: str,
    tokenizer: Tokenizer,
    *,
    unclosed: Unclosed = "literal",
    backtrack: int = BACKTRACK,
) -> PromptWindows:
    """Tokens and weights of a prompt, in as many windows as it needs; none of it is lost.

    A window that is full ends behind its last comma, if that is among its last `backtrack` tokens,
    so that what a comma holds together stays together; 0 never looks for one. An empty prompt is
    one empty window.

    Raises:
        ValueError: more than MAX_PROMPT characters, or a weight out of range.
    """
    if len(prompt) > MAX_PROMPT:
        raise ValueError(
            f"a prompt of {len(prompt):,} characters; at most {MAX_PROMPT:,} are read: shorten it"
        )
    config = tokenizer.config
    room = config.length - (config.start is not None) - (config.end is not None)
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
            for start, end in _stretches(tokens, room, comma, backtrack):
                rows.append((tokens[start:end], weights[start:end]))
    padded = [_padded(*row, tokenizer) for row in rows]
    return PromptWindows(
        torch.tensor([tokens for tokens, _ in padded], dtype=torch.int64),
        torch.tensor([weights for _, weights in padded], dtype=torch.float32),
        _said(prompt, [tokens for tokens, _ in rows], tokenizer, room),
    )


def _stretches(
    tokens: list[int], room: int, comma: list[int], backtrack: int
) -> list[tuple[int, int]]:
    """Where each window of these tokens starts and ends."""
    found, start = [], 0
    while len(tokens) - start > room:
        end = start + room
        if [tokens[end]] != comma:  # a comma that comes next leaves nothing to keep together
            for place in range(end - 1, max(end - backtrack, start) - 1, -1):
                if [tokens[place]] == comma:
                    end = place + 1
                    break
        found.append((start, end))
        start = end
    return [*found, (start, len(tokens))]


def _padded(
    tokens: list[int], weights: list[float], tokenizer: Tokenizer
) -> tuple[list[int], list[float]]:
    config = tokenizer.config
    before = [] if config.start is None else [config.start]
    after = [] if config.end is None else [config.end]
    row = before + tokens + after
    after_it = config.length - len(row)
    ones = [1.0] * (len(after) + after_it)
    return row + [config.pad] * after_it, [1.0] * len(before) + weights + ones


def _said(
    prompt: str, rows: Sequence[list[int]], tokenizer: Tokenizer, room: int
) -> tuple[str, ...]:
    notes = []
    if len(rows) > 1:
        begins = [
            f"{number} begins with {tokenizer.decode([row[:6]])[0]!r}"
            if row
            else f"{number} is empty"
            for number, row in enumerate(rows[1:9], 2)
        ]
        more = "" if len(rows) <= 9 else f", and {len(rows) - 9} more"
        notes.append(
            f"the prompt has {sum(map(len, rows))} tokens and is read in {len(rows)} windows of "
            f"{room}: window {', window '.join(begins)}{more}"
        )
    if found := SCHEDULE.search(prompt):
        notes.append(
            f"{found.group()[:60]!r} is read as text that counts less: prompts that change from "
            "step to step are not supported"
        )
    if re.search(r"\bAND\b", prompt):
        notes.append("AND is read as a word: prompts are not composed here")
    return tuple(notes)


def pad_windows(windows: PromptWindows, count: int, tokenizer: Tokenizer) -> PromptWindows:
    """The same prompt followed by empty windows, so that it has as many as another one.

    The two prompts of guidance go through the network as one batch, which has one length.
    """
    missing = count - len(windows.tokens)
    if missing < 0:
        raise ValueError(f"the prompt has {len(windows.tokens)} windows already, not {count}")
    tokens, weights = _padded([], [], tokenizer)
    return PromptWindows(
        torch.cat([windows.tokens, torch.tensor([tokens], dtype=torch.int64).expand(missing, -1)]),
        torch.cat([windows.weights, torch.tensor([weights]).expand(missing, -1)]),
        windows.notes,
    )


def emphasise(
    hidden: Float[Tensor, "N T D"], weights: Float[Tensor, "N T"]
) -> Float[Tensor, "N T D"]:
    """Hidden states times their weights, then scaled so that each window keeps its mean.

    What AUTOMATIC1111 calls its original emphasis. The pooled vector is left as it is there. The
    mean of a tower's states is close to 0 and the scale can then be wild; AUTOMATIC1111 itself
    recommends the way without it for Stable Diffusion XL: `emphasise_plainly`. Weights of 1 change
    nothing, to the bit.
    """
    states = hidden.float()
    weighted = states * weights[..., None]
    before, after = (x.mean(dim=(1, 2), keepdim=True) for x in (states, weighted))
    scale = torch.where(after == 0, torch.ones_like(after), before / after)
    return (weighted * scale).to(hidden.dtype)


def emphasise_plainly(
    hidden: Float[Tensor, "N T D"], weights: Float[Tensor, "N T"]
) -> Float[Tensor, "N T D"]:
    """Hidden states times their weights and nothing else: AUTOMATIC1111's "No norm"."""
    return (hidden.float() * weights[..., None]).to(hidden.dtype)

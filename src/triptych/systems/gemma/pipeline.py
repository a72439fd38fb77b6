"""Chat: the answer of a language model, as it comes."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from triptych import runtime
from triptych.nn.cache import Cache
from triptych.nn.decoding import Grammar, Next, Reason, Sampling, decode
from triptych.systems.gemma.model import Gemma
from triptych.systems.gemma.request import Chat, Decoding
from triptych.text.language import LanguageTokenizer, Message, TextStream
from triptych.weights.loaded import Load, Loaded

AT_ONCE = 512
"""Tokens of a prompt that are computed at a time, so that memory does not grow with its square."""


@dataclass(frozen=True)
class Said:
    """An answer up to now."""

    request: Any
    text: str = ""
    new: str = ""
    """What the last tokens added to the text."""
    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()
    """The model's own, in nats, of each token."""
    prompt: int = 0
    """Tokens of the prompt."""
    reason: Reason = ""
    """Why the answer ended: an end token, a text of `stop`, or the most tokens."""
    done: float = 0.0
    objects: Any = None
    """What was located in a picture, of the last item of a request for that."""


class Reader:
    """A language model that remembers what it has read, so that the next turn costs only what is
    new.
    """

    def __init__(self, model: Gemma):
        self.model = model
        self.read: list[int] = []
        self._cache: Cache = model.new_cache()

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """The logits (1, V) after these tokens, those read before included."""
        known = len(self.read)
        if known >= len(tokens) or list(tokens[:known]) != self.read:
            self.read, self._cache, known = [], self.model.new_cache(), 0
        device = self.model.device
        with torch.inference_mode():
            for begin in range(known, len(tokens), AT_ONCE):
                part = torch.tensor([list(tokens[begin : begin + AT_ONCE])], device=device)
                states = self.model.states(self.model.embed(part), self._cache)
            self.read = list(tokens)
            return self.model.logits(states[:, -1])

    def step(self, token: Tensor) -> Tensor:
        """The logits after one more token."""
        self.read.append(int(token[0]))
        with torch.inference_mode():
            states = self.model.states(self.model.embed(token[:, None]), self._cache)
            return self.model.logits(states[:, -1])


def run(request: Chat, load: Load) -> Iterator[Said]:
    """The answer after each token; the last item is the complete one.

    Raises:
        ValueError: the model is no language model, was not trained to chat, or the chat is longer
            than it reads.
    """
    loaded = load(request.model, runtime.device(request.device), dtype_of(request.precision))
    yield from answer(request, loaded, Reader(require_language(loaded)[0]))


def dtype_of(precision: str) -> str:
    """The dtype by which a model is loaded for a request."""
    return "packed" if precision == "auto" else precision


def answer(request: Chat, loaded: Loaded, reader: Reader) -> Iterator[Said]:
    """As `run`, by a loaded model that may have read the chat before.

    Raises:
        ValueError: as `run`.
    """
    _, tokenizer = require_language(loaded)
    if request.raw:
        prompt = tokenizer.continuation(request.raw)
        ends: tuple[int, ...] = (tokenizer.end,)
    else:
        prompt, ends = tokenizer.chat(read_turns(request)), tokenizer.ends
    limit = room(loaded, len(prompt), request.decoding.max_tokens)
    logits, seen = reader.logits(prompt), [prompt]
    said = Said(request, prompt=len(prompt))
    yield from say(said, logits, reader.step, tokenizer, request.decoding, limit, ends, seen)


def room(loaded: Loaded, length: int, wanted: int) -> int:
    """How many tokens an answer to a prompt may have.

    Raises:
        ValueError: none.
    """
    most: int = getattr(loaded.config, "text", loaded.config).context
    if length >= most:
        raise ValueError(
            f"the text has {length:,} tokens and {loaded.name} reads at most {most:,}, its answer "
            "included: shorten it"
        )
    return min(most - length, wanted)


def say(
    said: Said,
    logits: Tensor,
    step: Next,
    tokenizer: LanguageTokenizer,
    decoding: Decoding,
    limit: int,
    ends: Collection[int],
    prompts: Sequence[Sequence[int]],
    grammar: Grammar | None = None,
) -> Iterator[Said]:
    """`said`, and then it with each token more, until the answer ends."""
    steps = decode(
        logits,
        step,
        limit=limit,
        sampling=sampling(decoding),
        ends=ends,
        prompts=prompts,
        grammar=grammar,
    )
    stream = TextStream(tokenizer, decoding.stop)
    yield said
    for (token,) in steps:
        new = "" if token.reason == "end" else stream.push(token.id)
        reason: Reason = "stop" if stream.stopped else token.reason
        new += stream.finish() if reason else ""
        said = replace(
            said,
            text=said.text + new,
            new=new,
            tokens=(*said.tokens, token.id),
            log_probs=(*said.log_probs, token.log_prob),
            reason=reason,
            done=1.0 if reason else (len(said.tokens) + 1) / limit,
        )
        yield said
        if reason:
            return


def read_turns(request: Chat) -> list[Message]:
    """The chat of a request as messages."""
    messages = [Message("system", request.system)] if request.system else []
    for place, text in enumerate(request.turns):
        messages.append(Message("model" if place % 2 else "user", text))
    return [*messages, Message("user", request.message)]


def sampling(decoding: Decoding) -> Sampling:
    """The settings of the decoding loop."""
    return Sampling(
        decoding.temperature,
        decoding.top_k,
        decoding.top_p,
        decoding.repetition_penalty,
        decoding.seed,
    )


def require_language(loaded: Loaded) -> tuple[Gemma, LanguageTokenizer]:
    """The language model and its tokenizer.

    Raises:
        ValueError: it is another kind of model, or its vocabulary is missing.
    """
    if not isinstance(loaded.model, Gemma):
        raise ValueError(f"{loaded.name} is a {loaded.card.model}: it does not write")
    if loaded.language is None:
        raise ValueError(
            f"{loaded.name} has no vocabulary: put its publisher's tokenizer.json beside it"
        )
    return loaded.model, loaded.language

"""The request for an answer of a language model, and how answers are generated. No torch."""

from dataclasses import dataclass, field
from typing import Literal

from triptych.fields import set_fields
from triptych.given import ModelName, Texts, Words, take_texts
from triptych.nn.checks import require_at_least

MAX_TEXT = 1_000_000
"""Characters of a message; what the model reads is counted in tokens."""


@dataclass(frozen=True)
class Decoding:
    """How an answer is generated, token by token."""

    max_tokens: int = 256
    """The most tokens of an answer."""
    temperature: float = 1.0
    """0 takes the most likely token each time; below 1 answers are more predictable."""
    top_k: int = 64
    """Draws from this many of the most likely tokens; 0: from all."""
    top_p: float = 0.95
    """Draws from the fewest tokens that have this probability together."""
    repetition_penalty: float = 1.0
    """Above 1 tokens that occurred already become less likely."""
    stop: Texts = ()
    """Texts at which the answer ends; they are not part of it."""
    seed: int = 0
    """Of the draws."""

    def __post_init__(self) -> None:
        set_fields(self, stop=take_texts("stop", self.stop))
        require_at_least(self, 1, "max_tokens")
        require_at_least(self, 0, "temperature", "top_k", "seed")
        require_at_least(self, 0.01, "repetition_penalty")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        for name, most in (("temperature", 100), ("repetition_penalty", 100), ("seed", 1 << 63)):
            if getattr(self, name) > most:
                raise ValueError(f"{name} must be at most {most}, not {getattr(self, name)}")


@dataclass(frozen=True)
class Chat:
    """Answer the last message of a chat, or continue a text, by a language model."""

    message: Words = ""
    """What you say to the model."""
    model: ModelName = ""
    """A GGUF file of a Gemma, a folder of one, or OWNER/NAME on the hub."""
    system: Words = ""
    """What the model is told before the chat: how to answer."""
    turns: Texts = ()
    """The chat before: your message, the model's answer, and so on."""
    raw: Words = ""
    """A text to continue instead, without turns: for models that were not trained to chat."""
    decoding: Decoding = field(default_factory=Decoding)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: what the device computes fastest. A Gemma computes nonsense in float16."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the first accelerator, else the CPU."""

    def __post_init__(self) -> None:
        set_fields(self, turns=take_texts("turns", self.turns))
        if not self.model:
            raise ValueError("give a model, such as --model gemma-3-270m.gguf")
        if bool(self.raw) == bool(self.message):
            raise ValueError("give either a message or, with --raw, a text to continue")
        if self.raw and (self.system or self.turns):
            raise ValueError("a text to continue has no system prompt and no turns before it")
        if len(self.turns) % 2:
            raise ValueError("turns are pairs: a message and its answer")
        for name in ("message", "system", "raw"):
            if len(getattr(self, name)) > MAX_TEXT:
                raise ValueError(
                    f"{name} has {len(getattr(self, name)):,} characters; at most {MAX_TEXT:,}"
                )

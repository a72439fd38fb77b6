"""The request for an answer of a language model, how answers are generated, and settings of
training. No torch.
"""

from dataclasses import dataclass, field
from typing import Literal

from triptych.fields import set_fields
from triptych.given import ModelName, Texts, Words, take_texts
from triptych.nn.checks import require_at_least
from triptych.train.settings import Training, check_numbers

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
    precision: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto"
    """int8 and int4: the most bits of a weight, on a CPU. auto: int8 for a GGUF file on a CPU, else
    what the device computes fastest.
    """
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


@dataclass(frozen=True)
class TrainLanguage:
    """Gemma: a language model on text files, from the start or from another Gemma."""

    training: Training = field(
        default_factory=lambda: Training(
            data="texts", batch_size=32, steps=2000, schedule="cosine", warmup=100,
            ema_halflife=50, sample_every=0, evaluate_every=500, precision="auto",
        )
    )  # fmt: skip
    """`data` is a text file, or a folder with .txt and .md files."""
    init: ModelName = ""
    """Fine-tune this Gemma, a GGUF file, a run folder or a folder of transformers: its sizes and
    vocabulary replace those below.
    """
    lora: int = 0
    """Rank of the low-rank updates that are trained in place of the weights of `init`; 0 trains all
    of them.
    """
    width: int = 256
    """Width of the model."""
    layers: int = 6
    """Layers of the model."""
    heads: int = 4
    """Query heads."""
    kv_heads: int = 1
    """Key/value heads."""
    head_width: int = 64
    """Width of a head."""
    hidden: int = 768
    """Hidden width of the MLPs."""
    window: int = 64
    """Tokens that five of six layers see; 0: every layer sees all."""
    vocabulary: int = 4096
    """Tokens that are learned from the texts."""
    length: int = 128
    """Tokens of a row."""
    learning_rate: float = 2e-3
    """Learning rate of AdamW."""
    weight_decay: float = 0.1
    """Weight decay of AdamW, on matrices."""
    beta2: float = 0.95
    """Second beta of AdamW."""
    max_norm: float = 1.0
    """Gradients are clipped to this norm."""

    def __post_init__(self) -> None:
        check_numbers(self)
        require_at_least(self, 2, "length")
        require_at_least(self, 0, "lora", "window")
        if self.lora and not self.init:
            raise ValueError("lora is the rank of updates of a language model: give init")


LANGUAGE_PRESETS = {
    "tiny": TrainLanguage(),
    "270m": TrainLanguage(
        Training(
            data="texts", batch_size=256, steps=100_000, schedule="cosine", warmup=2000,
            ema_halflife=500, sample_every=0, evaluate_every=5000, precision="auto",
        ),
        width=640, layers=18, head_width=256, hidden=2048, window=512, vocabulary=262_144,
        length=2048, learning_rate=1e-3,
    ),
}  # fmt: skip
"""The default first."""

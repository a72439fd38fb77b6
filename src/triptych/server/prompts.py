"""A prompt as a loaded model reads it. No torch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from triptych.given import ModelName, Words
from triptych.server.service import Service
from triptych.systems import SYSTEMS

if TYPE_CHECKING:
    from triptych.text.prompt_tokens import PromptTokens


@dataclass(frozen=True)
class ReadPrompt:
    """Count the tokens of a prompt."""

    model: ModelName
    """A model of `/api/models`."""
    prompt: Words
    """The prompt."""


def read_prompt(service: Service, asked: ReadPrompt) -> dict[str, Any]:
    """`windows` of tokens, each with its text, number and weight, how many a window holds, and what
    is `cut`. `loaded` is false, and nothing is read, while the model is not in memory: no model is
    loaded for this. `windows` is null where the model reads no prompts.

    Raises:
        ValueError: there is no such model, or it cannot read this prompt.
    """
    most = service.limits.prompt_characters
    if len(asked.prompt) > most:
        raise ValueError(f"prompt has {len(asked.prompt):,} characters; at most {most:,} are read")
    loaded = service.models.find(service.offers.find_model(asked.model).place)
    nothing: dict[str, Any] = {"windows": None, "limit": 0, "cut": "", "notes": []}
    if loaded is None:
        return {"loaded": False} | nothing
    for system in SYSTEMS.values():
        if loaded.card.model not in system.serves:
            continue
        answers = system.module("answer")
        if hasattr(answers, "read_prompt"):
            read: PromptTokens = answers.read_prompt(loaded, asked.prompt)
            windows = [[token._asdict() for token in window] for window in read.windows]
            return {"loaded": True} | read._asdict() | {"windows": windows}
    return {"loaded": True} | nothing

"""Answers of a language model as plain values."""

from triptych.system import Answer
from triptych.systems.gemma.pipeline import Said


def to_answer(item: Said, model: str) -> Answer:
    """The text and its tokens, and why it ended."""
    return Answer(
        {
            "model": model,
            "text": item.text,
            "tokens": list(item.tokens),
            "log_probs": list(item.log_probs),
            "prompt_tokens": item.prompt,
            "reason": item.reason,
        }
    )

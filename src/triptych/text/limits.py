"""How long prompts may be, and how heavy. No torch."""

MAX_PROMPT = 32_000
"""Characters of a prompt."""
MAX_WEIGHT = 100.0
"""The largest weight of words or of a prompt, above and below 0; about 48 nested brackets."""

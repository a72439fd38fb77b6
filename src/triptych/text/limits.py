"""How long a prompt may be. No torch."""

MAX_PROMPT = 32_000
"""Characters of a prompt."""

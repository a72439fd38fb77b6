"""Mutants that compute the same as the source, or differ only in speed, each with its reason."""

EQUIVALENT: dict[str, str] = {}

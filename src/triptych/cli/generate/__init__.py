"""`triptych generate`: pictures of a prompt, or of classes, whichever the model draws."""

from triptych.cli.generate.command import main

__all__ = ["main"]

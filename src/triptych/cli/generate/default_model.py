"""The model of a command that names none."""

from collections.abc import Sequence
from pathlib import Path

from triptych.cli.output import UsageError, say
from triptych.weights.bundled_models import find_bundled, is_model


def say_default_model(arguments: Sequence[str], name: str) -> None:
    """Print which model is used, if the command names none.

    Raises:
        UsageError: the default is not here; says what to do.
    """
    if any(word.partition("=")[0] == "--model" for word in arguments):
        return
    if find_bundled(name):
        say(f"with the model {name}, which comes with Triptych (--model takes another)")
    elif is_model(Path(name)):
        say(f"with the model {name} here (--model takes another)")
    else:
        raise UsageError(
            f"there is no model {name}, the default, in this installation: name one with --model. "
            "`triptych models` lists those on this computer, and `triptych train` trains one"
        )

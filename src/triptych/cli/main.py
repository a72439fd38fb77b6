"""The command table. Only the chosen command's module is imported, so `--help` is quick."""

import importlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

COMMANDS = {
    "train": "train a model from a source of pictures",
    "generate": "write pictures of a prompt, or of classes, from a trained model",
    "grid": "sweep one, two or three settings of a prompt into one labelled picture",
    "classify": "say which of your labels fit a picture",
    "probe": "learn classes from pictures, on top of what a frozen model sees",
    "detect": "find what labels name in a picture: boxes and heat maps",
    "evaluate": "judge a trained model and write numbers, tables and plots",
    "embed": "write texts and pictures as vectors of one space",
    "search": "find pictures of a folder by texts and pictures, or near duplicates",
    "data": "look at a source of pictures before training on it",
    "weights": "list, inspect, convert and check files of weights",
}

HELP = """triptych: conditional and multimodal generative models

usage: triptych COMMAND [OPTIONS]

{commands}

  triptych COMMAND --help      what a command takes
  triptych --version           the version
  --debug                      with any command: show the traceback of an error

first steps:
  triptych train                                   a conditional VAE on handwritten digits
  triptych generate --model runs/cvae-digits       pictures of every class
  triptych evaluate runs/cvae-digits               how good they are"""


class UsageError(Exception):
    """A command line that cannot be carried out: its text is one sentence for people."""


def stop(number: int, frame: FrameType | None = None) -> NoReturn:
    """Ends the command at once; the exit code is the signal's."""
    raise KeyboardInterrupt(number)


class Interrupt:
    """The first Ctrl-C or SIGTERM asks; the second one insists."""

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> "Interrupt":
        self.before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            stop(number)
        self.signal = number

    @property
    def exit_code(self) -> int:
        return 128 + self.signal if self.signal else 0


def say(*lines: str) -> None:
    """To people; stdout belongs to data."""
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def run(arguments: list[str]) -> int:
    """One command; returns the exit code: 0 done, 1 failed, 2 usage, 3 bad input, 4 diverged, 130,
    143.
    """
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        print(HELP.format(commands="\n".join(f"  {n:<12} {what}" for n, what in COMMANDS.items())))
        return 0
    if name in ("--version", "-V"):
        from importlib.metadata import version

        print(version("triptych"))
        return 0
    if name not in COMMANDS:
        from triptych.config import nearest

        say(f"triptych: no command {name!r}.{nearest(name, list(COMMANDS))} See `triptych --help`")
        return 2
    try:
        return int(importlib.import_module(f"triptych.cli.{name}").main(arguments[1:]))
    except KeyboardInterrupt as stopped:  # Python's own, at Ctrl-C, carries no number
        say("triptych: stopped")
        return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
    except BrokenPipeError:  # the reader of a pipe has seen enough; `main` knows
        raise
    except UsageError as error:
        say(f"triptych: {error}")
        return 2
    except Exception as error:
        if debug:
            raise
        return explained(error)


def explained(error: Exception) -> int:
    """A sentence instead of a traceback, and the exit code that goes with it."""
    if isinstance(error, FloatingPointError):
        say(f"triptych: {error}")
        return 4
    if isinstance(error, ValueError | OSError):
        say(f"triptych: {error}")
        return 3
    if isinstance(error, RuntimeError | ImportError):
        say(f"triptych: {error}", "(`--debug` shows where)")
        return 1
    say(f"triptych: unexpected {type(error).__name__}: {error}", "(`--debug` shows where)")
    return 1


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, stop)  # `train` and the judge's training wait for a step instead
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        code = 0
    if _left_a_group():
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _left_a_group() -> bool:
    """Whether training over processes failed. The others may be gone, so that the group cannot be
    taken down; where Python ends, its threads would abort the process now and then
    (pytorch/pytorch#179291).
    """
    distributed = sys.modules.get("torch.distributed")  # only training imports it
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


if __name__ == "__main__":
    main()

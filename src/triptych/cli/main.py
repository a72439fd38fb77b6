"""The command table. Only the chosen command's module is imported, so `--help` is quick."""

import errno
import importlib
import io
import os
import signal
import sys
import warnings
from itertools import pairwise
from types import FrameType
from typing import NoReturn

from triptych.cli.output import UsageError, say
from triptych.cli.threads import set_threads, wait_briefly
from triptych.fields import nearest

COMMANDS = {
    "train": "train a model on a source of pictures",
    "generate": "generate pictures of a prompt, or of classes, with a trained model",
    "grid": "vary one, two or three settings of a prompt, in one labelled picture",
    "classify": "zero-shot classification: which of your labels fit a picture",
    "probe": "train a linear classifier on the features of a frozen CLIP or SigLIP",
    "detect": "zero-shot detection: boxes and heat maps of what labels name",
    "ask": "ask a question about a picture",
    "caption": "describe a picture in words",
    "segment": "masks of what labels name in a picture",
    "chat": "chat with a language model, or continue a text",
    "evaluate": "evaluate a trained model: numbers, tables and plots",
    "embed": "embed texts and pictures as vectors of one space",
    "search": "find pictures of a folder by texts and pictures, or near duplicates",
    "data": "check a source of pictures before training on it",
    "serve": "serve all models over HTTP, with the routes of OpenAI and AUTOMATIC1111",
    "models": "list the models on this computer; show what a bundled one was trained on",
    "weights": "list, inspect, convert and check files of weights",
}

PASSES = ("embed", "classify", "detect", "caption", "generate")
"""Commands that take --batch INPUT."""

REASONS: dict[type[OSError], str] = {
    FileNotFoundError: "does not exist",
    FileExistsError: "exists already",
    IsADirectoryError: "is a folder, not a file",
    NotADirectoryError: "is not a folder, or is below a file",
    PermissionError: "cannot be opened: permission denied",
}

DISK_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""No input is at fault: the disk is full, over its quota, broken or read-only."""

HELP = """triptych: conditional and multimodal generative models

usage: triptych COMMAND [OPTIONS]

{commands}

  triptych COMMAND --help      the options of a command
  triptych --version           the version
  --threads N                  with any command: CPU threads; by default all cores, or one for
                               small models
  --debug                      with any command: show the traceback of an error

first steps:
  triptych generate --label 7                      with a bundled model (`triptych models`)
  triptych train                                   a conditional VAE on handwritten digits
  triptych generate --model runs/cvae-digits       pictures of every class
  triptych evaluate runs/cvae-digits               how good they are"""


def stop(number: int, frame: FrameType | None = None) -> NoReturn:
    """Ends the command at once; the exit code is the signal's."""
    raise KeyboardInterrupt(number)


class Interrupt:
    """The first Ctrl-C or SIGTERM is only noted; the second ends the command at once."""

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


def run(arguments: list[str]) -> int:
    """One command; returns the exit code: 0 done, 1 failed, 2 usage, 3 bad input, 4 diverged, 130,
    143.
    """
    debug = "--debug" in arguments
    arguments, threads = _take_threads([a for a in arguments if a != "--debug"])
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h", "help"):
        print(HELP.format(commands="\n".join(f"  {n:<12} {what}" for n, what in COMMANDS.items())))
        return 0
    if name in ("--version", "-V"):
        from importlib.metadata import version

        print(version("triptych"))
        return 0
    if name not in COMMANDS:
        say(f"triptych: no command {name!r}.{nearest(name, list(COMMANDS))} See `triptych --help`")
        return 2
    warnings.filterwarnings("ignore", module=r"PIL\.")  # on damaged pictures, which we name
    try:
        if threads is not None:
            set_threads(threads)
        if is_pass(name, arguments[1:]):
            return int(importlib.import_module("triptych.cli.batch").main(name, arguments[1:]))
        return int(importlib.import_module(f"triptych.cli.{name}").main(arguments[1:]))
    except SystemExit as done:  # help was printed
        if name in PASSES and not is_pass(name, arguments[1:]):
            print(f"\nover a folder, tars, Parquet or JSONL: triptych {name} --batch --help")
        return int(done.code or 0)
    except KeyboardInterrupt as stopped:  # Python's own, at Ctrl-C, carries no number
        say("triptych: stopped")
        return 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
    except BrokenPipeError:  # for `main`
        raise
    except UsageError as error:
        say(f"triptych: {error}")
        return 2
    except Exception as error:
        if debug:
            raise
        return report_error(error)


def is_pass(command: str, arguments: list[str]) -> bool:
    """Whether a command line asks for a pass over many rows; `classify --batch 64` is the size of a
    batch, as it was called in version 0.1.
    """
    if command not in PASSES:
        return False
    for word, following in pairwise([*arguments, ""]):
        flag, _, value = word.partition("=")
        if flag == "--batch":
            return not (value or following).isdecimal()
    return False


def _take_threads(arguments: list[str]) -> tuple[list[str], str | None]:
    """The arguments without `--threads N`, and N, which is empty where it is missing."""
    others: list[str] = []
    threads: str | None = None
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag == "--threads":
            threads = value if equals else next(words, "")
        else:
            others.append(word)
    return others, threads


def report_error(error: Exception) -> int:
    """Print a sentence instead of a traceback; returns the exit code that goes with it."""
    if isinstance(error, FloatingPointError):
        say(f"triptych: {error}")
        return 4
    if isinstance(error, OSError) and error.errno in DISK_FAILURES:
        say(f"triptych: {describe_error(error)}")
        return 1
    if isinstance(error, ValueError | OSError):
        say(f"triptych: {describe_error(error)}")
        return 3
    expected = isinstance(error, RuntimeError | ImportError)
    what = "" if expected else f"unexpected {type(error).__name__}: "
    say(f"triptych: {what}{error}", "(`--debug` shows where)")
    return 1


def describe_error(error: Exception) -> str:
    """The text of an error; of one of the file system, what is wrong with the file."""
    reasons = (reason for kind, reason in REASONS.items() if isinstance(error, kind))
    name = getattr(error, "filename", None)
    return f"{name} {reason}" if name and (reason := next(reasons, "")) else str(error)


def main() -> None:
    """The console script."""
    wait_briefly()
    for stream in (sys.stdout, sys.stderr):  # letters that a terminal does not have
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, stop)  # `train` and the judge's training wait for a step instead
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the pipe, such as `head`, has stopped
        sys.stderr.close()
        code = 0
    if _left_process_group():
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _left_process_group() -> bool:
    """Whether distributed training failed. The other processes may be gone, so that the group
    cannot be destroyed; its threads may abort the interpreter at exit (pytorch/pytorch#179291).
    """
    distributed = sys.modules.get("torch.distributed")  # only training imports it
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


if __name__ == "__main__":
    main()

"""Whether a function takes time in proportion to its text, by counting its work.

A stopwatch measures the other programs of the machine too, so no test here compares times.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import FrameType
from typing import Any


class CountedText(str):
    """A text that counts the characters which `find` passes over."""

    passed = 0

    def find(self, part: str, start: int = 0, *end: int) -> int:  # type: ignore[override]
        place = super().find(part, start, *end)
        self.passed += (len(self) if place < 0 else place) - start
        return place


def work_of(function: Callable[[str], Any], text: str) -> int:
    """Lines of Python that run, and characters that `find` passes over."""
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    before, counted = sys.gettrace(), CountedText(text)
    sys.settrace(trace)
    try:
        function(counted)
    finally:
        sys.settrace(before)
    return lines + counted.passed


@contextmanager
def at_most_seconds_of_processor(limit: float) -> Iterator[None]:
    """Interrupt what takes longer, even inside a regular expression; waiting does not count."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"more than {limit:g} seconds of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def check_linear(function: Callable[[str], Any], part: str) -> None:
    """A text of twice the length, made of this part, is at most 2.2 times the work.

    Work inside regular expressions cannot be counted. Half a megabyte takes a linear one under a
    second and a quadratic one, at a nanosecond a step, more than 250: the limit is 30.
    """
    counts = [work_of(function, part * (size // len(part))) for size in (2**11, 2**12, 2**13)]
    assert all(after <= 2.2 * before for before, after in pairwise(counts)), counts
    with at_most_seconds_of_processor(30):
        function(part * (2**19 // len(part)))

"""What the fuzzers share: seeded mutations of bytes, and the loop that tries them.

`FUZZ_MINUTES` is how long each fuzzer runs. A failure names the seed; `mutated(samples, seed)` is
the input again.
"""

import os
import random
import re
import resource
import signal
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence

SECONDS, MEMORY = 1.0, 512 << 20  # most processor time and memory of one input
FEWEST = 40  # inputs that are tried at least
HANGS = 20  # seconds after which an input is stopped
BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF, *b'0-{}[]",:.eE\n')
NUMBERS = (0, 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
WORD = re.compile(rb"[\w.+-]+")
WORDS = (
    b"", b"null", b"true", b"NaN", b"-Infinity", b"1e400", b"1e-400", b"-1", b"0", b"True", b"None",
    b"99999999999999999999", b"[]", b"{}", b'""', b'"\\ud800"', b'"\\u0000"', b"../a.png", b"0x1p9",
)  # fmt: skip


class Hangs(BaseException):
    """An input that is still being read; no `except Exception` swallows it."""


def mutate(data: bytes, draws: random.Random) -> bytes:
    """The bytes with one to five random changes."""
    changed = bytearray(data)
    for _ in range(draws.randint(1, 5)):
        at = draws.randint(0, len(changed))
        length = min(draws.choice((1, 1, 2, 4, 8, 64, 1024)), len(changed) - at)
        part = bytes(changed[at : at + length])
        kind = draws.randrange(8)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << draws.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = draws.choice(BYTES)
        elif kind == 2:
            form = draws.choice(("<H", ">H", "<I", ">I"))
            most = 2 ** (8 * struct.calcsize(form)) - 1
            value = struct.pack(form, min(draws.choice(NUMBERS), most))
            changed[at : at + len(value)] = value
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = part * draws.choice((1, 2, 50))
        elif kind == 5:
            changed[at:at] = draws.randbytes(length)
        elif kind == 6:
            to = draws.randint(0, len(changed))
            changed[to : to + length] = part
        elif word := WORD.search(changed, at):
            changed[word.start() : word.end()] = draws.choice(WORDS)
    if draws.random() < 0.1:
        del changed[draws.randint(0, len(changed)) :]
    return bytes(changed)


def mutated(samples: Sequence[bytes], seed: int) -> bytes:
    """Input number `seed` of a fuzzer."""
    draws = random.Random(seed)
    return mutate(draws.choice(samples), draws)


def fuzz(
    samples: Sequence[bytes], read: Callable[[bytes], object], *declared: type[Exception]
) -> Counter[str]:
    """Try mutated samples for `FUZZ_MINUTES`; counts those that are read and those refused.

    Raises:
        AssertionError: another error than those declared, too long, or too much memory.
    """
    for sample in samples:
        read(sample)  # it is valid, and what is imported late is there
    end = time.monotonic() + 60 * float(os.environ.get("FUZZ_MINUTES", "0.05"))
    before = signal.signal(signal.SIGALRM, _stop)
    counts: Counter[str] = Counter()
    peak, seed = _peak(), 0
    try:
        while time.monotonic() < end or seed <= FEWEST:  # on a busy machine too
            data = mutated(samples, seed)
            start = time.process_time()
            signal.alarm(HANGS)
            try:
                read(data)
                counts["read"] += 1
            except declared:
                counts["refused"] += 1
            except BaseException as error:
                raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
            finally:
                signal.alarm(0)
            seconds = time.process_time() - start
            assert seconds < SECONDS, f"seed {seed}: {seconds:.1f} seconds"
            assert _peak() - peak < MEMORY, f"seed {seed}: {(_peak() - peak) >> 20} MB"
            seed += 1
    finally:
        signal.signal(signal.SIGALRM, before)
    return counts


def _peak() -> int:
    """The most memory this process has had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _stop(number: int, frame: object) -> None:
    raise Hangs(f"no end after {HANGS} seconds")

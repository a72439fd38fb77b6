"""Without a terminal: a line every ten seconds at most, with percent and time left."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from triptych.cli import output, train
from triptych.train.loop import Report


class Clock:
    """Seconds that pass only when work is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(output.time, "monotonic", lambda: self.now)


@dataclass(frozen=True)
class Item:
    done: float


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def reports(clock: Clock, steps: range, seconds: float, every: int = 1) -> Iterator[Report]:
    for step in steps:
        clock.now += seconds
        row = {"step": step, "loss": 0.5, "test_nll": 7.0} if step % every == 0 else None
        yield Report(step, {"loss": 0.5, "elbo": -0.5, "kl": 0.25}, row, None)


@pytest.mark.parametrize("every", [1, 20])  # rows of the journal are no reason for a line
@pytest.mark.parametrize("seconds", [0.01, 0.5, 25.0])
def test_training_says_where_it_is(clock, capsys, seconds: float, every: int) -> None:
    started = clock.now
    seen = list(train._show(reports(clock, range(1, 401), seconds, every), 400, 0, True))
    assert [step for step, _ in seen] == list(range(1, 401))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= (clock.now - started) / 10 + 2  # at once, and at the end
    assert len(lines) >= min(399, (clock.now - started - seconds) // 11) + 1
    for line in lines[1:-1]:
        percent, left, step = re.match(r"  (\d+)%, (\S+) left: step (\d+)/400, ", line).groups()
        assert abs(int(percent) - int(step) / 4) <= 0.5
        hours, minutes, rest = map(int, left.split(":"))
        remaining = 3600 * hours + 60 * minutes + rest
        assert remaining == pytest.approx((400 - int(step)) * seconds, abs=0.51)
        speed = f"{1 / seconds:.1f} /s" if seconds <= 1 else "0.04 /s"
        assert speed in line and line.endswith("loss 0.5  kl 0.25")
    assert lines[0].startswith("  0%: step 1/400, ")
    assert lines[-1].startswith("  100%: step 400/400, ") and "test_nll 7" in lines[-1]


def test_a_resumed_run_is_not_credited_with_its_earlier_steps(clock, capsys) -> None:
    list(train._show(reports(clock, range(901, 1001), 1.0), 1000, 900, True))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("  91%, 0:01:29 left: step 911/1,000, 1.0 /s")


def test_other_work_says_nothing_before_ten_seconds(clock, capsys) -> None:
    def work(seconds: float) -> Iterator[Item]:
        for k in range(11):
            yield Item(k / 10)
            clock.now += seconds

    assert output.finish(work(0.5), lambda item: f"{item.done:.1f} done").done == 1
    assert capsys.readouterr().err == ""
    assert output.finish(work(5), lambda item: f"{item.done:.1f} done").done == 1
    assert capsys.readouterr().err.splitlines() == [
        "  20%, 0:00:40 left: 0.2 done",
        "  40%, 0:00:30 left: 0.4 done",
        "  60%, 0:00:20 left: 0.6 done",
        "  80%, 0:00:10 left: 0.8 done",
    ]


def test_work_before_the_first_step(clock, capsys) -> None:
    def work() -> Iterator[tuple[str, int, int]]:
        yield "reading the cache", 0, 0
        for k in range(101):
            yield "encoding", k, 100
            clock.now += 0.25

    train._wait(work(), output.say)
    assert capsys.readouterr().err.splitlines() == [
        "reading the cache",
        "  40%, 0:00:15 left: encoding: 40 of 100",
        "  80%, 0:00:05 left: encoding: 80 of 100",
        "encoding: 100 of 100",
    ]


def test_a_preview_file_keeps_the_lines(clock, capsys, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Drawing:
        done: float
        pictures: tuple[int, ...] = ()

    def work() -> Iterator[Drawing]:
        for k in range(5):
            yield Drawing(k / 4)
            clock.now += 6

    for file in (None, tmp_path / "look.png"):
        assert len(list(output.watch(work(), lambda item: None, file))) == 5
        assert capsys.readouterr().err == "  50%, 0:00:12 left: 0 pictures\n"

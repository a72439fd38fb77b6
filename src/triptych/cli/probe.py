"""`triptych probe MODEL SOURCE`: how much of the classes lies ready in what a frozen model sees."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from triptych.cli.arguments import parse
from triptych.cli.classify import NAMED, say_accuracy
from triptych.cli.main import say
from triptych.cli.words import plain

if TYPE_CHECKING:
    from triptych.data.gallery import Gallery
    from triptych.systems.classification.frozen import Features
    from triptych.systems.classification.probe import FewShot, Probe
    from triptych.weights.loaded import Loaded

USAGE = "triptych probe MODEL SOURCE [OPTIONS]"
BASIC = ("test", "shots", "seeds", "limit", "out", "json")


@dataclass(frozen=True)
class Arguments:
    """Learn the classes of a source by a linear classifier on a frozen CLIP or SigLIP, and judge it
    on pictures that it has not seen.
    """

    model: str
    """A run folder, the folder or file of a published checkpoint, or OWNER/NAME on the hub."""
    source: str
    """A folder whose sub-folders are classes, or any other labelled source."""
    test: str = ""
    """Another source to be judged on; empty takes what the source sets aside, else a tenth."""
    shots: tuple[int, ...] = ()
    """Also learn from so many pictures of each class alone."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Draws of these few pictures; the first also divides the pictures that choose the penalty."""
    limit: int = 0
    """At most so many pictures to learn from, and to be judged on; 0 is all."""
    batch: int = 32
    """Pictures that the model sees at once."""
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the model computes in; auto is the fastest that the device has instructions for."""
    out: Path | None = None
    """A folder for report.json, the confusion matrix, reliability, and the classifier itself."""
    json: bool = False
    """One JSON object on stdout, and nothing else there."""

    def __post_init__(self) -> None:
        if self.limit < 0 or self.batch < 1 or not self.seeds:
            raise ValueError("limit is 0 or more, batch at least 1, and seeds at least one number")
        if any(shots < 1 for shots in self.shots):
            raise ValueError(f"shots are at least 1, not {min(self.shots)}")


def main(arguments: list[str]) -> int:
    parsed = parse(Arguments, arguments, usage=USAGE, basic=BASIC, positional=True)
    from triptych import runtime
    from triptych.loading import load
    from triptych.systems.classification import frozen

    learned, judged = frozen.train_and_test(parsed.source, parsed.test, parsed.limit)
    _check_shots(parsed.shots, learned)
    loaded = load(parsed.model, runtime.device(parsed.device), parsed.dtype)
    train = _seen(loaded, learned, parsed.batch)
    test = _seen(loaded, judged, parsed.batch)
    found = _learn(parsed, train, test)
    if parsed.json:
        print(json.dumps(found))
    return 0


def _check_shots(shots: tuple[int, ...], learned: "Gallery") -> None:
    """Before the model has looked at all of them, which may take long."""
    from triptych.systems.classification.probe import VALIDATION_SHOTS

    most = max(shots, default=0)
    needed = most + min(most, VALIDATION_SHOTS)
    counts = dict.fromkeys(range(len(learned.classes)), 0)
    for unread in learned.pictures:
        counts[unread.label] += 1
    rarest = min(counts, key=lambda label: counts[label])
    if counts[rarest] < needed:
        raise ValueError(
            f"{most} shots take {needed} pictures of each class, to learn from and to choose the "
            f"penalty by; {learned.classes[rarest]} has {counts[rarest]}"
        )


def _seen(loaded: "Loaded", pictures: "Gallery", batch: int) -> "Features":
    """Looks at all of them, says a line for each quarter, and what could not be read."""
    from triptych.systems.classification import frozen

    quarters = 0
    for seen in frozen.embed_gallery(loaded, pictures, batch):
        if int(4 * seen.done) > quarters and seen.done < 1:
            quarters = int(4 * seen.done)
            say(f"  {seen.done:.0%}: {len(seen.labels):,} pictures")
    for name, why in list(seen.skipped.items())[:NAMED]:
        say(plain(f"  skipped {name}: {why}"))
    if (more := len(seen.skipped) - NAMED) > 0:
        say(f"  and {more:,} more pictures that could not be read (--json names them all)")
    return seen


def _learn(parsed: Arguments, train: "Features", test: "Features") -> dict[str, Any]:
    """The probe, and few shots where they are asked for: said, and written where asked for."""
    from triptych.config import to_json
    from triptych.systems.classification.probe import fit_probe_and_penalty
    from triptych.systems.classification.report import zero_shot

    classes = len(train.classes)
    probe, tried = fit_probe_and_penalty(
        train.features, train.labels, classes, seed=parsed.seeds[0]
    )
    names = [name.replace("_", " ") for name in train.classes]
    found = zero_shot(probe.logits(test.features), test.labels, names, "softmax")
    say(
        f"a linear classifier on {train.features.shape[1]} numbers a picture, learned from "
        f"{len(train.labels):,} pictures; penalty {probe.penalty:g}, {tried[probe.penalty]:.2%} on "
        "the fifth of them that chose it"
    )
    say_accuracy(found)
    few = _few(parsed, train, test)
    report = {
        "model": Path(parsed.model).name,
        "classes": names,
        "train": len(train.labels),
        "test": len(test.labels),
        "penalty": probe.penalty,
        "validation": [{"penalty": p, "accuracy": share} for p, share in tried.items()],
        "linear_probe": to_json(found),
        "few_shot": [to_json(one) for one in few],
        "skipped": [
            {"name": name, "reason": why} for name, why in (train.skipped | test.skipped).items()
        ],
    }
    if parsed.out is not None:
        _write(parsed.out, report, probe)
        _draw(parsed.out, found, few)
        say(f"report and classifier: {parsed.out}")
    return report


def _few(parsed: Arguments, train: "Features", test: "Features") -> "list[FewShot]":
    from triptych.systems.classification.probe import few_shot

    learned = []
    for head in ("nearest mean", "probe"):
        for shots in parsed.shots:
            one = few_shot(
                train.features, train.labels, len(train.classes), shots,
                head=head, seeds=parsed.seeds, test=(test.features, test.labels),
            )  # fmt: skip
            learned.append(one)
            draws = f"over {len(parsed.seeds)} draws" if len(parsed.seeds) > 1 else "in one draw"
            say(f"{shots} shots, {head}: {one.mean:.2%} +- {one.deviation:.2%} {draws}")
    return learned


def _write(folder: Path, report: dict[str, Any], probe: "Probe") -> None:
    """Logits are `features @ weight.T + bias` for features of unit length, classes as reported."""
    from triptych.config import write_json
    from triptych.scores.environment import environment
    from triptych.weights.files.safetensors import write_tensors

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report | {"environment": environment("triptych probe")})
    head = {"weight": probe.weight.float(), "bias": probe.bias.float()}
    write_tensors(folder / "probe.safetensors", head)


def _draw(folder: Path, found: Any, few: "list[FewShot]") -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        say("no plots: they need matplotlib, pip install 'triptych[evaluation]'")
        return
    from triptych.systems.classification.plots import draw_zero_shot

    draw_zero_shot(found, folder)

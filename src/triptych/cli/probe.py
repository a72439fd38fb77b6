"""`triptych probe MODEL SOURCE`: a linear classifier on the features of a frozen model."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from triptych.cli.arguments import parse
from triptych.cli.classify import draw_report, learn_from_few, say_accuracy
from triptych.cli.output import finish, say, say_skipped
from triptych.cli.places import require_folder

if TYPE_CHECKING:
    from triptych.data.gallery import Gallery
    from triptych.systems.classification.frozen import Features
    from triptych.systems.classification.probe import Probe
    from triptych.weights.loaded import Loaded

USAGE = "triptych probe MODEL SOURCE [OPTIONS]"
BASIC = ("test", "shots", "seeds", "limit", "out", "json")


@dataclass(frozen=True)
class Arguments:
    """Train a linear classifier on the features of a frozen CLIP or SigLIP, and test it on other
    pictures.
    """

    model: str
    """A run folder, a published checkpoint, OWNER/NAME on the hub, or a name such as clip-b32."""
    source: str
    """A folder whose sub-folders are classes, or any other labelled source."""
    test: str = ""
    """Another source to test on. Default: the test split of the source, or a tenth of it."""
    shots: tuple[int, ...] = ()
    """Also train on only this many pictures per class."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the draws of these few; the first also splits off the validation pictures."""
    limit: int = 0
    """Maximum number of pictures to train on, and to test on; 0 is all."""
    batch: int = 32
    """Pictures in a batch."""
    device: str = "auto"
    """`cpu`, `cuda`, ...; `auto` takes an accelerator where there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the model; auto is the fastest of the device."""
    out: Path | None = None
    """Folder for report.json, the confusion matrix, the reliability plot, and the classifier."""
    json: bool = False
    """Print one JSON object on stdout."""

    def __post_init__(self) -> None:
        if self.limit < 0 or self.batch < 1 or not self.seeds:
            raise ValueError("limit is 0 or more, batch at least 1, and seeds at least one number")
        if any(shots < 1 for shots in self.shots):
            raise ValueError(f"shots are at least 1, not {min(self.shots)}")


def main(arguments: list[str]) -> int:
    parsed = parse(Arguments, arguments, usage=USAGE, basic=BASIC, positional=("model", "source"))
    if parsed.out is not None:
        require_folder("--out", parsed.out)
    from triptych import runtime
    from triptych.loading import load
    from triptych.systems.classification import frozen

    train_pictures, test_pictures = frozen.train_and_test(parsed.source, parsed.test, parsed.limit)
    _check_shots(parsed.shots, train_pictures)
    loaded = load(parsed.model, runtime.device(parsed.device), parsed.dtype)
    train = _embed(loaded, train_pictures, parsed.batch)
    test = _embed(loaded, test_pictures, parsed.batch)
    report = _learn(parsed, train, test)
    if parsed.json:
        print(json.dumps(report))
    return 0


def _check_shots(shots: tuple[int, ...], pictures: "Gallery") -> None:
    """Checked before the pictures are embedded, which may take long."""
    from triptych.systems.classification.probe import VALIDATION_SHOTS

    most = max(shots, default=0)
    needed = most + min(most, VALIDATION_SHOTS)
    counts = dict.fromkeys(range(len(pictures.classes)), 0)
    for unread in pictures.pictures:
        counts[unread.label] += 1
    rarest = min(counts, key=lambda label: counts[label])
    if counts[rarest] < needed:
        raise ValueError(
            f"{most} shots need {needed} pictures of each class, for training and validation; "
            f"{pictures.classes[rarest]} has {counts[rarest]}"
        )


def _embed(loaded: "Loaded", pictures: "Gallery", batch: int) -> "Features":
    from triptych.systems.classification.frozen import embed_gallery

    steps = embed_gallery(loaded, pictures, batch)
    features = finish(steps, lambda so_far: f"{len(so_far.labels):,} pictures")
    say_skipped(features.skipped)
    return features


def _learn(parsed: Arguments, train: "Features", test: "Features") -> dict[str, Any]:
    """Train the classifier and, with --shots, those of few pictures; write the report to --out."""
    from triptych.fields import to_json
    from triptych.systems.classification.probe import few_shot, fit_probe_and_penalty
    from triptych.systems.classification.report import zero_shot

    classes = len(train.classes)
    probe, tried = fit_probe_and_penalty(
        train.features, train.labels, classes, seed=parsed.seeds[0]
    )
    names = [name.replace("_", " ") for name in train.classes]
    found = zero_shot(probe.logits(test.features), test.labels, names, "softmax")
    say(
        f"a linear classifier on {train.features.shape[1]} features, trained on "
        f"{len(train.labels):,} pictures; penalty {probe.penalty:g}, validation accuracy "
        f"{tried[probe.penalty]:.2%}"
    )
    say_accuracy(found)
    learn = partial(
        few_shot, train.features, train.labels, classes, seeds=parsed.seeds,
        test=(test.features, test.labels),
    )  # fmt: skip
    few = learn_from_few(("nearest mean", "probe"), parsed.shots, learn)
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
        draw_report(found, parsed.out)
        say(f"report and classifier: {parsed.out}")
    return report


def _write(folder: Path, report: dict[str, Any], probe: "Probe") -> None:
    """Logits are `features @ weight.T + bias` for features of unit length; classes as reported."""
    from triptych.config import write_json
    from triptych.scores.environment import environment
    from triptych.weights.files.safetensors import write_safetensors

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report | {"environment": environment("triptych probe")})
    head = {"weight": probe.weight.float(), "bias": probe.bias.float()}
    write_safetensors(folder / "probe.safetensors", head)

"""`triptych classify PICTURE... --labels a b`: which labels fit, and how often they are right."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import parse
from triptych.cli.output import UsageError, finish, printable, say, say_skipped
from triptych.cli.places import require_file, require_folder
from triptych.systems.classification.request import Classify

if TYPE_CHECKING:
    from torch import Tensor

    from triptych.systems.classification.pipeline import Classified
    from triptych.systems.classification.probe import FewShot
    from triptych.systems.classification.report import ZeroShot
    from triptych.systems.classification.similarity import Reading

USAGE = "triptych classify PICTURE ... --labels LABEL ... [OPTIONS]"
BASIC = (
    "labels", "model", "templates", "top", "matrix", "out", "shots", "split", "limit", "json",
)  # fmt: skip
READINGS = ("softmax", "sigmoid")
LISTED = 5  # cut prompts, and classes of low accuracy
MATRIX = (24, 12)  # at most so many pictures and labels


@dataclass(frozen=True)
class Arguments:
    """Zero-shot classification: which labels fit pictures, by a CLIP or SigLIP."""

    request: Classify
    top: int = 5
    """Number of labels to show per picture, best first; 0 is all."""
    matrix: Path | None = None
    """A .png file to write: the cosines of pictures and labels, their softmax and sigmoid."""
    out: Path = Path("classified")
    """With --labels auto: folder for report.json, the confusion matrix and the reliability plot."""
    shots: tuple[int, ...] = ()
    """With --labels auto: also learn from this many pictures per class, in five random draws."""
    json: bool = False
    """Print one JSON object on stdout."""


def main(arguments: list[str]) -> int:
    parsed = parse(Arguments, arguments, usage=USAGE, basic=BASIC, positional=("pictures",))
    if parsed.top < 0:
        raise UsageError(f"--top is 0 (all) or more, not {parsed.top}")
    if parsed.matrix is not None:
        require_file("--matrix", parsed.matrix, (".png",))
    if parsed.request.evaluated:
        require_folder("--out", parsed.out)
    elif parsed.shots:
        raise UsageError("--shots needs pictures whose classes are known: --labels auto")
    from triptych.running import run
    from triptych.systems.classification.answer import rank_labels

    result = finish(run(parsed.request), lambda so_far: f"{len(so_far.names):,} pictures")
    say_skipped(result.skipped)
    _say_cut(result.cut)
    if parsed.request.evaluated:
        report = _evaluate(parsed, result)
    else:
        report = rank_labels(result, parsed.top or len(result.labels))
        if not parsed.json:
            _print(report)
    if parsed.matrix is not None:
        _draw_matrix(result, parsed.matrix)
        report["matrix"] = str(parsed.matrix)
        say(f"matrix: {parsed.matrix}")
    if parsed.json:
        print(json.dumps(report))
    return 3 if _is_incomplete(result) else 0


def _is_incomplete(result: "Classified") -> bool:
    """Whether a named file, or more than a tenth of all pictures, could not be read."""
    named = set(result.request.pictures) & set(result.skipped)
    total = len(result.names) + len(result.skipped)
    if not named and len(result.skipped) <= total / 10:
        return False
    say(f"triptych: {len(result.skipped):,} of {total:,} pictures could not be read")
    return True


def _say_cut(cut: dict[str, str]) -> None:
    for prompt, end in list(cut.items())[:LISTED]:
        say(f"  {prompt!r} is too long: the model ignores {end!r}")
    if (more := len(cut) - LISTED) > 0:
        say(f"  and {more:,} more prompts that are too long (--json lists all)")


def _print(report: dict[str, Any]) -> None:
    """A small table per picture."""
    unit = "of these labels" if report["reads"] == "softmax" else "yes or no"
    width = max(len(fit["label"]) for row in report["pictures"] for fit in row["labels"])
    for row in report["pictures"]:
        print(printable(row["file"]))
        for fit in row["labels"]:
            percent = 100 * fit["probability"]
            probability = f"{percent:.1f}" if percent >= 0.05 else "<0.1"
            print(
                f"  {fit['label']:<{width}}  cosine {fit['cosine']:6.3f}  {probability:>5} % {unit}"
            )


def _evaluate(parsed: Arguments, result: "Classified") -> dict[str, Any]:
    """Write accuracy, confusion, calibration and, with --shots, few-shot accuracy."""
    from triptych.config import write_json
    from triptych.fields import to_json
    from triptych.scores.environment import environment
    from triptych.systems.classification.answer import describe
    from triptych.systems.classification.probe import few_shot
    from triptych.systems.classification.report import zero_shot

    assert result.truth is not None
    found = zero_shot(result.logits(), result.truth, result.labels, result.reads)
    say_accuracy(found)
    learn = partial(
        few_shot,
        result.image,
        result.truth,
        len(result.labels),
        text=result.text,
        scale=result.scale,
    )
    few = learn_from_few(("nearest mean", "probe from text"), parsed.shots, learn)
    parsed.out.mkdir(parents=True, exist_ok=True)
    report = describe(result) | {
        "pictures": len(result.names),
        "zero_shot": to_json(found),
        "few_shot": [to_json(learned) for learned in few],
        "environment": environment("triptych classify"),
    }
    write_json(parsed.out / "report.json", report)
    draw_report(found, parsed.out, few)
    say(f"report: {parsed.out}")
    return report


def say_accuracy(found: "ZeroShot") -> None:
    """Print top-1, top-5, the classes of lowest accuracy, and calibration."""
    for name, share in (("top-1", found.top1), ("top-5", found.top5)):
        if share is not None:
            say(
                f"{name} {share.value:.2%} (95 % interval {share.low:.2%} to {share.high:.2%}), "
                f"chance {share.chance:.2%}, {share.count:,} pictures"
            )
    known = [c for c in found.classes if c.accuracy]
    poor = sorted(known, key=lambda c: c.accuracy.value if c.accuracy else 1.0)[:LISTED]
    say(f"mean over classes {found.mean_class:.2%}; the lowest:")
    for one in poor:
        if one.accuracy is not None:
            instead = f", most often classified as {one.taken_for}" if one.taken_for else ""
            say(f"  {one.name} {one.accuracy.value:.2%} of {one.accuracy.count:,}{instead}")
    say(f"expected calibration error {found.calibration.error:.2%} ({found.reads})")
    if found.held_out is not None:
        before, after = found.held_out.before, found.held_out.after
        say(
            f"softmax on a held-out half {before.error:.2%}; at temperature "
            f"{found.held_out.temperature:.3g} of the other half {after.error:.2%}"
        )


def learn_from_few(
    heads: Sequence[str], shots: Sequence[int], learn: "Callable[..., FewShot]"
) -> "list[FewShot]":
    """Learn from each number of pictures per class with each head, and print the accuracies."""
    results = []
    for head in heads:
        for count in shots:
            one = learn(count, head=head)
            results.append(one)
            draws = f"over {len(one.draws)} draws" if len(one.draws) > 1 else "in one draw"
            say(f"{count} shots, {head}: {one.mean:.2%} +- {one.deviation:.2%} {draws}")
    return results


def draw_report(found: "ZeroShot", folder: Path, few: "Sequence[FewShot]" = ()) -> None:
    """Plots of accuracy, confusion and calibration, if matplotlib is installed."""
    from triptych.scores.style import require_matplotlib
    from triptych.systems.classification.plots import draw_zero_shot

    try:
        require_matplotlib()
    except ValueError as error:
        say(str(error))
        return

    draw_zero_shot(found, folder, few)


def _draw_matrix(result: "Classified", path: Path) -> None:
    """Draw the first pictures against the labels that fit them best."""
    from triptych.systems.classification import similarity
    from triptych.systems.classification.pipeline import gallery_of
    from triptych.vision.images import save_picture

    rows, columns = MATRIX
    names = result.names[:rows]
    best = result.cosines()[:rows].amax(0).argsort(descending=True)[:columns].sort().values
    unread = {one.name: one for one in gallery_of(result.request).pictures}
    title = f"{Path(result.request.model).name}: from cosine to probability"
    if len(result.names) > len(names) or len(result.labels) > len(best):
        title += (
            f" ({len(names)} of {len(result.names):,} pictures, {len(best)} of "
            f"{len(result.labels):,} labels)"
        )
    sheet = similarity.similarity_picture(
        [unread[name].open() for name in names],
        [Path(name).name for name in names],
        [result.labels[number] for number in best.tolist()],
        _readings(result, len(names), best),
        title,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(path, sheet)


def _readings(result: "Classified", rows: int, shown: "Tensor") -> "list[Reading]":
    """Cosines, softmax and sigmoid; the softmax is over all labels, not only those shown."""
    from triptych.systems.classification.pipeline import to_probabilities
    from triptych.systems.classification.similarity import (
        cosine_reading,
        neutral_bias,
        probability_reading,
    )

    logits = result.logits()[:rows]
    softmax = to_probabilities(logits, "softmax")[:, shown].numpy()
    if result.reads == "sigmoid":
        bias, why = result.bias, "learned"
    else:
        bias, why = neutral_bias(logits.numpy()), "chosen: one yes a picture"
    sigmoid = to_probabilities(logits[:, shown] + bias - result.bias, "sigmoid").numpy()
    shifted = f"sigmoid(cosine x {result.scale:.3g} {'-' if bias < 0 else '+'} {abs(bias):.3g})"
    mark = {how: " - as this model is read" if how == result.reads else "" for how in READINGS}
    return [
        cosine_reading(result.cosines()[:rows, shown].numpy()),
        probability_reading(f"softmax(cosine x {result.scale:.3g}){mark['softmax']}", softmax),
        probability_reading(f"{shifted}, bias {why}{mark['sigmoid']}", sigmoid),
    ]

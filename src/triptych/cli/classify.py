"""`triptych classify PICTURE... --labels a b`: which labels fit, and how often they are right."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import parse
from triptych.cli.main import say
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
NAMED = 5  # of skipped pictures, cut prompts and poor classes, as many are written out
DRAWN = (24, 12)  # pictures and labels that a matrix has at most


@dataclass(frozen=True)
class Arguments:
    """Say which labels fit pictures, with a CLIP or SigLIP that was never trained for them."""

    request: Classify
    top: int = 5
    """Labels shown for a picture, the best first; 0 is all."""
    matrix: Path | None = None
    """Draw the cosines and both readings of them, softmax and sigmoid, into this .png."""
    out: Path = Path("classified")
    """With a source's own classes: folder for report.json, the confusion matrix and reliability."""
    shots: tuple[int, ...] = ()
    """With a source's own classes: also learn from so many pictures of each, over five draws."""
    json: bool = False
    """One JSON object on stdout, and nothing else there."""


def main(arguments: list[str]) -> int:
    parsed = parse(Arguments, arguments, usage=USAGE, basic=BASIC, positional=True)
    if parsed.top < 0:
        raise ValueError(f"top is 0 (all) or more, not {parsed.top}")
    if parsed.matrix is not None and parsed.matrix.suffix.lower() != ".png":
        raise ValueError(f"the matrix is a .png, not {parsed.matrix.name!r}")
    if parsed.shots and not parsed.request.evaluated:
        raise ValueError("--shots needs pictures whose classes are known: --labels auto")
    from triptych.running import run

    result = _shown(run(parsed.request))
    _say_lost(result)
    if parsed.request.evaluated:
        found = _evaluate(parsed, result)
    else:
        found = _pictures(result, parsed.top or len(result.labels))
        if not parsed.json:
            _print(found)
    if parsed.matrix is not None:
        _draw(result, parsed.matrix)
        found["matrix"] = str(parsed.matrix)
        say(f"matrix: {parsed.matrix}")
    if parsed.json:
        print(json.dumps(found))
    return 0


def _shown(work: "Iterator[Classified]") -> "Classified":
    """Runs to the result: under a live bar on a terminal, else a line for each tenth."""
    result = next(work)
    if sys.stderr.isatty() and result.done < 1:
        return _under_bar(work, result)
    tenths = 0
    for result in work:
        if int(10 * result.done) > tenths and result.done < 1:
            tenths = int(10 * result.done)
            say(f"  {result.done:.0%}: {len(result.names):,} pictures")
    return result


def _under_bar(work: "Iterator[Classified]", result: "Classified") -> "Classified":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.percentage:3.0f} %"),
        BarColumn(24),
        TextColumn("{task.fields[read]} pictures"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0, read=len(result.names))
        for result in work:
            bar.update(task, completed=result.done, read=len(result.names))
    return result


def _say_lost(result: "Classified") -> None:
    """Nothing is left out in silence: pictures that were not read, and ends of prompts."""
    for name, why in list(result.skipped.items())[:NAMED]:
        say(f"  skipped {name}: {why}")
    if (more := len(result.skipped) - NAMED) > 0:
        say(f"  and {more:,} more pictures that could not be read (--json names them all)")
    for prompt, end in list(result.cut.items())[:NAMED]:
        say(f"  {prompt!r} is too long: the model does not see {end!r}")
    if (more := len(result.cut) - NAMED) > 0:
        say(f"  and {more:,} more prompts that are too long (--json names them all)")


def _pictures(result: "Classified", top: int) -> dict[str, Any]:
    cosines, probabilities = result.cosines(), result.probabilities()
    order = cosines.argsort(dim=1, descending=True, stable=True)[:, :top]
    rows = []
    for name, row, cosine, probability in zip(
        result.names, order.tolist(), cosines.tolist(), probabilities.tolist(), strict=True
    ):
        fits = [
            {"label": result.labels[i], "cosine": cosine[i], "probability": probability[i]}
            for i in row
        ]
        rows.append({"file": name, "labels": fits})
    return _about(result) | {"pictures": rows}


def _about(result: "Classified") -> dict[str, Any]:
    """What a reader of the numbers must know."""
    return {
        "model": Path(result.request.model).name,
        "reads": result.reads,
        "scale": result.scale,
        "bias": result.bias,
        "templates": result.templates,
        "labels": result.labels,
        "skipped": [{"name": name, "reason": why} for name, why in result.skipped.items()],
        "cut": [{"prompt": prompt, "lost": end} for prompt, end in result.cut.items()],
    }


def _print(found: dict[str, Any]) -> None:
    """A small table for each picture."""
    shared = "of these labels" if found["reads"] == "softmax" else "yes or no"
    width = max(len(fit["label"]) for row in found["pictures"] for fit in row["labels"])
    for row in found["pictures"]:
        print(row["file"])
        for fit in row["labels"]:
            percent = 100 * fit["probability"]
            probability = f"{percent:.1f}" if percent >= 0.05 else "<0.1"
            print(
                f"  {fit['label']:<{width}}  cosine {fit['cosine']:6.3f}  {probability:>5} % "
                f"{shared}"
            )


def _evaluate(parsed: Arguments, result: "Classified") -> dict[str, Any]:
    """Accuracy, confusion and calibration; few shots where they are asked for. Written and said."""
    from importlib.util import find_spec

    from triptych.config import to_json, write_json
    from triptych.scores.environment import environment
    from triptych.systems.classification.report import zero_shot

    assert result.truth is not None
    found = zero_shot(result.logits(), result.truth, result.labels, result.reads)
    say_accuracy(found)
    few = _few_shot(parsed, result, result.truth)
    parsed.out.mkdir(parents=True, exist_ok=True)
    report = _about(result) | {
        "pictures": len(result.names),
        "zero_shot": to_json(found),
        "few_shot": [to_json(learned) for learned in few],
        "environment": environment("triptych classify"),
    }
    write_json(parsed.out / "report.json", report)
    if find_spec("matplotlib") is None:
        say("no plots: they need matplotlib, pip install 'triptych[evaluation]'")
    else:
        from triptych.systems.classification.plots import draw_zero_shot

        draw_zero_shot(found, parsed.out, few)
    say(f"report: {parsed.out}")
    return report


def say_accuracy(found: "ZeroShot") -> None:
    """Top-1, top-5, the poorest classes and calibration, for people."""
    for name, share in (("top-1", found.top1), ("top-5", found.top5)):
        if share is not None:
            say(
                f"{name} {share.value:.2%} (95 % interval {share.low:.2%} to {share.high:.2%}), "
                f"chance {share.chance:.2%}, {share.count:,} pictures"
            )
    known = [c for c in found.classes if c.accuracy]
    poor = sorted(known, key=lambda c: c.accuracy.value if c.accuracy else 1.0)[:NAMED]
    say(f"mean of the classes {found.mean_class:.2%}; the poorest:")
    for one in poor:
        if one.accuracy is not None:
            instead = f", most often taken for {one.taken_for}" if one.taken_for else ""
            say(f"  {one.name} {one.accuracy.value:.2%} of {one.accuracy.count:,}{instead}")
    say(f"expected calibration error {found.calibration.error:.2%} ({found.reads})")
    if found.held_out is not None:
        before, after = found.held_out.before, found.held_out.after
        say(
            f"softmax on a held-out half {before.error:.2%}; at temperature "
            f"{found.held_out.temperature:.3g} of the other half {after.error:.2%}"
        )


def _few_shot(parsed: Arguments, result: "Classified", truth: "Tensor") -> "list[FewShot]":
    from triptych.systems.classification.probe import few_shot

    learned = []
    for head in ("nearest mean", "probe from text") if parsed.shots else ():
        for shots in parsed.shots:
            one = few_shot(
                result.image, truth, len(result.labels), shots,
                head=head, text=result.text, scale=result.scale,
            )  # fmt: skip
            learned.append(one)
            say(f"{shots} shots, {head}: {one.mean:.2%} +- {one.deviation:.2%} over 5 draws")
    return learned


def _draw(result: "Classified", path: Path) -> None:
    """The first pictures against the labels that fit them best."""
    from triptych.systems.classification import similarity
    from triptych.systems.classification.pipeline import gallery_of
    from triptych.vision.images import save_picture

    rows, columns = DRAWN
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
    """Both, whichever the model was trained for; softmax over all labels, not only those shown."""
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
    else:  # none was learned
        bias, why = neutral_bias(logits.numpy()), "chosen: one yes a picture"
    sigmoid = to_probabilities(logits[:, shown] + bias - result.bias, "sigmoid").numpy()
    shifted = f"sigmoid(cosine x {result.scale:.3g} {'-' if bias < 0 else '+'} {abs(bias):.3g})"
    mark = {how: " - as this model is read" if how == result.reads else "" for how in READINGS}
    return [
        cosine_reading(result.cosines()[:rows, shown].numpy()),
        probability_reading(f"softmax(cosine x {result.scale:.3g}){mark['softmax']}", softmax),
        probability_reading(f"{shifted}, bias {why}{mark['sigmoid']}", sigmoid),
    ]

"""Write an evaluation down: numbers as JSON, a page as Markdown, and the plots that it shows.

Each carries what is needed to get the same again: command, seed, versions and hardware.
"""

from pathlib import Path
from typing import Any

from triptych.config import to_json, write_json
from triptych.scores.accuracy import Accuracy
from triptych.scores.environment import environment
from triptych.scores.fid import Estimate
from triptych.scores.memorisation import QUANTILES
from triptych.systems.class_to_image.judge import ClassConditionalReport, Distances
from triptych.systems.class_to_image.plots import draw_plots


def write_report(report: ClassConditionalReport, folder: Path, *, command: str) -> tuple[Path, ...]:
    """Write `report.json`, `report.md` and the plots it shows; returns their paths.

    Raises:
        ValueError: matplotlib is missing; the numbers are written nevertheless.
    """
    folder.mkdir(parents=True, exist_ok=True)
    setting = environment(command)
    numbers = to_json(report)
    del numbers["pairs"]  # pictures: they are in neighbours.png
    write_json(folder / "report.json", {"environment": setting, "quantiles": QUANTILES} | numbers)
    (folder / "report.md").write_text(markdown(report, setting), encoding="utf-8")
    plots = draw_plots(report, folder)
    return (folder / "report.json", folder / "report.md", *plots)


def markdown(report: ClassConditionalReport, setting: dict[str, Any]) -> str:
    """The report as a page: each number with its interval and what to hold it against."""
    fidelity = report.accuracy.overall
    parts = [
        f"# Evaluation on {report.source}\n\n"
        f"{report.samples:,} samples ({report.samples_per_class:,} a class), seed {report.seed}. "
        "Intervals are 95 %. Distances are in features of the judge.\n",
        "| | samples | compare with |\n|---|---|---|",
        _row(
            "conditional accuracy",
            _share(fidelity),
            f"chance {fidelity.chance:.1%}; judge on real test pictures {_share(report.judge)}",
        ),
        _row("FID", _estimate(report.distance.frechet), _against(report, "frechet")),
        _row("KID x 1000", _estimate(report.distance.kernel, 1000), _against(report, "kernel")),
    ]
    for name in ("precision", "recall", "density", "coverage"):
        ours, floor = getattr(report.prdc, name), getattr(report.prdc_floor, name)
        parts.append(_row(name, f"{ours:.3f}", f"training against training {floor:.3f}"))
    if report.score is not None:
        trained = f"{report.score.trained_on:,} pictures"
        parts.append(
            _row(
                f"classification accuracy score (train on {trained}, test on real)",
                _share(report.score.samples),
                f"trained on as many real pictures {_share(report.score.real)}",
            )
        )
    for space, found in (("pixels", report.pixels), ("features", report.features)):
        parts.append(
            _row(
                f"samples near a training picture, in {space}",
                f"{found.closer:.1%} ({found.low:.1%} to {found.high:.1%}) of {found.count:,}",
                f"{found.expected:.0%} of unseen real pictures",
            )
        )
        parts.append(
            _row(
                f"sample nearer to training than an unseen picture, in {space}",
                f"{found.nearer:.1%} of pairs",
                "50 % when they are alike",
            )
        )
    held = report.distance
    parts.append(
        f"\nDistances compare {held.count:,} samples with {held.reference:,} training pictures. "
        f"Neighbours were looked for among {report.training:,} training pictures.\n"
    )
    parts += ["## Classes\n", _classes(report)]
    parts += ["![Classes](classes.png)\n\n![Confusion](confusion.png)\n"]
    parts += ["## Distance to the nearest training picture\n", _quantiles(report)]
    parts += ["![Samples closest to training pictures](neighbours.png)\n"]
    facts = "\n".join(f"- {name}: {value}" for name, value in setting.items() if value is not None)
    return "\n".join([*parts, f"## Setting\n\n{facts}\n"])


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _share(found: Accuracy) -> str:
    return f"{found.value:.2%} ({found.low:.2%} to {found.high:.2%})"


def _estimate(found: Estimate, scale: float = 1.0) -> str:
    return f"{found.value * scale:.3g} ({found.low * scale:.3g} to {found.high * scale:.3g})"


def _against(report: ClassConditionalReport, kind: str) -> str:
    scale = 1000 if kind == "kernel" else 1
    against = f"training against training {_estimate(getattr(report.floor, kind), scale)}"
    if report.held_out is None:
        return against
    unseen = _estimate(getattr(report.held_out, kind), scale)
    return f"{against}; test against training {unseen}, {report.held_out.count:,} test pictures"


def _distance(found: Distances | None) -> tuple[str, str]:
    if found is None:
        return "too few", "too few"
    return f"{found.frechet.value:.3g}", f"{found.kernel.value * 1000:.3g}"


def _classes(report: ClassConditionalReport) -> str:
    lines = [
        "| class | accuracy | FID | floor | KID x 1000 | floor | diversity |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report.classes:
        (frechet, kernel), (frechet_floor, kernel_floor) = map(_distance, (row.samples, row.floor))
        variety = "too few" if row.diversity is None else f"{row.diversity:.2f}"
        shown = _share(row.accuracy)
        lines.append(_row(row.name, shown, frechet, frechet_floor, kernel, kernel_floor, variety))
    return "\n".join(lines) + "\n"


def _quantiles(report: ClassConditionalReport) -> str:
    lines = [
        _row("", *(f"{level:.0%}" for level in QUANTILES)),
        "|---" * (len(QUANTILES) + 1) + "|",
    ]
    for space, found in (("pixels", report.pixels), ("features", report.features)):
        for who in ("samples", "held_out"):
            numbers = getattr(found, who)
            name = f"{who.replace('_', ' ')}, {space}"
            lines.append(_row(name, *(f"{number:.3g}" for number in numbers)))
    return "\n".join(lines) + "\n"

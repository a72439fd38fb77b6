"""Writes a report, or diffusion curves: numbers as JSON, a Markdown page, and its plots.

JSON and page state what is needed to reproduce them: command, seed, versions and hardware.
"""

import json
from pathlib import Path
from typing import Any

from triptych.config import write_json
from triptych.fields import to_json
from triptych.scores.accuracy import Accuracy
from triptych.scores.environment import environment
from triptych.scores.fid import Estimate
from triptych.scores.memorisation import QUANTILES
from triptych.systems.class_to_image.diffusion_curves import Curves, Point
from triptych.systems.class_to_image.judge import ClassConditionalReport, Distances
from triptych.systems.class_to_image.plots import (
    draw_guidance_curve,
    draw_plots,
    draw_sampler_curves,
)


def write_report(report: ClassConditionalReport, folder: Path, *, command: str) -> tuple[Path, ...]:
    """Write `report.json`, `report.md` and its plots; returns their paths.

    Raises:
        ValueError: matplotlib is missing; JSON and page are written nevertheless.
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
    """The report as Markdown: each number with its interval and a comparison."""
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
        _row("FID", _estimate(report.distance.frechet), _compare(report, "frechet")),
        _row("KID x 1000", _estimate(report.distance.kernel, 1000), _compare(report, "kernel")),
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
    for space, near in (("pixels", report.pixels), ("features", report.features)):
        parts += [
            _row(
                f"samples near a training picture, in {space}",
                f"{near.closer:.1%} ({near.low:.1%} to {near.high:.1%}) of {near.count:,}",
                f"{near.expected:.0%} of unseen real pictures",
            ),
            _row(
                f"sample nearer to training than an unseen picture, in {space}",
                f"{near.nearer:.1%} of pairs",
                "50 % when they are alike",
            ),
        ]
    sizes = report.distance
    parts.append(
        f"\nDistances compare {sizes.count:,} samples with {sizes.reference:,} training pictures. "
        f"Neighbours were searched among {report.training:,} training pictures.\n"
    )
    parts += ["## Classes\n", _classes(report)]
    parts += ["![Classes](classes.png)\n\n![Confusion](confusion.png)\n"]
    parts += ["## Distance to the nearest training picture\n", _quantiles(report)]
    parts += ["![Samples closest to training pictures](neighbours.png)\n"]
    facts = "\n".join(f"- {name}: {value}" for name, value in setting.items() if value is not None)
    return "\n".join([*parts, f"## Setting\n\n{facts}\n"])


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _share(share: Accuracy) -> str:
    return f"{share.value:.2%} ({share.low:.2%} to {share.high:.2%})"


def _estimate(estimate: Estimate, scale: float = 1.0, form: str = ".3g") -> str:
    value, low, high = (scale * x for x in (estimate.value, estimate.low, estimate.high))
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def _compare(report: ClassConditionalReport, kind: str) -> str:
    scale = 1000 if kind == "kernel" else 1
    floor = f"training against training {_estimate(getattr(report.floor, kind), scale)}"
    if report.held_out is None:
        return floor
    unseen = _estimate(getattr(report.held_out, kind), scale)
    return f"{floor}; test against training {unseen}, {report.held_out.count:,} test pictures"


def _distance(distances: Distances | None) -> tuple[str, str]:
    if distances is None:
        return "too few", "too few"
    return f"{distances.frechet.value:.3g}", f"{distances.kernel.value * 1000:.3g}"


def _classes(report: ClassConditionalReport) -> str:
    lines = [
        "| class | accuracy | FID | floor | KID x 1000 | floor | diversity |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report.classes:
        (frechet, kernel), (frechet_floor, kernel_floor) = map(_distance, (row.samples, row.floor))
        variety = "too few" if row.diversity is None else f"{row.diversity:.2f}"
        share = _share(row.accuracy)
        lines.append(_row(row.name, share, frechet, frechet_floor, kernel, kernel_floor, variety))
    return "\n".join(lines) + "\n"


def _quantiles(report: ClassConditionalReport) -> str:
    lines = [
        _row("", *(f"{level:.0%}" for level in QUANTILES)),
        "|---" * (len(QUANTILES) + 1) + "|",
    ]
    for space, near in (("pixels", report.pixels), ("features", report.features)):
        for pictures in ("samples", "held_out"):
            numbers = getattr(near, pictures)
            name = f"{pictures.replace('_', ' ')}, {space}"
            lines.append(_row(name, *(f"{number:.3g}" for number in numbers)))
    return "\n".join(lines) + "\n"


def write_curves(curves: Curves, folder: Path, *, command: str) -> tuple[Path, ...]:
    """Write `diffusion-curves.json` and `.md`, and a plot of each curve; returns their paths.

    Raises:
        ValueError: matplotlib is missing; JSON and page are written nevertheless.
    """
    setting = environment(command)
    data, page = folder / "diffusion-curves.json", folder / "diffusion-curves.md"
    write_json(data, {"environment": setting} | to_json(curves))
    page.write_text(curves_markdown(curves, setting), encoding="utf-8")
    paths = [data, page]
    if curves.guidance:
        paths.append(draw_guidance_curve(curves, folder / "guidance.png"))
    if curves.samplers:
        paths.append(draw_sampler_curves(curves, folder / "samplers.png"))
    return tuple(paths)


def curves_markdown(curves: Curves, setting: dict[str, Any]) -> str:
    """Both curves as Markdown tables."""
    lines = [
        f"`{setting['command']}`, {curves.samples} pictures a point, seed {curves.seed}",
        "",
        f"The judge reads {curves.judge.value:.2%} of real test pictures; KID x 1000 of other "
        f"training pictures {1000 * curves.floor.value:.2f}.",
        "",
    ]
    if curves.guidance:
        lines += _curve_table("guidance", [(f"{p.guidance:g}", p) for p in curves.guidance])
    if curves.samplers:
        points = [(f"{p.sampler}, {p.calls}", p) for p in curves.samplers]
        lines += _curve_table("sampler, calls", points)
    lines.append(f"```json\n{json.dumps(setting)}\n```")
    return "\n".join(lines) + "\n"


def _curve_table(heading: str, points: list[tuple[str, Point]]) -> list[str]:
    columns = (heading, "accuracy", "KID x 1000", "FID", "precision", "recall", "diversity")
    lines = [_row(*columns), "|---" * len(columns) + "|"]
    for name, p in points:
        variety = "" if p.diversity is None else f"{p.diversity:.2f}"
        kernel = _estimate(p.kernel, 1000, ".2f")
        shares = (f"{p.precision:.3f}", f"{p.recall:.3f}", variety)
        cells = (name, f"{p.accuracy.value:.2%}", kernel, f"{p.frechet.value:.3f}", *shares)
        lines.append(_row(*cells))
    return [*lines, ""]

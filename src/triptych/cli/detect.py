"""`triptych detect PICTURE --labels ...`: boxes around what labels name."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from triptych.cli.arguments import parse
from triptych.cli.output import UsageError, finish, printable, say
from triptych.systems.detection.request import Detect

if TYPE_CHECKING:
    from triptych.systems.detection.annotations import Annotated
    from triptych.systems.detection.pipeline import Detections


USAGE = "triptych detect PICTURE --labels LABEL ... [OPTIONS]"
BASIC = (
    "labels", "model", "method", "threshold", "limit", "templates", "background", "reach", "scales",
    "out", "format", "json",
)  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Locate in a picture what labels name, with a CLIP or SigLIP trained without boxes."""

    request: Detect
    out: Path | None = None
    """Folder for boxes.png, a heat map per label, and the boxes as a file of --format."""
    format: Literal["coco", "voc", "yolo", "json"] | None = None
    """Format of the boxes, which go into a file in --out, or without it to stdout."""
    json: bool = False
    """Print one JSON object on stdout: the request and the boxes."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, also where nothing was found."""
    parsed = parse(Arguments, arguments, usage=USAGE, basic=BASIC, positional=("picture",))
    if parsed.json and parsed.format and not parsed.out:
        raise UsageError(
            f"--json and --format {parsed.format} both write to stdout: give one, or --out"
        )
    from triptych.running import run
    from triptych.systems.detection.annotations import Annotated, format_boxes, to_plain_json

    result: Detections = finish(run(parsed.request), lambda _: "")
    labels = parsed.request.labels
    scores = tuple(result.boxes.scores.tolist())
    picture = Annotated(
        parsed.request.picture, *result.size, result.boxes.corners, result.names, scores
    )
    files = _save(parsed, result, picture) if parsed.out else []
    if parsed.json:
        record = {"request": _to_record(parsed.request), **to_plain_json(picture)}
        print(json.dumps(record | {"files": files}))
    elif parsed.format and not parsed.out:
        print(format_boxes(picture, labels, parsed.format), end="")
    else:
        for row in to_plain_json(picture)["boxes"]:
            left, top, right, bottom = (round(x) for x in row["pixels"])
            print(printable(f"{row['score']:.3f}  {left} {top} {right} {bottom}  {row['label']}"))
    missing = [label for label in labels if label not in result.names]
    say(f"{len(scores)} boxes in {picture.width} x {picture.height} pixels")
    if missing:
        say(f"not found: {', '.join(missing)}")
    return 0


def _save(parsed: Arguments, result: "Detections", picture: "Annotated") -> list[str]:
    """Write pictures and boxes; returns their paths."""
    from triptych.systems.detection.annotations import ENDINGS, format_boxes
    from triptych.vision.boxes import draw_boxes, draw_heat
    from triptych.vision.images import open_picture, save_picture

    assert parsed.out is not None
    parsed.out.mkdir(parents=True, exist_ok=True)
    pixels = open_picture(Path(parsed.request.picture), channels=3)
    record = {"request": _to_record(parsed.request)}
    drawn = draw_boxes(pixels, picture.boxes, picture.labels, picture.scores)
    files = [parsed.out / "boxes.png"]
    save_picture(files[0], drawn, record)
    for number, label in enumerate(parsed.request.labels):
        heat = result.heat[number].clamp(0, 1)
        word = re.sub(r"[^\w]+", "-", label).strip("-")[:40]
        files.append(parsed.out / f"heat-{number:02d}-{word}.png")
        save_picture(files[-1], draw_heat(pixels, heat), record)
    if parsed.format:
        stem = Path(picture.name).stem
        files.append(parsed.out / f"{stem}{ENDINGS[parsed.format]}")
        text = format_boxes(picture, parsed.request.labels, parsed.format)
        files[-1].write_text(text, encoding="utf-8")
        if parsed.format == "yolo":  # its lines have the numbers of labels
            files.append(parsed.out / "classes.txt")
            files[-1].write_text("\n".join(parsed.request.labels) + "\n", encoding="utf-8")
    say(f"{len(files)} files in {parsed.out}")
    return [str(file) for file in files]


def _to_record(request: Detect) -> dict[str, object]:
    """The request without paths of this machine."""
    from triptych.config import to_json

    model, picture = Path(request.model).name, Path(request.picture).name
    return to_json(replace(request, model=model, picture=picture))

"""`triptych detect PICTURE ... --labels ...`: boxes around what labels name."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from triptych.cli.arguments import parse
from triptych.cli.output import UsageError, finish, printable, say
from triptych.cli.places import require_folder
from triptych.systems.detection.request import Detect

if TYPE_CHECKING:
    import numpy as np

    from triptych.systems.detection.annotations import Annotated
    from triptych.systems.detection.pipeline import Detections


USAGE = "triptych detect PICTURE ... --labels LABEL ... [OPTIONS]"
BASIC = (
    "labels", "model", "method", "threshold", "limit", "templates", "background", "reach", "scales",
    "out", "format", "json",
)  # fmt: skip
BOXES = "-boxes.png"  # follows the name of the picture
CLASSES = "classes.txt"  # the labels behind the numbers in YOLO's files


@dataclass(frozen=True)
class Arguments:
    """Locate in pictures what labels name, with a CLIP or SigLIP trained without boxes, or a
    PaliGemma, which writes boxes.
    """

    pictures: tuple[str, ...]
    """Picture files: PNG, JPEG, WebP, GIF or BMP."""
    request: Detect
    out: Path | None = None
    """Folder for NAME-boxes.png, a heat map per label (not of a PaliGemma), and the boxes as files
    of --format. Files that are there are kept: another result of NAME is NAME-2.
    """
    format: Literal["coco", "voc", "yolo", "json"] | None = None
    """Format of the boxes, which go into a file in --out, or without it to stdout."""
    json: bool = False
    """Print one JSON object per picture on stdout: the request and the boxes."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, also where nothing was found, or 3 if a picture is unusable."""
    parsed = parse(
        Arguments, arguments, usage=USAGE, basic=BASIC, positional=("pictures",),
        fixed={"picture": ""},
    )  # fmt: skip
    _check(parsed)
    from triptych.systems.detection.annotations import Annotated, format_boxes

    labels, several = parsed.request.labels, len(parsed.pictures) > 1
    usable = 0
    for name, pixels, result in _detect(parsed):
        usable += 1
        scores = tuple(result.boxes.scores.tolist())
        picture = Annotated(name, *result.size, result.boxes.corners, result.names, scores)
        files = _save(parsed, result, picture, pixels) if parsed.out else []
        if parsed.format and not parsed.out:
            print(format_boxes(picture, labels, parsed.format), end="")
        else:
            _print(parsed, result.request, picture, files)
        of = f"{name}: " if several else ""
        boxes = "1 box" if len(scores) == 1 else f"{len(scores)} boxes"
        say(f"{of}{boxes} in {picture.width} x {picture.height} pixels")
        if missing := [label for label in labels if label not in result.names]:
            say(f"{of}not found: {', '.join(missing)}")
    return 0 if usable == len(parsed.pictures) else 3


def _check(parsed: Arguments) -> None:
    """Refuse what cannot be written, before the model is loaded."""
    to_stdout = parsed.format and not parsed.out
    if parsed.json and to_stdout:
        raise UsageError(
            f"--json and --format {parsed.format} both write to stdout: give one, or --out"
        )
    if len(parsed.pictures) > 1 and to_stdout and parsed.format != "json":
        raise UsageError(f"--format {parsed.format} of several pictures needs files: give --out")
    if parsed.out is None:
        return
    require_folder("--out", parsed.out)
    classes = parsed.out / CLASSES
    if parsed.format == "yolo" and classes.exists():
        before = classes.read_text(encoding="utf-8").splitlines()
        if before != list(parsed.request.labels):
            raise UsageError(
                f"{classes} lists other labels ({', '.join(before)[:60]}), which the files there "
                "refer to: give another --out"
            )


def _detect(parsed: Arguments) -> "Iterator[tuple[str, np.ndarray, Detections]]":
    """Each picture, and what was found in it; pictures that cannot be used are named and left out.

    The model is loaded for the first picture, and the labels are embedded once.
    """
    from triptych import loading, runtime
    from triptych.cli.main import describe_error
    from triptych.systems.detection.pipeline import detect, embed_queries
    from triptych.systems.paligemma.pipeline import boxes_in_words, locate
    from triptych.vision.images import open_picture
    from triptych.weights.loaded import ANSWERS

    loaded = queries = None
    for name in parsed.pictures:
        if Path(name).is_dir():
            say(f"triptych: {name} is a folder: give its pictures, such as {Path(name) / '*.png'}")
            continue
        try:
            pixels = open_picture(Path(name), channels=3)
        except ValueError as error:
            say(f"triptych: {name}: {error}")
            continue
        except OSError as error:
            say(f"triptych: {describe_error(error)}")
            continue
        request = replace(parsed.request, picture=name)
        loaded = loaded or loading.load(request.model, runtime.device())
        if loaded.card.model in ANSWERS:
            try:
                boxes_in_words(request, loaded.name)
            except ValueError as error:
                raise UsageError(str(error)) from None
            yield name, pixels, finish(locate(request, loaded, pixels), lambda _: "")
            continue
        queries = queries or embed_queries(request, loaded)
        yield name, pixels, finish(detect(request, loaded, pixels, queries), lambda _: "")


def _print(parsed: Arguments, request: Detect, picture: "Annotated", files: list[str]) -> None:
    """The boxes of one picture on stdout, as JSON or for people."""
    from triptych.systems.detection.annotations import to_plain_json

    found = to_plain_json(picture)
    if parsed.json:
        print(json.dumps({"request": _to_record(request), **found, "files": files}))
        return
    if len(parsed.pictures) > 1:
        print(printable(picture.file))
    for row in found["boxes"]:
        left, top, right, bottom = (round(x) for x in row["pixels"])
        print(printable(f"{row['score']:.3f}  {left} {top} {right} {bottom}  {row['label']}"))


def _save(
    parsed: Arguments, result: "Detections", picture: "Annotated", pixels: "np.ndarray"
) -> list[str]:
    """Write pictures and boxes of one picture; returns the paths."""
    from triptych.systems.detection.annotations import ENDINGS, format_boxes
    from triptych.vision.boxes import draw_boxes, draw_heat
    from triptych.vision.images import save_picture

    out = parsed.out
    assert out is not None
    out.mkdir(parents=True, exist_ok=True)
    ending = ENDINGS[parsed.format] if parsed.format else BOXES
    stem = _free_stem(out, Path(picture.name).stem, ending)
    record = {"request": _to_record(result.request)}
    drawn = draw_boxes(pixels, picture.boxes, picture.labels, picture.scores)
    files = [out / f"{stem}{BOXES}"]
    save_picture(files[0], drawn, record)
    # a PaliGemma has no heat maps
    for number, (label, heat) in enumerate(zip(parsed.request.labels, result.heat, strict=False)):
        word = re.sub(r"[^\w]+", "-", label).strip("-")[:40]
        files.append(out / f"{stem}-heat-{number:02d}-{word}.png")
        save_picture(files[-1], draw_heat(pixels, heat.clamp(0, 1)), record)
    if parsed.format:
        files.append(out / f"{stem}{ending}")
        text = format_boxes(picture, parsed.request.labels, parsed.format)
        files[-1].write_text(text, encoding="utf-8")
        if parsed.format == "yolo":
            files.append(out / CLASSES)
            files[-1].write_text("\n".join(parsed.request.labels) + "\n", encoding="utf-8")
    say(f"{len(files)} files in {out}")
    return [str(file) for file in files]


def _free_stem(folder: Path, stem: str, ending: str) -> str:
    """The stem, or with the first number under which there is no earlier result."""
    free, number = stem, 1
    while any((folder / f"{free}{end}").exists() for end in (BOXES, ending)):
        number += 1
        free = f"{stem}-{number}"
    return free


def _to_record(request: Detect) -> dict[str, object]:
    """The request without paths of this machine."""
    from triptych.fields import to_json
    from triptych.vision.given_pictures import picture_name

    model, picture = Path(request.model).name, picture_name(request.picture)
    return to_json(replace(request, model=model, picture=picture))

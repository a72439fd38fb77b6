"""`triptych generate` with a class-conditional model: pictures, and the request in their files."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.cli.arguments import parse
from triptych.cli.generate.default_model import say_default_model
from triptych.cli.output import UsageError, counted, finish, say
from triptych.cli.places import free_path, next_number, require_folder
from triptych.cli.threads import spare_threads
from triptych.systems.class_to_image.request import ClassToImage

if TYPE_CHECKING:
    from triptych.systems.class_to_image.pipeline import Pictures
    from triptych.weights.loaded import Loaded


@dataclass(frozen=True)
class Arguments:
    """Generate pictures of classes with a trained conditional VAE, GAN or diffusion model."""

    request: ClassToImage = field(default_factory=ClassToImage)
    out: Path = Path("pictures")
    """Folder for the pictures, 0000-SEED.png and so on, and for grid.png, which shows all. Pictures
    that are there are kept: the numbers go on.
    """
    json: bool = False
    """Print one JSON object on stdout: the files, their seeds, and what they show."""
    rerank: str = ""
    """Sort the pictures by how well they fit this text, best first; needs `judge`."""
    judge: str = ""
    """The CLIP or SigLIP that compares pictures with the text of `rerank`."""


USAGE = "triptych generate --model RUN [--label L] [OPTIONS]"
BASIC = (
    "model", "label", "attributes", "vector", "image", "n", "seed", "guidance", "steps", "sampler",
    "out", "json",
)  # fmt: skip


def main(arguments: list[str]) -> int:
    parsed = parse(Arguments, arguments, usage=USAGE, basic=BASIC)
    if bool(parsed.rerank) != bool(parsed.judge):
        raise UsageError(
            "--rerank and --judge go together: a text, and a CLIP that compares with it"
        )
    say_default_model(arguments, parsed.request.model)
    require_folder("--out", parsed.out)
    from triptych import runtime
    from triptych.loading import load
    from triptych.running import run
    from triptych.systems.class_to_image.answer import to_record

    judge = load(parsed.judge, runtime.device()) if parsed.judge else None  # before the work
    loaded = load(parsed.request.model, runtime.device())
    spare_threads(loaded.model, 1 if parsed.request.deterministic else parsed.request.n)
    result = finish(run(parsed.request, loaded), lambda so_far: f"{len(so_far.pictures)} pictures")
    seed = result.request.seed
    assert seed is not None
    request = to_record(result.request, Path(parsed.request.model).name)
    result, seeds, scores = _rank(result, parsed.rerank, judge)
    parsed.out.mkdir(parents=True, exist_ok=True)
    files = _save(parsed, result, request, seeds, scores, judge.name if judge else "")
    span = f"seed {seed}" if len(files) == 1 else f"seeds {seed} to {seed + len(files) - 1}"
    say(f"{counted(len(files), 'picture')} in {parsed.out}, {span}")
    grid = free_path(parsed.out / "grid.png")
    _save_grid(grid, result, request, scores)
    if parsed.json:
        print(json.dumps({"request": request, "pictures": files, "grid": str(grid)}))
    return 0


def _save(
    parsed: Arguments,
    result: "Pictures",
    request: dict[str, Any],
    seeds: list[int],
    scores: tuple[float, ...],
    judge: str,
) -> list[dict[str, Any]]:
    """Write each picture with the request that draws it alone."""
    from triptych.systems.class_to_image.answer import record_of
    from triptych.vision.images import save_picture
    from triptych.vision.pixels import name_files

    digests = name_files(result.request, "image")
    drawn_from = {"pictures": digests} if digests else {}
    files = []
    first = next_number(parsed.out)
    for i, (picture, name) in enumerate(zip(result.pictures, result.names, strict=True)):
        path = parsed.out / f"{first + i:04d}-{seeds[i]}.png"
        one = record_of(request, seeds[i], name, result.by_class)
        fits = {"fits": parsed.rerank, "judge": judge, "cosine": scores[i]} if scores else {}
        save_picture(path, picture, {"request": one, "shows": name, **fits, **drawn_from})
        files.append({"file": str(path), "seed": seeds[i], "shows": name, **fits})
    return files


def _save_grid(
    path: Path, result: "Pictures", request: dict[str, Any], scores: tuple[float, ...]
) -> None:
    """All pictures in one, ten in a row at most."""
    import numpy as np

    from triptych.vision.grids import labelled_grid
    from triptych.vision.images import save_picture

    count, seed = len(result.pictures), result.request.seed
    assert seed is not None
    columns = min(count, 10)
    rows = math.ceil(count / columns)
    blank = np.full_like(result.pictures[:1], 255)
    padded = np.concatenate([result.pictures, *[blank] * (rows * columns - count)])
    starts = range(0, count, columns)
    if scores:
        chunks = [scores[start : start + columns] for start in starts]
        labels = [f"cosines {chunk[0]:.3f} to {chunk[-1]:.3f}" for chunk in chunks]
    else:
        ends = [min(start + columns, count) for start in starts]
        labels = [f"seeds {seed + a} to {seed + b - 1}" for a, b in zip(starts, ends, strict=True)]
    heads = result.names[:columns] if _same_columns(result.names, columns) else ()
    title = "" if heads else ", ".join(dict.fromkeys(filter(None, result.names)))
    cells = padded.reshape(rows, columns, *blank.shape[1:])
    save_picture(path, labelled_grid(cells, labels, heads, title), {"request": request})


def _rank(
    result: "Pictures", prompt: str, judge: "Loaded | None"
) -> "tuple[Pictures, list[int], tuple[float, ...]]":
    """Sort the pictures by their cosine with the prompt; returns them, their seeds and cosines."""
    assert result.request.seed is not None
    seeds = [result.request.seed + i for i in range(len(result.pictures))]
    if judge is None:
        return result, seeds, ()
    from triptych.systems.two_towers.pipeline import rerank

    order, scores = rerank(list(result.pictures), prompt, judge)
    names = tuple(result.names[i] for i in order)
    ranked = replace(result, pictures=result.pictures[list(order)], names=names)
    return ranked, [seeds[i] for i in order], tuple(scores[i] for i in order)


def _same_columns(names: tuple[str, ...], columns: int) -> bool:
    """Whether every row shows the same names in the same order, and more than one."""
    head = names[:columns]
    return len(set(head)) > 1 and all(name == head[i % columns] for i, name in enumerate(names))

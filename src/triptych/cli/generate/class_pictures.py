"""`triptych generate` with a model of classes: write pictures, and the request inside them."""

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from triptych.cli.arguments import parse
from triptych.cli.main import say
from triptych.cli.output import bar
from triptych.config import to_json
from triptych.systems.class_to_image.request import ClassToImage

if TYPE_CHECKING:
    from triptych.systems.class_to_image.pipeline import Pictures
    from triptych.weights.loaded import Loaded


@dataclass(frozen=True)
class Arguments:
    """Write pictures from a trained conditional VAE, GAN or diffusion model."""

    request: ClassToImage = field(default_factory=ClassToImage)
    out: Path = Path("pictures")
    """Folder for the pictures: 0000-SEED.png and so on, and grid.png with all of them, labelled."""
    json: bool = False
    """One JSON object on stdout: the files, their seeds, and what they show."""
    rerank: str = ""
    """A text: the pictures are numbered by how well they fit it, the best first."""
    judge: str = ""
    """The CLIP or SigLIP that reads it."""


USAGE = "triptych generate --model RUN [--label L] [OPTIONS]"
BASIC = (
    "model", "label", "attributes", "vector", "image", "n", "seed", "guidance", "steps", "sampler",
    "out", "json",
)  # fmt: skip
FLAGS = {f.name for f in fields(Arguments)} - {"request"}


def main(arguments: list[str]) -> int:
    parsed = parse(Arguments, arguments, usage=USAGE, basic=BASIC)
    if bool(parsed.rerank) != bool(parsed.judge):
        raise ValueError("--rerank and --judge go together: a text, and the model that reads it")
    import numpy as np

    from triptych.running import run
    from triptych.vision.grids import labelled_grid
    from triptych.vision.images import save_picture

    judge = _judge(parsed.judge)  # before the work, not after
    result = _shown(run(parsed.request))
    seed = result.request.seed
    assert seed is not None
    names = {f: Path(getattr(parsed.request, f)).name for f in ("model", "image", "clip")}
    recorded = to_json(result.request) | names  # not the paths
    result, seeds, scores = _ranked(result, parsed.rerank, judge)
    parsed.out.mkdir(parents=True, exist_ok=True)
    files = []
    for i, (picture, name) in enumerate(zip(result.pictures, result.names, strict=True)):
        path = parsed.out / f"{i:04d}-{seeds[i]}.png"
        one = recorded | {"seed": seeds[i], "n": 1}
        if result.by_class:
            one["label"] = name  # also where every class was taken in turn
        fits: dict[str, object] = {}
        if judge is not None:
            fits = {"fits": parsed.rerank, "judge": judge.name, "cosine": scores[i]}
        save_picture(path, picture, {"request": one, "shows": name, **fits})
        files.append({"file": str(path), "seed": seeds[i], "shows": name, **fits})

    columns = min(len(files), 10)
    rows = math.ceil(len(files) / columns)
    say(f"{len(files)} pictures in {parsed.out}, seeds {seed} to {seed + len(files) - 1}")
    blank = np.full_like(result.pictures[:1], 255)
    padded = np.concatenate([result.pictures, *[blank] * (rows * columns - len(files))])
    heads = result.names[:columns] if _same_columns(result.names, columns) else ()
    grid = labelled_grid(
        padded.reshape(rows, columns, *blank.shape[1:]),
        _cosines(scores, columns) if scores else _seeds(seed, len(files), columns),
        heads,
        "" if heads else ", ".join(dict.fromkeys(filter(None, result.names))),
    )
    save_picture(parsed.out / "grid.png", grid, {"request": recorded})
    if parsed.json:
        print(
            json.dumps(
                {"request": recorded, "pictures": files, "grid": str(parsed.out / "grid.png")}
            )
        )
    return 0


def _judge(name: str) -> "Loaded | None":
    if not name:
        return None
    from triptych import runtime
    from triptych.loading import load

    return load(name, runtime.device())


def _ranked(
    result: "Pictures", prompt: str, judge: "Loaded | None"
) -> "tuple[Pictures, list[int], tuple[float, ...]]":
    """The pictures in the order of their cosine with the prompt, their seeds, and the cosines."""
    assert result.request.seed is not None
    seeds = [result.request.seed + i for i in range(len(result.pictures))]
    if judge is None:
        return result, seeds, ()
    from triptych.systems.two_towers.pipeline import rerank

    order, scores = rerank(list(result.pictures), prompt, judge)
    names = tuple(result.names[i] for i in order)
    ranked = replace(result, pictures=result.pictures[list(order)], names=names)
    return ranked, [seeds[i] for i in order], tuple(scores[i] for i in order)


def _cosines(scores: tuple[float, ...], columns: int) -> list[str]:
    """What the rows of a ranked grid are called."""
    rows = [scores[start : start + columns] for start in range(0, len(scores), columns)]
    return [f"cosines {row[0]:.3f} to {row[-1]:.3f}" for row in rows]


def _shown(work: "Iterator[Pictures]") -> "Pictures":
    """Runs to the result, under a live bar on a terminal."""
    if not sys.stderr.isatty():
        *_, result = work
        return result
    with bar() as progress:
        task = progress.add_task("", total=1.0, drawn=0)
        for result in work:
            progress.update(task, completed=result.done, drawn=len(result.pictures))
    return result


def _same_columns(names: tuple[str, ...], columns: int) -> bool:
    """Whether every row of the grid shows the same things in the same order, more than one of
    them.
    """
    head = names[:columns]
    return len(set(head)) > 1 and all(name == head[i % columns] for i, name in enumerate(names))


def _seeds(seed: int, count: int, columns: int) -> list[str]:
    """What the rows of the grid are called: the seeds of their pictures."""
    starts = range(seed, seed + count, columns)
    return [f"seeds {a} to {min(a + columns, seed + count) - 1}" for a in starts]

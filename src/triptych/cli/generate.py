"""`triptych generate`: write pictures, and the request inside them."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from triptych.cli.main import say
from triptych.config import to_json
from triptych.requests import ClassToImage


@dataclass(frozen=True)
class Arguments:
    """Write pictures from a trained conditional VAE or GAN."""

    request: ClassToImage = field(default_factory=ClassToImage)
    out: Path = Path("pictures")
    """Folder for the pictures: 0000-SEED.png and so on, and grid.png with all of them, labelled."""
    json: bool = False
    """One JSON object on stdout: the files, their seeds, and what they show."""


def main(arguments: list[str]) -> int:
    parsed = tyro.cli(
        Arguments,
        args=arguments,
        prog="triptych generate",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.UsePythonSyntaxForLiteralCollections)[:1],
    )
    from triptych.pipelines import class_to_image
    from triptych.vision.grids import labelled_grid
    from triptych.vision.images import save_picture

    *_, result = class_to_image.run(parsed.request)
    seed = result.request.seed
    assert seed is not None
    recorded = to_json(replace(result.request, model=Path(parsed.request.model).name))
    parsed.out.mkdir(parents=True, exist_ok=True)
    files = []
    for i, (picture, name) in enumerate(zip(result.pictures, result.names, strict=True)):
        path = parsed.out / f"{i:04d}-{seed + i}.png"
        one = recorded | {"seed": seed + i, "n": 1}
        if parsed.request.label == "" and name in _classes(parsed.request, name):
            one["label"] = name
        save_picture(path, picture, {"request": one, "shows": name})
        files.append({"file": str(path), "seed": seed + i, "shows": name})

    columns = min(len(files), 10)
    rows = math.ceil(len(files) / columns)
    say(f"{len(files)} pictures in {parsed.out}, seeds {seed} to {seed + len(files) - 1}")
    grid = _grid(result.pictures, result.names, rows, columns)
    save_picture(parsed.out / "grid.png", labelled_grid(*grid), {"request": recorded})
    if parsed.json:
        print(json.dumps({"request": recorded, "pictures": files, "grid": str(parsed.out / "grid.png")}))
    return 0

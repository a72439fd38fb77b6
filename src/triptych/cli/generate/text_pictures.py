"""`triptych generate PROMPT`: write pictures of a prompt, and the request inside them."""

import json
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal

from triptych.cli.arguments import find_options, parse, render_help
from triptych.cli.generate.from_parameters import replayed
from triptych.cli.main import say
from triptych.cli.output import watched
from triptych.config import to_json
from triptych.systems.stable_diffusion.request import TextToImage, parse_lora, parse_size

if TYPE_CHECKING:
    import numpy as np

    from triptych.systems.stable_diffusion.pipeline import Drawing


@dataclass(frozen=True)
class Arguments:
    """Write pictures of a prompt: alone, from a picture, or within one."""

    request: TextToImage
    out: Path = Path("pictures")
    """Folder for the pictures: 0000-SEED.png and so on."""
    format: Literal["png", "jpeg", "webp"] = "png"
    """Of the files; PNG and WebP keep every pixel."""
    preview: str = ""
    """A .png, .jpg or .webp file that shows the picture while it is made, rewritten every half
    second.
    """
    from_parameters: str = ""
    """Draw again what a picture shows that carries its request, ours or AUTOMATIC1111's, or what
    such a text says; flags beside it change it.
    """
    json: bool = False
    """One JSON object on stdout: the request and the files with their seeds."""


FLAGS = {f.name for f in fields(Arguments)} - {"request"}
USAGE = "triptych generate PROMPT [--model MODEL] [OPTIONS]"
BASIC = (
    "negative", "model", "size", "n", "seed", "steps", "sampler", "guidance", "image", "strength",
    "mask", "loras", "out", "from_parameters", "json",
)  # fmt: skip


def explain(every: bool) -> None:
    """The help of this command."""
    options = list(find_options(Arguments))
    print(render_help(options, USAGE, BASIC, Arguments.__doc__ or "", every=every))
    print("\nA model of classes has options of its own: triptych generate --model RUN --help")


def main(prompt: str | None, flags: list[str]) -> int:
    source = _flag(flags, "--from-parameters")
    if source is not None:
        start, known = replayed(source, _flag(flags, "--model") or "")
        say(*(f"triptych: {line}" for line in known))
        default = Arguments(start)
        words = flags if prompt is None else [f"--prompt={prompt}", *flags]
        parsed = parse(Arguments, words, usage=USAGE, basic=BASIC, default=default)
    else:
        parsed = parse(Arguments, [f"--prompt={prompt}", *flags], usage=USAGE, basic=BASIC)
    return drawn(parsed)


def _flag(flags: list[str], name: str) -> str | None:
    return next((f.partition("=")[2] for f in flags if f.startswith(f"{name}=")), None)


def drawn(parsed: Arguments) -> int:
    """Draw and write; every picture is in its file as soon as it is done."""
    from triptych.loading import load
    from triptych.running import run
    from triptych.systems.stable_diffusion.pipeline import drawing_model, load_model
    from triptych.systems.stable_diffusion.preview import preview_of

    request = parsed.request
    loaded = load_model(request, load)
    model = drawing_model(loaded)
    projected: list[Any] = []  # made when it is first looked at

    def look(item: "Drawing") -> "np.ndarray | None":
        if item.guess is None:
            return None
        if not projected:
            projected.append(preview_of(model))
        picture: np.ndarray = projected[0](item.guess[:1])[0]
        return picture

    parsed.out.mkdir(parents=True, exist_ok=True)
    preview = Path(parsed.preview) if parsed.preview else None
    files: list[dict[str, Any]] = []
    told = False
    work = run(request, loaded)
    try:
        for item in watched(work, look, preview):
            if not told and item.notes:
                say(*(f"triptych: {line}" for line in item.notes))
            told = True
            request = item.request
            for number in range(len(files), len(item.pictures)):
                files.append(_saved(item, number, parsed, loaded.name))
    except KeyboardInterrupt:
        say(f"triptych: {len(files)} of {parsed.request.n} pictures are in {parsed.out}")
        raise
    finally:
        work.close()  # type: ignore[attr-defined]
    seeds = sorted({one["seed"] for one in files})
    span = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    say(f"{len(files)} {'picture' if len(files) == 1 else 'pictures'} in {parsed.out}, {span}")
    if parsed.json:
        print(json.dumps({"request": recorded(request, loaded.name), "pictures": files}))
    return 0


def _saved(item: "Drawing", number: int, parsed: Arguments, model: str) -> dict[str, Any]:
    """One picture in its file, with the request that draws it alone."""
    from triptych.vision.images import save_picture

    seed, varied = item.seeds(number)
    ending = {"png": "png", "jpeg": "jpg", "webp": "webp"}[parsed.format]
    name = f"{number:04d}-{seed}" + ("" if varied is None else f"-{varied}")
    path = parsed.out / f"{name}.{ending}"
    one = replace(item.request, seed=seed, variation_seed=varied, n=1)
    save_picture(
        path, item.pictures[number], {"request": recorded(one, model)}, parameters_of(one, model)
    )
    found = {"file": str(path), "seed": seed}
    return found if varied is None else found | {"variation_seed": varied}


def recorded(request: TextToImage, model: str) -> dict[str, Any]:
    """The request as a picture carries it: names in place of paths."""
    loras = [f"{PurePath(name).name}:{weight:g}" for name, weight in map(parse_lora, request.loras)]
    names = {field: PurePath(getattr(request, field)).name for field in ("image", "mask")}
    return to_json(request) | names | {"model": model, "loras": loras}


def parameters_of(request: TextToImage, model: str) -> str:
    """AUTOMATIC1111's text of one picture."""
    from triptych.systems.stable_diffusion.inputs.parameters_text import infotext_of, write_infotext

    size = parse_size(request.size)
    assert size is not None and request.seed is not None
    info = infotext_of(
        replace(request, model=model),
        seed=request.seed,
        size=size,
        version=f"triptych {version('triptych')}",
    )
    return write_infotext(info)

"""`triptych weights list | fetch | inspect | convert | doctor | bundle`: files of weights."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from triptych.cli.arguments import choose_command, parse
from triptych.cli.output import UsageError, printable, say
from triptych.cli.places import require_folder
from triptych.weights.bundled_models import find_bundled

if TYPE_CHECKING:
    from torch import Tensor

HELP = """usage: triptych weights COMMAND [OPTIONS]

Inspects and converts files of weights. Nothing in a file is executed.

  list                     the published checkpoints that are known
  fetch NAME ...           downloads published models once, to be used offline
  inspect PATH             the tensors of a file or folder, and which model it is
  doctor PATH ...          what is wrong with files or folders, and what to do
  convert SOURCE DEST      to another layout: safetensors, transformers, open_clip, diffusers,
                           single-file, triptych
  bundle RUN CARD DEST     a trained model in half the size, with a card that says what it is

`triptych weights COMMAND --help` lists the options."""

Parsed = TypeVar("Parsed")
USAGES = {
    "list": "",
    "fetch": " NAME ...",
    "inspect": " PATH",
    "doctor": " PATH ...",
    "convert": " SOURCE DEST --to LAYOUT",
    "bundle": " RUN CARD DEST",
}
BASIC = ("to", "predicts", "weights", "variant", "overwrite", "digests", "json")


@dataclass(frozen=True)
class ListWeights:
    """The published checkpoints that are known, with their licences."""

    json: bool = False
    """Print one JSON object per line on stdout."""


@dataclass(frozen=True)
class Fetch:
    """Download published models, or find those that were downloaded before; prints their folders,
    which are in the cache of the Hugging Face hub (HF_HOME).
    """

    names: tuple[str, ...]
    """Short names, such as sd15 (`weights list`), names of open_clip, or OWNER/NAME on the hub."""
    json: bool = False
    """Print one JSON object per line on stdout."""


@dataclass(frozen=True)
class Inspect:
    """The tensors of a file or folder (names, shapes, types) and which model it is."""

    path: Path
    """A file of weights, or the folder of a model."""
    json: bool = False
    """Print one JSON object on stdout."""


@dataclass(frozen=True)
class Doctor:
    """What is wrong with files or folders of weights, and what to do about it."""

    paths: tuple[Path, ...]
    """Files of weights, or folders of models."""
    digests: bool = False
    """Read every byte, and compare with the digests that publishers state."""
    json: bool = False
    """Print one JSON object per line on stdout."""


@dataclass(frozen=True)
class Convert:
    """Convert a checkpoint to another layout."""

    source: Path
    """A file of weights, or the folder of a model."""
    dest: Path
    """The new folder; for safetensors and single-file, the new file."""
    to: Literal[
        "safetensors", "transformers", "open_clip", "diffusers", "single-file", "triptych"
    ] = "safetensors"
    """safetensors converts any file and keeps its names. transformers and open_clip are for CLIP
    and SigLIP, diffusers and single-file for Stable Diffusion, triptych (a run folder) for all.
    """
    predicts: Literal["noise", "velocity"] | None = None
    """The prediction type of a Stable Diffusion whose file does not contain it."""
    weights: Literal["raw", "ema"] = "raw"
    """Of a single file that also has averaged weights (model_ema.*): which to read."""
    variant: str = ""
    """The variant of the weights of a diffusers folder to read, such as fp16."""
    overwrite: bool = False
    """Replace existing files."""


@dataclass(frozen=True)
class Bundle:
    """Make a trained model complete in half the size, with a card, and check that it draws the same
    pictures. The folder works wherever a model is named.
    """

    run: Path
    """A run folder of a model that draws pictures, or of a CLIP or SigLIP."""
    card: Path
    """A JSON file with title, data, licence, attribution, commands, seed, hardware, figures and
    limits (docs/models.md).
    """
    dest: Path
    """The new folder."""
    overwrite: bool = False
    """Replace existing files."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 2 for usage, or 3 where something is wrong with a file."""
    name, rest = choose_command(arguments, "weights", tuple(USAGES), HELP), arguments[1:]
    if name == "list":
        return list_weights(_parse(ListWeights, name, rest))
    if name == "fetch":
        return fetch(_parse(Fetch, name, rest, "names"))
    if name == "inspect":
        return inspect(_parse(Inspect, name, rest, "path"))
    if name == "doctor":
        return doctor(_parse(Doctor, name, rest, "paths"))
    if name == "bundle":
        return bundle(_parse(Bundle, name, rest, "run", "card", "dest"))
    return convert(_parse(Convert, name, rest, "source", "dest"))


def _parse(kind: type[Parsed], name: str, arguments: list[str], *positional: str) -> Parsed:
    usage = f"triptych weights {name}{USAGES[name]} [OPTIONS]"
    return parse(kind, arguments, usage=usage, basic=BASIC, positional=positional)


def list_weights(request: ListWeights) -> int:
    """Print the catalog."""
    from dataclasses import asdict

    from triptych.weights.catalog import CATALOG

    if request.json:
        for entry in CATALOG.values():
            print(json.dumps({**asdict(entry), "sha256": dict(entry.sha256)}))
        return 0
    rows = [("name", "family", "parameters", "licence", "digest", "from")]
    for entry in CATALOG.values():
        known = f"{len(entry.sha256)} of {len(entry.files)}" if entry.sha256 else "not stated"
        count = f"{entry.parameters:,}" if entry.parameters else ""
        where = entry.repo and f"https://huggingface.co/{entry.repo}"
        rows.append((entry.name, entry.family, count, entry.licence, known, where or entry.source))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    for row in rows:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        print(f"{line}  {row[5]}".rstrip())
    return 0


def fetch(request: Fetch) -> int:
    """Download models and print their folders."""
    from triptych.fields import nearest
    from triptych.weights.hub import fetch_published, find_repository
    from triptych.weights.short_names import SHORT_NAMES

    repositories = {name: find_repository(name) for name in request.names}
    for name, repo in repositories.items():  # before anything is downloaded
        if not repo:
            there = " It is a path here, and needs no download." if Path(name).exists() else ""
            raise ValueError(
                f"{name!r} is no published model: give OWNER/NAME on the hub, or a name that "
                f"`triptych weights list` shows.{there or nearest(name, list(SHORT_NAMES))}"
            )
    for name, repo in repositories.items():
        say(f"{name}: https://huggingface.co/{repo}")
        folder = fetch_published(name, repo)
        row = {"name": name, "repository": repo, "folder": str(folder)}
        print(json.dumps(row) if request.json else folder)
    return 0


def inspect(request: Inspect) -> int:
    """Print the tensors of a file, or of every file of weights of a folder."""
    from dataclasses import asdict

    from triptych.doctor import family
    from triptych.systems import summarise
    from triptych.weights.files.sniff import KIND_NAMES
    from triptych.weights.files.weight_file import open_weights
    from triptych.weights.layouts import layout

    found = layout(find_bundled(str(request.path)) or request.path)
    summary = summarise(found)
    files = []
    for path in found.weights:
        file = found.file or open_weights(path)
        tensors = file.read()
        files.append(
            {
                "file": str(path),
                "container": KIND_NAMES[file.kind],
                "family": family(tensors) or None,
                "parameters": sum(t.numel() for t in tensors.values()),
                "bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
                "tensors": {name: _describe(t) for name, t in tensors.items()},
            }
        )
    facts: dict[str, Any] = {
        "path": str(request.path),
        "layout": found.form,
        "declared": found.declared or None,
        "config": str(found.config) if found.config else None,
        "tokenizer": [str(p) for p in found.tokenizer],
        "preprocessor": str(found.preprocessor) if found.preprocessor else None,
        "whole": asdict(summary) if summary else None,
        "files": files,
    }
    if request.json:
        print(json.dumps(facts))
    else:
        _print(facts)
    return 0


def _describe(tensor: "Tensor") -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _print(facts: dict[str, Any]) -> None:
    for file in facts["files"]:
        for name, tensor in file["tensors"].items():
            shape = " x ".join(map(str, tensor["shape"])) or "scalar"
            print(printable(f"{name}  {shape}  {tensor['dtype']}"))
    declared = f", {facts['declared']}" if facts["declared"] else ""
    say(f"{facts['path']}: {facts['layout']}{declared}")
    for file in facts["files"]:
        say(
            f"{file['file']}: {file['container']}, {len(file['tensors']):,} tensors, "
            f"{file['parameters']:,} parameters in {file['bytes']:,} bytes",
            f"family: {file['family'] or 'not recognised by the names of its tensors'}",
        )
    if model := facts["whole"]:
        predicts = f", predicts {model['predicts']}" if model["predicts"] else ""
        say(f"model: {model['family']}{predicts}, made of {', '.join(model['parts'])}")
        if model["missing"]:
            say(f"missing: {', '.join(model['missing'])}")
        say(*model["notes"])


def doctor(request: Doctor) -> int:
    """Print what was checked and what is wrong; returns 3 if anything is."""
    from triptych.doctor import examine

    faults = 0
    for path in request.paths:
        for finding in examine(find_bundled(str(path)) or path, request.digests):
            faults += bool(finding.fault)
            if request.json:
                row = {"path": str(finding.path), "what": finding.what, "fault": finding.fault}
                print(json.dumps(row | {"fault": finding.fault or None}))
            else:
                verdict = finding.fault or f"sound ({finding.what})"
                print(printable(f"{finding.path}: {verdict}"))
    return 3 if faults else 0


def convert(request: Convert) -> int:
    """Write a checkpoint in another layout."""
    if request.to == "safetensors":
        return _to_safetensors(request)
    from triptych.export import convert_checkpoint
    from triptych.weights.loaded import Reading

    dest = request.dest
    if request.to == "single-file" and dest.is_dir():
        dest = dest / "model.safetensors"
    require_folder("DEST", dest.parent)
    _require_free(dest, request.overwrite)
    reading = Reading(request.predicts, request.weights, request.variant)
    say(*convert_checkpoint(str(request.source), dest, request.to, reading))
    form = "a single file" if request.to == "single-file" else f"a {request.to} folder"
    say(f"{dest}: {form} made of {request.source}")
    return 0


def bundle(request: Bundle) -> int:
    """Write a bundled model."""
    from triptych.bundle import write_bundle
    from triptych.weights.bundled_models import read_card_file

    card = read_card_file(request.card)
    require_folder("DEST", request.dest)
    _require_free(request.dest, request.overwrite)
    for line in write_bundle(request.run, request.dest, card):
        say(line)
    say(f"{request.dest}: bundled, made of {request.run}")
    return 0


def _to_safetensors(request: Convert) -> int:
    from triptych.atomic import make_parents
    from triptych.weights.files.safetensors import write_safetensors
    from triptych.weights.layouts import layout

    found = layout(find_bundled(str(request.source)) or request.source)
    if len(found.weights) > 1:
        raise ValueError(
            f"{request.source} holds {len(found.weights)} models: convert one of them, such as "
            f"{found.weights[0]}"
        )
    dest = request.dest / "model.safetensors" if request.dest.is_dir() else request.dest
    if dest.suffix != ".safetensors":
        raise UsageError(f"{dest} should end in .safetensors, or be an existing folder")
    require_folder("DEST", dest.parent)
    _require_free(dest, request.overwrite)
    tensors = found.open().read()
    with make_parents(dest):
        write_safetensors(dest, tensors, {"format": "pt"})
    say(f"{dest}: {len(tensors):,} tensors, {dest.stat().st_size:,} bytes")
    return 0


def _require_free(dest: Path, overwrite: bool) -> None:
    exists = any(dest.iterdir()) if dest.is_dir() else dest.exists()
    if exists and not overwrite:
        raise ValueError(f"{dest} exists already: give another name, or --overwrite")

"""`triptych weights list | inspect | convert | doctor`: files of weights, looked at and changed."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from triptych.cli.arguments import parse
from triptych.cli.main import say
from triptych.config import nearest

if TYPE_CHECKING:
    from torch import Tensor

HELP = """usage: triptych weights COMMAND [OPTIONS]

Looks at files of weights and changes their form. Nothing in a file is executed.

  list                     the published checkpoints that are known
  inspect PATH             the tensors of a file or folder, and what it is
  doctor PATH ...          what is wrong with files or folders, and what to do
  convert SOURCE DEST      another form: safetensors, transformers, open_clip, diffusers,
                           single-file, triptych

`triptych weights COMMAND --help` lists the options."""

Parsed = TypeVar("Parsed")
USAGES = {
    "list": "",
    "inspect": " PATH",
    "doctor": " PATH ...",
    "convert": " SOURCE DEST --to FORM",
}
BASIC = ("to", "predicts", "weights", "variant", "overwrite", "digests", "json")


@dataclass(frozen=True)
class ListWeights:
    """The published checkpoints that are known, with their licences."""

    json: bool = False
    """One JSON object a line on stdout."""


@dataclass(frozen=True)
class Inspect:
    """The tensors of a file or folder: names, shapes, types, and what it all is."""

    path: Path
    """A file of weights, or the folder of a model."""
    json: bool = False
    """One JSON object on stdout, and nothing else there."""


@dataclass(frozen=True)
class Doctor:
    """What is wrong with files or folders of weights, and what to do about it."""

    paths: tuple[Path, ...]
    """Files of weights, or folders of models."""
    digests: bool = False
    """Read every byte, and compare with the digests that publishers state."""
    json: bool = False
    """One JSON object a line on stdout, and nothing else there."""


@dataclass(frozen=True)
class Convert:
    """Write a checkpoint in another form."""

    source: Path
    """A file of weights, or the folder of a model."""
    dest: Path
    """The new folder; for safetensors and single-file, the new file."""
    to: Literal[
        "safetensors", "transformers", "open_clip", "diffusers", "single-file", "triptych"
    ] = "safetensors"
    """safetensors keeps every name and works for any file; the others are what a program loads:
    CLIP and SigLIP as folders of transformers and open_clip, Stable Diffusion as a folder of
    diffusers or a single file, all of them as a run folder of triptych.
    """
    predicts: Literal["noise", "velocity"] | None = None
    """What the network of a Stable Diffusion predicts, where its file does not say."""
    weights: Literal["raw", "ema"] = "raw"
    """Of a single file with averaged weights beside the last ones (model_ema.*): which to read."""
    variant: str = ""
    """Which form of the weights of a diffusers folder to read, such as fp16."""
    overwrite: bool = False
    """Replace what is there."""


def main(arguments: list[str]) -> int:
    """Returns the exit code: 0, 2 for usage, or 3 where something is wrong with a file."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print(HELP, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name == "list":
        return list_weights(_parse(ListWeights, name, rest))
    if name == "inspect":
        return inspect(_parse(Inspect, name, rest))
    if name == "doctor":
        return doctor(_parse(Doctor, name, rest))
    if name == "convert":
        return convert(_parse(Convert, name, rest))
    near = nearest(name, ["list", "inspect", "doctor", "convert"])
    say(f"triptych: no command 'weights {name}'.{near} See `triptych weights --help`")
    return 2


def _parse(kind: type[Parsed], name: str, arguments: list[str]) -> Parsed:
    usage = f"triptych weights {name}{USAGES[name]} [OPTIONS]"
    return parse(kind, arguments, usage=usage, basic=BASIC, positional=True)


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


def inspect(request: Inspect) -> int:
    """Print the tensors of a file, or of every file of weights of a folder."""
    from dataclasses import asdict

    from triptych.doctor import family
    from triptych.systems import summarise
    from triptych.weights.files.sniff import KIND_NAMES
    from triptych.weights.files.weight_file import open_weights
    from triptych.weights.layouts import layout

    found = layout(request.path)
    whole = summarise(found)
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
                "tensors": {name: _described(t) for name, t in tensors.items()},
            }
        )
    facts: dict[str, Any] = {
        "path": str(request.path),
        "layout": found.form,
        "declared": found.declared or None,
        "config": str(found.config) if found.config else None,
        "tokenizer": [str(p) for p in found.tokenizer],
        "preprocessor": str(found.preprocessor) if found.preprocessor else None,
        "whole": asdict(whole) if whole else None,
        "files": files,
    }
    if request.json:
        print(json.dumps(facts))
    else:
        _show(facts)
    return 0


def _described(tensor: "Tensor") -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _show(facts: dict[str, Any]) -> None:
    for file in facts["files"]:
        for name, tensor in file["tensors"].items():
            shape = " x ".join(map(str, tensor["shape"])) or "scalar"
            print(_plain(f"{name}  {shape}  {tensor['dtype']}"))
    declared = f", {facts['declared']}" if facts["declared"] else ""
    say(_plain(f"{facts['path']}: {facts['layout']}{declared}"))
    for file in facts["files"]:
        say(
            _plain(
                f"{file['file']}: {file['container']}, {len(file['tensors']):,} tensors, "
                f"{file['parameters']:,} numbers in {file['bytes']:,} bytes"
            ),
            f"family: {file['family'] or 'not one that is recognised by its names'}",
        )
    if whole := facts["whole"]:
        predicts = f", predicts {whole['predicts']}" if whole["predicts"] else ""
        say(_plain(f"whole: {whole['family']}{predicts}, made of {', '.join(whole['parts'])}"))
        if whole["missing"]:
            say(_plain(f"missing: {', '.join(whole['missing'])}"))
        for note in whole["notes"]:
            say(_plain(note))


def doctor(request: Doctor) -> int:
    """Print what was looked at and what is wrong; returns 3 where anything is."""
    from triptych.doctor import examine

    faults = 0
    if not request.paths:
        say("triptych: give a file or a folder: `triptych weights doctor PATH ...`")
        return 2
    for path in request.paths:
        for finding in examine(path, request.digests):
            faults += bool(finding.fault)
            if request.json:
                row = {"path": str(finding.path), "what": finding.what, "fault": finding.fault}
                print(json.dumps(row | {"fault": finding.fault or None}))
            elif finding.fault:
                print(_plain(f"{finding.path}: {finding.fault}"))
            else:
                print(_plain(f"{finding.path}: sound ({finding.what})"))
    return 3 if faults else 0


def convert(request: Convert) -> int:
    """Write another form of a checkpoint."""
    if request.to == "safetensors":
        return _to_safetensors(request)
    from triptych.export import convert_checkpoint
    from triptych.weights.loaded import Reading

    dest = request.dest
    if request.to == "single-file" and dest.is_dir():
        dest = dest / "model.safetensors"
    _require_free(dest, request.overwrite)
    reading = Reading(request.predicts, request.weights, request.variant)
    for line in convert_checkpoint(str(request.source), dest, request.to, reading):
        say(_plain(line))
    form = "a single file" if request.to == "single-file" else f"a {request.to} folder"
    say(_plain(f"{dest}: {form} made of {request.source}"))
    return 0


def _to_safetensors(request: Convert) -> int:
    from triptych.weights.files.safetensors import write_safetensors
    from triptych.weights.layouts import layout

    found = layout(request.source)
    if len(found.weights) > 1:
        raise ValueError(
            f"{request.source} holds {len(found.weights)} models: convert one of them, such as "
            f"{found.weights[0]}"
        )
    dest = request.dest / "model.safetensors" if request.dest.is_dir() else request.dest
    if dest.suffix != ".safetensors":
        raise ValueError(f"{dest} should end in .safetensors, or be a folder that is there")
    _require_free(dest, request.overwrite)
    tensors = found.open().read()
    dest.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(dest, tensors, {"format": "pt"})
    say(_plain(f"{dest}: {len(tensors):,} tensors, {dest.stat().st_size:,} bytes"))
    return 0


def _require_free(dest: Path, overwrite: bool) -> None:
    there = any(dest.iterdir()) if dest.is_dir() else dest.exists()
    if there and not overwrite:
        raise ValueError(f"{dest} is there already: give another name, or --overwrite")


def _plain(text: str) -> str:
    """Without the control characters that a name in a file could send to a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)

"""The layout of a checkpoint: which program's folder it is, or which publisher's file.

Nothing is loaded or fetched; only names, small JSON files and the first bytes of a file are read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from triptych.config import BadFile, missing_file, read_object
from triptych.weights.variants import choose_variant, variants

if TYPE_CHECKING:
    from triptych.weights.files.weight_file import WeightFile

Form = Literal[
    "triptych",
    "transformers",
    "open_clip",
    "diffusers",
    "openai",
    "big_vision",
    "gguf",
    "file",
    "karlo",
]

TRANSFORMERS = (  # in the order of preference
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
OPEN_CLIP = (
    "open_clip_model.safetensors",
    "open_clip_model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "open_clip_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
TOKENIZERS = (
    *("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model"),
    *("tokenizer_config.json", "special_tokens_map.json"),
)
PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Layout:
    """What a path is, and where its parts are."""

    form: Form
    path: Path
    weights: tuple[Path, ...]
    """Files that `open_weights` takes; an index is listed instead of its shards. Several only where
    a folder holds several models (diffusers).
    """
    config: Path | None = None
    tokenizer: tuple[Path, ...] = ()
    preprocessor: Path | None = None
    declared: str = ""
    """What the configuration calls the model: `model_type`, `_class_name`, or our own name."""
    file: "WeightFile | None" = None
    """The path itself, opened, where it is a file."""

    def open(self) -> "WeightFile":
        """The first of `weights`, opened.

        Raises:
            BadFile: it is no file of weights.
        """
        from triptych.weights.files.weight_file import open_weights

        return self.file or open_weights(self.weights[0])


def layout(path: Path) -> Layout:
    """Find the layout of a folder or file; a file is opened.

    Raises:
        BadFile: its layout is not known, or the weights are missing, and what was expected.
    """
    if not path.exists():
        raise missing_file(path)
    if not path.is_dir():
        return _file(path)
    path = _snapshot(path)
    if (path / "model_index.json").is_file():
        return _diffusers(path)
    card = _read(path / "config.json")
    open_clip = _read(path / "open_clip_config.json")
    if isinstance(card.get("model"), str) and isinstance(card.get("config"), dict):
        return _folder("triptych", path, ("model.safetensors",), "config.json", card["model"])
    if open_clip and not (card and _first(path, OPEN_CLIP[:4]) is None):
        return _folder("open_clip", path, OPEN_CLIP, "open_clip_config.json", "")
    if "_class_name" in card:  # one network of diffusers
        weights = tuple(list(variants(path).values())[:1])
        if not weights:
            choose_variant(path)  # raises the error that says what is missing
        return Layout(
            "diffusers", path, weights, path / "config.json", declared=f"{card['_class_name']}"
        )
    if card:
        declared = card.get("model_type")
        if not isinstance(declared, str):
            raise BadFile(
                path / "config.json",
                "names no `model_type`: it was written by an unsupported program. Give "
                "the file of weights itself",
            )
        return _folder("transformers", path, TRANSFORMERS, "config.json", declared)
    karlo = tuple(sorted(path.glob("*-ckpt*.ckpt")))
    if any(file.name.startswith(("prior-", "decoder-", "improved-sr-")) for file in karlo):
        return Layout("karlo", path, karlo, declared="karlo")
    raise BadFile(path, _explain_unknown(path))


def _file(path: Path) -> Layout:
    # imported here, since it loads torch, which a folder does not need
    from triptych.weights.files.weight_file import open_weights

    file = open_weights(path)
    forms: dict[str, Form] = {"torchscript": "openai", "npz": "big_vision", "gguf": "gguf"}
    declared = file.header.notes.get("general.architecture", "") if file.kind == "gguf" else ""
    return Layout(forms.get(file.kind, "file"), path, (path,), declared=declared, file=file)


def _folder(form: Form, path: Path, names: tuple[str, ...], config: str, declared: str) -> Layout:
    weights = _first(path, names)
    if weights is None:
        kind = f"{declared} " if declared else ""
        raise BadFile(
            path,
            f"is a {form} folder of a {kind}model without its weights: there is no "
            f"{' or '.join(names[:4])}{_unfinished(path)}",
        )
    return Layout(
        form,
        path,
        (weights,),
        path / config,
        _present(path, TOKENIZERS),
        _first(path, PREPROCESSORS),
        declared,
    )


def _diffusers(path: Path) -> Layout:
    index = _read(path / "model_index.json")
    parts = [name for name, kind in index.items() if _is_part(kind) and (path / name).is_dir()]
    files = [variants(path / name) for name in parts]
    # of several variants the plain one, which comes first
    weights = tuple(next(iter(each.values())) for each in files if each)
    if not weights:
        raise BadFile(path, "is a diffusers folder without weights in its parts")
    return Layout(
        "diffusers",
        path,
        weights,
        path / "model_index.json",
        _present(path / "tokenizer", TOKENIZERS),
        _first(path / "feature_extractor", PREPROCESSORS),
        str(index.get("_class_name", "")),
    )


def _is_part(kind: Any) -> bool:
    return isinstance(kind, list) and len(kind) == 2 and all(isinstance(k, str) for k in kind)


def _snapshot(path: Path) -> Path:
    """The current snapshot of a folder of the hub's cache (`models--OWNER--NAME`)."""
    main = path / "refs" / "main"
    if main.is_file() and main.stat().st_size < 100:
        inner = path / "snapshots" / main.read_text(errors="replace").strip()
        if inner.parent == path / "snapshots" and inner.is_dir():
            return inner
    return path


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next(iter(_present(folder, names)), None)


def _present(folder: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    return tuple(folder / name for name in names if (folder / name).is_file())


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file."""
    return read_object(path) if path.is_file() else {}


def _unfinished(path: Path) -> str:
    endings = (".incomplete", ".part", ".crdownload", ".tmp", ".download", ".aria2")
    names = [p.name for p in sorted(path.iterdir()) if p.name.endswith(endings)]
    return f". {names[0]} is an unfinished download: let it end, or fetch it again" if names else ""


def _explain_unknown(path: Path) -> str:
    """Why a folder has no known layout, and what to do."""
    suffixes = (".safetensors", ".gguf", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".th")
    files = [p.name for p in sorted(path.iterdir()) if p.suffix in suffixes and p.is_file()]
    if any(path.glob("*-of-*")) and not list(path.glob("*.index.json")):
        return (
            "holds shards without their index: fetch model.safetensors.index.json and config.json "
            "into it"
        )
    if files:
        more = f" (or one of {len(files) - 1} others)" if len(files) > 1 else ""
        return (
            f"has no config.json that says which model its weights are of. Give a file itself: "
            f"{path / files[0]}{more}"
        )
    return (
        "holds no model: it is no run folder (there is no run.json), and there is no config.json, "
        "open_clip_config.json or model_index.json of a published one, and no file of weights"
        f"{_unfinished(path)}"
    )

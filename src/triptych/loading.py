"""`load(name)`: a trained or published model, with everything that is needed to use it.

Which models there are, and which system reads a published checkpoint, is what the `SYSTEM` records
of `triptych.systems` say.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych import config, fields, runtime
from triptych.system import ModelKind
from triptych.systems import KINDS, SYSTEMS
from triptych.text.known_words import read_known_words
from triptych.text.language import open_language_tokenizer
from triptych.text.tokenizer import open_tokenizer
from triptych.weights.bundled_models import bundled_names, find_bundled
from triptych.weights.describe_model import require_weights
from triptych.weights.files.weight_file import open_weights, read_safetensors
from triptych.weights.hub import fetch_published, find_repository
from triptych.weights.layouts import Layout, layout
from triptych.weights.loaded import (
    AS_STORED,
    BITS,
    DTYPES,
    WRITES,
    Card,
    Loaded,
    Reading,
    require_cast,
)
from triptych.weights.short_names import SHORT_NAMES
from triptych.weights.skeleton import skeleton


def load(
    name: str,
    device: torch.device | str = "cpu",
    dtype: str = "auto",
    reading: Reading = AS_STORED,
) -> Loaded:
    """Load a run folder, finished or still training (then as of its last checkpoint), a model that
    comes with the package, such as emoji, or a published checkpoint: a folder, a file, OWNER/NAME
    on the hub, or a short name such as sd15.

    `dtype` is float32, bfloat16, float16, `stored` (as the file has it), or auto: for CLIP, SigLIP
    and Stable Diffusion what this device computes fastest, else float32. Of a language model on a
    CPU it may also be int8 or int4, the most bits of a weight, or `packed`: int8 for a GGUF file,
    else auto. `reading` says what a published checkpoint leaves open.

    Raises:
        ValueError: there is no such model, or its files are damaged or do not fit together.
    """
    bundled = find_bundled(name)
    path, repo = bundled or Path(name), "" if bundled else find_repository(name)
    if repo:
        path = fetch_published(name, repo)
    elif not os.path.exists(path):  # unlike Path.exists, also for names that are too long
        raise ValueError(
            f"no model {name[:200]!r}: give a run folder, such as runs/demo, the folder or file of "
            "a published checkpoint, its OWNER/NAME on the hub, or a name that `triptych models` "
            "or `triptych weights list` shows."
            f"{fields.nearest(name, [*bundled_names(), *SHORT_NAMES])}"
        )
    device = runtime.device(str(device))
    # found once: the header of a GGUF file has its whole vocabulary
    found = None if _is_run(path) else layout(path)
    dtype, reading = _resolve_bits(found, dtype, device, reading)
    chosen = resolve_dtype(dtype, device)
    if found is None:
        return _load_run(path, name, device, chosen)
    label = name if repo else path.resolve().name
    return _load_published(found, label, device, dtype, reading)


def load_precisely(
    name: str | os.PathLike[str], device: torch.device | str, precision: torch.dtype | str
) -> Loaded:
    """As `load`, and a precision that the model does not compute in is an error.

    Raises:
        ValueError: as `load`.
    """
    if not isinstance(name, str | os.PathLike):
        raise ValueError(f"a model is named by a text or a path, not {type(name).__name__}")
    dtype = str(precision).removeprefix("torch.")
    loaded = load(os.fsdecode(name), device, dtype)
    if dtype in DTYPES:
        require_cast(loaded, DTYPES[dtype])
    return loaded


def _resolve_bits(
    found: Layout | None, dtype: str, device: torch.device, reading: Reading
) -> tuple[str, Reading]:
    """A dtype of packed weights as an ordinary one, and how the checkpoint is read then; None is a
    run of ours.
    """
    form = found.form if found else "run"
    if dtype == "packed":
        dtype = "int8" if device.type == "cpu" and form == "gguf" else "auto"
    if dtype not in BITS:
        return dtype, reading
    if device.type != "cpu":
        raise ValueError(f"{dtype} is for a CPU: other devices are faster in bfloat16")
    if form not in ("gguf", "transformers", "big_vision"):
        raise ValueError(
            f"{dtype} is for published language models: for this one choose float32 or bfloat16"
        )
    return "bfloat16", replace(reading, bits=BITS[dtype])


def resolve_dtype(dtype: str, device: torch.device, auto: str = "auto") -> torch.dtype | None:
    """The dtype of the weights; None leaves each tensor as it is stored.

    Raises:
        ValueError: `dtype` is none of those that `load` takes.
    """
    if dtype == "stored":
        return None
    chosen = DTYPES.get(runtime.precision(auto if dtype == "auto" else dtype, device))
    if chosen is None:
        raise ValueError(f"precision is {', '.join(DTYPES)}, stored or auto, not {dtype!r}")
    return chosen


def find_kind(name: str) -> ModelKind:
    """How models of a kind are built; `name` is one of `KINDS`."""
    kind: ModelKind = KINDS[name].module("model").KINDS[name]
    return kind


def _load_published(
    found: Layout, label: str, device: torch.device, dtype: str, reading: Reading
) -> Loaded:
    """A checkpoint that another program has written, read by the system that recognises it."""
    path = found.path
    for system in SYSTEMS.values():
        if not system.load:
            continue
        module = system.module("load")
        if module.recognise(found):
            chosen = resolve_dtype(dtype, device, system.auto_dtype)
            if reading.bits and not system.packs:
                raise ValueError(
                    f"{path} is a {system.title}: int8 and int4 are for language models. Choose "
                    "float32 or bfloat16"
                )
            read = module.load_published(found, chosen, reading)
            card = Card(
                read.kind,
                fields.to_json(read.config),
                tokenizers=tuple(tokenizer.config for tokenizer in read.tokenizers),
            )
            model = _prepare(read.model, read.kind, device, chosen)
            return Loaded(
                label,
                card,
                read.config,
                model,
                read.tokenizer,
                read.transform,
                read.tokenizers,
                read.notes,
                read.language,
            )
    raise ValueError(
        f"{path} is a checkpoint of {found.declared or found.form} layout, which is not among "
        "those that load here: CLIP and SigLIP of transformers, open_clip, OpenAI and big_vision; "
        "Gemma of transformers and llama.cpp; Stable Diffusion and autoencoders of diffusers, or "
        "as single files"
    )


def _prepare(
    model: nn.Module, name: str, device: torch.device, dtype: torch.dtype | None
) -> nn.Module:
    """For inference: on its device, without gradients, in evaluation mode."""
    model = model.to(device).requires_grad_(False).eval()
    prepare = find_kind(name).prepare
    if prepare is not None:
        prepare(model, dtype)
    return model


def _is_run(path: Path) -> bool:
    """Whether a folder is a run of ours, even before its first export, and not a publisher's."""
    others = ("open_clip_config.json", "model_index.json")
    if not path.is_dir() or any((path / name).exists() for name in others):
        return False
    if not (path / "config.json").exists():
        return (path / "run.json").exists()
    card = config.read_json(path / "config.json")
    return not isinstance(card, dict) or not card.keys() & {"model_type", "_class_name"}


def _load_run(folder: Path, name: str, device: torch.device, dtype: torch.dtype | None) -> Loaded:
    require_weights(folder, name)
    card, kind, settings = read_card(folder / "config.json")
    model = build_skeleton(folder / "config.json", kind, settings)
    weights = folder / "model.safetensors"
    if kind.cast_on_read:
        state = open_weights(weights).read(dtype)
    else:
        # Clones: a memory map is aligned otherwise, and a file replaced under it would change the
        # model. The weights of bundled models are stored in bfloat16.
        stored = read_safetensors(weights)
        state = {
            k: v.float() if v.dtype == torch.bfloat16 else v.clone() for k, v in stored.items()
        }
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{name}: the weights do not fit config.json: {error}") from error
    model = _prepare(model, card.model, device, dtype)
    tokenizer = None
    if card.tokenizer is not None:
        tokenizer = open_tokenizer(folder / "tokenizer.json", card.tokenizer)
    towers = tuple(open_tokenizer(folder / "tokenizer.json", each) for each in card.tokenizers)
    return Loaded(
        folder.resolve().name,
        card,
        settings,
        model,
        tokenizer,
        card.transform,
        towers,
        words=read_known_words(folder),
        language=open_language_tokenizer(folder) if card.model in WRITES else None,
    )


def read_config(found: Layout) -> tuple[str, Any] | None:
    """The kind of a checkpoint and its configuration; None where its weights alone describe it, or
    no system reads it.

    Raises:
        BadFile: the configuration is damaged, or describes a model that cannot be built.
    """
    if found.config is None or found.config.name == "model_index.json":  # of several models
        return None
    if found.form == "triptych":
        card, _, settings = read_card(found.config)
        name = card.model
    else:
        systems = [each for each in SYSTEMS.values() if each.load]
        modules = [m for each in systems if (m := each.module("load")).recognise(found)]
        if not modules:
            return None
        name, settings = modules[0].read_config(found)
    build_skeleton(found.config, find_kind(name), settings)
    return name, settings


def read_card(path: Path) -> tuple[Card, ModelKind, Any]:
    """The config.json of a run folder, the kind of its model, and the model's configuration.

    Raises:
        BadFile: it is damaged, or of a model that is unknown here.
    """
    stored = config.read_object(path)
    with config.errors_about(path):
        if not isinstance(stored.get("config"), dict):
            raise ValueError("is no model's configuration: it has no `config` object")
        card = fields.from_json(Card, stored)
        if card.model not in KINDS:
            near = fields.nearest(card.model, list(KINDS))
            raise ValueError(f"names the model {card.model!r}, unknown here.{near}")
        kind = find_kind(card.model)
        return card, kind, fields.from_json(kind.config, card.config)


def build_skeleton(path: Path, kind: ModelKind, settings: Any) -> nn.Module:
    """The model of a configuration, without values of its weights.

    Raises:
        BadFile: `path`, which holds the configuration, describes no model that can be built.
    """
    with config.errors_about(path):
        model: nn.Module = skeleton(lambda: kind.build(settings))
    return model

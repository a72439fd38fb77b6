"""What is wrong with a checkpoint, file by file, and what to do about it."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from triptych.config import BadFile
from triptych.loading import read_config
from triptych.systems import summarise
from triptych.weights.catalog import CATALOG
from triptych.weights.digests import file_digest
from triptych.weights.files.shards import missing_shards
from triptych.weights.files.sniff import KIND_NAMES
from triptych.weights.files.weight_file import WeightFile, open_weights
from triptych.weights.layouts import Layout, layout

FAMILIES: dict[str, tuple[str, ...]] = {  # all of these names; the first family that has them
    "CLIP (OpenAI's names, ViT)": ("visual.class_embedding", "(text.)?token_embedding.weight"),
    "CLIP (OpenAI's names, ResNet)": (
        "visual.attnpool.positional_embedding",
        "(text.)?token_embedding.weight",
    ),
    "SigLIP (open_clip)": ("visual.trunk.attn_pool.latent", "text.token_embedding.weight"),
    "PaliGemma (Transformers)": (
        "(model.)?multi_modal_projector.linear.weight",
        "(model.)?(language_model|model).*",
    ),
    "SigLIP (Transformers)": ("vision_model.head.probe", "text_model.embeddings.*"),
    "CLIP (Transformers)": ("vision_model.embeddings.class_embedding", "text_model.embeddings.*"),
    "CLIP text tower (Transformers)": ("text_model.embeddings.token_embedding.weight",),
    "OWL-ViT": ("owlv(it|2).*", "class_head.*"),
    "PaliGemma (big_vision)": ("params/llm/.*", "params/img/.*"),
    "SigLIP (big_vision)": ("(params/)?img/.*", "(params/)?txt/.*"),
    "Stable Diffusion XL, single file": ("conditioner.embedders.1.*", "model.diffusion_model.*"),
    "Stable Diffusion, single file": ("model.diffusion_model.*", "cond_stage_model.*"),
    "U-Net (Diffusers)": ("down_blocks.0.resnets.0.conv1.weight", "time_embedding.*"),
    "autoencoder (Diffusers)": ("encoder.down_blocks.0.resnets.*", "decoder.mid_block.*"),
    "autoencoder (CompVis)": ("(first_stage_model.)?encoder.down.0.*", ".*decoder.mid.*"),
    "Gemma (Transformers)": ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.*"),
    "LoRA": (r".*(lora_(A|B|up|down)\b).*",),
}


def family(tensors: Iterable[str]) -> str:
    """The family of a model by the names of its tensors, such as `CLIP (Transformers)`; empty if
    unknown.
    """
    names = [name.removeprefix("module.") for name in tensors]
    for known, patterns in FAMILIES.items():
        if all(any(re.fullmatch(p, name) for name in names) for p in patterns):
            return known
    return ""


def matches_declared(declared: str, known: str) -> bool:
    """Whether a configuration's `model_type` fits the family of the tensors; True if unknown."""
    kinds = {"clip": "CLIP", "siglip": "SigLIP", "siglip2": "SigLIP", "paligemma": "PaliGemma"}
    kinds |= {"gemma": "Gemma", "gemma2": "Gemma", "gemma3_text": "Gemma"}
    return not known or declared not in kinds or known.startswith(kinds[declared])


TORCH = ("torch", "torchscript", "torch-legacy")
SUFFIXES = {
    ".safetensors": ("safetensors",),
    ".npz": ("npz",),
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".th"), TORCH),
}


class Finding(NamedTuple):
    """The result of checking one file or part; `fault` is empty where nothing is wrong."""

    path: Path
    what: str
    fault: str = ""


def examine(path: Path, digests: bool = False) -> Iterator[Finding]:
    """Check a file, or all parts of a folder; nothing is executed or fetched.

    With `digests` every byte is read, and files that the catalog knows are compared with the
    digests of their publishers.
    """
    try:
        source = layout(path)
    except BadFile as error:
        what = "a folder" if error.path.is_dir() else "a file" if error.path.exists() else "nothing"
        yield Finding(error.path, what, error.reason)
        files = sorted(path.iterdir()) if path.is_dir() else []
        for file in files:  # one of them may be the reason
            if file.suffix in SUFFIXES and file.is_file():
                yield _check_path(file, "", digests)
        return
    if source.file is not None:
        yield _check_file(source.file, "", digests)
        yield from _check_stable_diffusion(source)
        return
    declared = f", {source.declared}" if source.declared else ""
    yield Finding(source.path, f"{source.form} folder{declared}")
    for weights in source.weights:
        expected = source.declared if source.form == "transformers" else ""
        yield _check_path(weights, expected, digests)
    yield from _check_config(source)
    yield from _find_missing(source)
    yield from _check_stable_diffusion(source)


def _check_path(path: Path, declared: str, digests: bool) -> Finding:
    try:
        return _check_file(open_weights(path), declared, digests)
    except BadFile as error:
        return Finding(path, "a file", error.reason)


def _check_file(file: WeightFile, declared: str, digests: bool) -> Finding:
    """Read the places and shapes of all tensors, but not their values."""
    path, what = file.path, KIND_NAMES[file.kind]
    try:
        if file.kind == "shards" and (missing := missing_shards(path)):
            names = ", ".join(missing[:20])
            fault = f"lacks {len(missing)} shards: {names}. Fetch them into {path.parent}"
            return Finding(path, what, fault)
        tensors = file.read()
    except ValueError as error:
        return Finding(path, what, error.reason if isinstance(error, BadFile) else str(error))
    known = family(tensors)
    what = f"{what} of {len(tensors):,} tensors" + (f", {known}" if known else "")
    expected = SUFFIXES.get(path.suffix)
    fault = ""
    if expected and file.kind not in expected and file.kind != "shards":
        ending = next(suffix for suffix, kinds in SUFFIXES.items() if file.kind in kinds)
        fault = f"is {KIND_NAMES[file.kind]} under a wrong name: rename it to {path.stem}{ending}"
    elif not matches_declared(declared, known):
        fault = (
            f"contains {known}, but its configuration says {declared}: one of the two belongs to "
            "another model"
        )
    return Finding(path, what, fault or (_digest_fault(path) if digests else ""))


def _check_config(source: Layout) -> Iterator[Finding]:
    """What is wrong with the configuration of a model that loads here."""
    try:
        read_config(source)
    except BadFile as error:
        yield Finding(error.path, "the configuration", error.reason)


def _check_stable_diffusion(source: Layout) -> Iterator[Finding]:
    """The family of a Stable Diffusion, and which of its parts are missing."""
    model = summarise(source)
    if model is None:
        return
    broken = [note for note in model.notes if note.startswith("does not load")]
    yield Finding(
        source.path, f"{model}{''.join(f'; {note}' for note in model.notes)}", "".join(broken)
    )
    for name in model.missing:
        where = source.path / name if source.path.is_dir() else source.path
        yield Finding(where, name, f"has no {name}: fetch it from where the rest is")


def _digest_fault(path: Path) -> str:
    known = {e.sha256[path.name]: e for e in CATALOG.values() if path.name in e.sha256}
    digest = file_digest(path) if known else ""
    if not known or digest in known:
        return ""
    return (
        f"has the SHA-256 {digest}, but {path.name} is published with {' or '.join(known)}: it is "
        "damaged, or another file of this name"
    )


def _find_missing(source: Layout) -> Iterator[Finding]:
    """Files that the model needs beside its weights."""
    if source.form == "transformers" and source.declared in ("clip", "siglip", "siglip2"):
        if not {p.name for p in source.tokenizer} & {
            "tokenizer.json",
            "vocab.json",
            "spiece.model",
        }:
            fault = "is missing: texts cannot be read without it. Fetch it from where the rest is"
            yield Finding(source.path / "tokenizer.json", "the tokenizer", fault)
        if source.preprocessor is None:
            fault = "is missing: it says how pictures are resized. Fetch it from where the rest is"
            yield Finding(source.path / "preprocessor_config.json", "the preprocessor", fault)

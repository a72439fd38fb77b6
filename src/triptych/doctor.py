"""What is wrong with a checkpoint, file by file, and what to do about it."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from triptych.config import nearest
from triptych.systems import summarise
from triptych.weights.catalog import CATALOG
from triptych.weights.files.read import read_weights
from triptych.weights.files.shards import missing_shards
from triptych.weights.files.sniff import WORDS, container
from triptych.weights.hub import digest_of
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


def family(tensors: Mapping[str, Tensor]) -> str:
    """What the names say, such as `CLIP (Transformers)`; empty where they say nothing."""
    names = [name.removeprefix("module.") for name in tensors]
    for known, patterns in FAMILIES.items():
        if all(any(re.fullmatch(p, name) for name in names) for p in patterns):
            return known
    return ""


def agrees(declared: str, found: str) -> bool:
    """Whether a configuration's `model_type` can stand beside tensors of a family.

    Only families that we can tell apart are judged; anything else is given the benefit of doubt.
    """
    kinds = {"clip": "CLIP", "siglip": "SigLIP", "siglip2": "SigLIP", "paligemma": "PaliGemma"}
    kinds |= {"gemma": "Gemma", "gemma2": "Gemma", "gemma3_text": "Gemma"}
    return not found or declared not in kinds or found.startswith(kinds[declared])


TORCH = ("torch", "torchscript", "torch-legacy")
SUFFIXES = {
    ".safetensors": ("safetensors",),
    ".npz": ("npz",),
    **dict.fromkeys((".pt", ".pth", ".ckpt", ".bin", ".th"), TORCH),
}


class Finding(NamedTuple):
    """One thing that was looked at; `fault` is empty where it is sound."""

    path: Path
    what: str
    fault: str = ""


def examine(path: Path, digests: bool = False) -> Iterator[Finding]:
    """Look at a file, or at all parts of a folder; nothing is executed or fetched.

    With `digests` every byte is read, and files that the catalog knows are compared with what
    their publisher says.
    """
    if not path.exists():
        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        yield Finding(path, "nothing", f"does not exist.{nearest(path.name, near)}".rstrip("."))
        return
    if not path.is_dir():
        yield from _file(path, "", digests)
        yield from _whole(Layout("file", path, (path,)))
        return
    try:
        found = layout(path)
    except (ValueError, OSError) as error:
        yield Finding(path, "a folder", str(error).removeprefix(f"{path} "))
        for file in sorted(path.iterdir()):  # the reason may be one of them
            if file.suffix in SUFFIXES and file.is_file():
                yield from _file(file, "", digests)
        return
    yield Finding(
        found.path, f"{found.form} folder" + (f", {found.declared}" * bool(found.declared))
    )
    for weights in found.weights:
        declared = found.declared if found.form == "transformers" else ""
        yield from _file(weights, declared, digests)
    yield from _missing(found)
    yield from _whole(found)


def _file(path: Path, declared: str, digests: bool) -> Iterator[Finding]:
    what, fault = "a file", ""
    try:
        kind = container(path)
        what = WORDS[kind]
        if kind == "shards" and (missing := missing_shards(path)):
            fault = f"lacks {len(missing)} shards: {', '.join(missing[:20])}. Fetch them into "
            yield Finding(path, what, f"{fault}{path.parent}")
            return
        tensors = read_weights(path)
        found = family(tensors)
        what = f"{what} of {len(tensors):,} tensors" + (f", {found}" if found else "")
        wanted = SUFFIXES.get(path.suffix)
        if wanted and kind not in wanted and kind != "shards":
            ending = next(s for s, kinds in SUFFIXES.items() if kind in kinds)
            fault = f"is {WORDS[kind]} under a wrong name: rename it to {path.stem}{ending}"
        elif not agrees(declared, found):
            fault = (
                f"holds {found}, but the configuration beside it is of {declared}: one of the two "
                "is of another model"
            )
    except OSError as error:
        fault = f"cannot be opened: {error.strerror or error}"
    except ValueError as error:
        fault = str(error).removeprefix(f"{path}: ")
    yield Finding(path, what, fault or (_digest_fault(path) if digests else ""))


def _whole(found: Layout) -> Iterator[Finding]:
    """A Stable Diffusion as a whole, and parts without which it is of no use."""
    read = summarise(found)
    if read is None:
        return
    broken = [note for note in read.notes if note.startswith("does not load")]
    yield Finding(
        found.path, f"{read}{''.join(f'; {note}' for note in read.notes)}", "".join(broken)
    )
    for name in read.missing:
        where = found.path / name if found.path.is_dir() else found.path
        yield Finding(where, name, f"has no {name}: fetch it from where the rest is")


def _digest_fault(path: Path) -> str:
    known = {e.sha256[path.name]: e for e in CATALOG.values() if path.name in e.sha256}
    digest = digest_of(path) if known else ""
    if not known or digest in known:
        return ""
    return (
        f"has the SHA-256 {digest}, but {path.name} is published with {' or '.join(known)}: it is "
        "damaged, or another file of this name"
    )


def _missing(found: Layout) -> Iterator[Finding]:
    """Files without which the weights load and the model is of no use."""
    if found.form == "transformers" and found.declared in ("clip", "siglip", "siglip2"):
        if not {p.name for p in found.tokenizer} & {"tokenizer.json", "vocab.json", "spiece.model"}:
            fault = "is missing: texts cannot be read without it. Fetch it from where the rest is"
            yield Finding(found.path / "tokenizer.json", "the tokenizer", fault)
        if found.preprocessor is None:
            fault = "is missing: it says how pictures are resized. Fetch it from where the rest is"
            yield Finding(found.path / "preprocessor_config.json", "the preprocessor", fault)

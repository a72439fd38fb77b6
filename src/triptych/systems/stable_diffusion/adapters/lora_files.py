"""LoRA files in the formats of kohya, diffusers and PEFT, for linear and convolutional layers.

Names of layers are mapped to ours. Layers that the model does not have are reported, and a file
without any matching layer is an error.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triptych.config import BadFile, errors_about, read_object
from triptych.systems.clip.published import TRANSFORMERS_TEXT
from triptych.systems.stable_diffusion.adapters.lora_updates import Update, fits, updates_of
from triptych.systems.stable_diffusion.published.unet import diffusers_rules, ldm_rules
from triptych.systems.stable_diffusion.unet import LatentUNet
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.files.weight_file import WeightFile, open_weights
from triptych.weights.keymap import Rule, counterparts, rename, under
from triptych.weights.skeleton import skeleton

KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
         "lora_te2_": "text_encoder_2"}  # fmt: skip
ROLES = {"A": "down", "B": "up"}
SUFFIXES = (  # format, and what follows the name of a layer
    ("kohya", re.compile(r"\.lora_(down|up|mid)\.weight$")),
    ("PEFT", re.compile(r"\.lora_(A|B)(?:\.[\w-]+)?\.weight$")),
    ("diffusers", re.compile(r"\.lora(?:_linear_layer)?\.(down|up)\.weight$")),
    ("diffusers", re.compile(r"_lora\.(down|up)\.weight$")),
    ("", re.compile(r"\.(alpha)$")),
)
REFUSED = {  # part of a tensor's name: the unsupported method that it belongs to
    "hada_": "LoHa, products of low-rank matrices",
    "lokr_": "LoKr, Kronecker products",
    "dora_scale": "DoRA, directions and magnitudes",
    "lora_magnitude_vector": "DoRA, directions and magnitudes",
    "oft_": "OFT, rotations",
    "on_input": "(IA)3, scales of activations",
    "diff": "whole differences",
}
OTHER_FAMILIES = {
    "double_blocks": "FLUX",
    "single_transformer_blocks": "FLUX",
    "joint_blocks": "Stable Diffusion 3",
    "transformer.transformer_blocks": "Stable Diffusion 3 or FLUX",
    "lora_prior": "Stable Cascade",
}
CONTEXT_FAMILIES = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    1280: "the refiner of Stable Diffusion XL",
    2048: "Stable Diffusion XL",
}
"""Families by the width of their context."""


@dataclass(frozen=True)
class Target:
    """A model that a file may change, with the names of its layers in files."""

    part: str
    """unet, text_encoder or text_encoder_2, as in diffusers."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shapes of our weights."""
    layers: Mapping[str, tuple[str, ...]]
    """Names of layers in files, and our weights that each consists of."""
    exported: Mapping[str, str]
    """Our weights, and diffusers' name of the layer of each."""


def unet_target(model: LatentUNet) -> Target:
    """A U-Net, by diffusers' and LDM's names."""
    config = model.config
    return _build_target("unet", model, [diffusers_rules(config), ldm_rules(config)])


def text_target(model: nn.Module, part: str = "text_encoder") -> Target:
    """A text tower of CLIP (`TextTransformer`), by transformers' names."""
    rules = [
        *under(TRANSFORMERS_TEXT, "text_model."),
        rename("text_projection.weight", "projection.weight"),
    ]
    return _build_target(part, model, [rules])


def _build_target(part: str, model: nn.Module, tables: Sequence[Sequence[Rule]]) -> Target:
    shapes = {name: tuple(x.shape) for name, x in model.named_parameters() if x.ndim > 1}
    layers: dict[str, tuple[str, ...]] = {}
    exported: dict[str, str] = {}
    for rules in tables:
        named = {
            name.removesuffix(".weight"): ours for name, ours in counterparts(shapes, rules).items()
        }
        exported = exported or {name: layer for layer, ours in named.items() for name in ours}
        layers |= named
    # kohya's names have no dots; early diffusers used the U-Net's names in text towers, too
    flat = {name.replace(".", "_"): ours for name, ours in layers.items()}
    old = {
        re.sub(r"self_attn\.(?:(\w)_proj|out_proj)$", _old_attention_name, name): ours
        for name, ours in layers.items()
    }
    return Target(part, shapes, {**flat, **old, **layers}, exported)


def _old_attention_name(match: re.Match[str]) -> str:
    return f"self_attn.to_{match[1]}" if match[1] else "self_attn.to_out.0"


@dataclass(frozen=True)
class Lora:
    """A LoRA file, mapped to our weights."""

    form: str
    """kohya, diffusers or PEFT."""
    updates: dict[str, dict[str, Update]]
    """By part, then by the name of our weight."""
    matched: tuple[str, ...]
    """Layers of the file that the model has."""
    unmatched: tuple[str, ...]
    """Layers of the file that the model does not have."""

    def __str__(self) -> str:
        updates = [update for part in self.updates.values() for update in part.values()]
        ranks = sorted({update.rank for update in updates})
        alphas = sorted({update.alpha for update in updates})
        return (
            f"{self.form} LoRA of rank {_format_range(ranks)}, alpha {_format_range(alphas)}: "
            f"{len(self.matched)} layers matched, {len(self.unmatched)} unmatched"
        )


class Alpha(NamedTuple):
    """An alpha that a file declares in its metadata."""

    value: float
    rank_stabilised: bool = False
    """rsLoRA: scaled by alpha / sqrt(rank) (arXiv:2312.03732)."""


def read_lora(path: Path, targets: Sequence[Target]) -> Lora:
    """Read a LoRA file, or PEFT's folder of `adapter_model.safetensors` and `adapter_config.json`.

    Raises:
        ValueError: the file is damaged, or for another family of models, which is named.
    """
    folder = path if path.is_dir() else None
    if folder is not None:
        stems = ("adapter_model", "pytorch_lora_weights")
        names = [f"{stem}.{ending}" for ending in ("safetensors", "bin") for stem in stems]
        path = next((folder / name for name in names if (folder / name).is_file()), path)
        if path == folder:
            raise BadFile(folder, f"contains no LoRA: there is no {' or '.join(names)}")
    file = open_weights(path)
    with errors_about(path):
        return parse_lora(file.read(), targets, _read_alphas(file))


def parse_lora(
    tensors: Mapping[str, Tensor],
    targets: Sequence[Target],
    alphas: Mapping[str, Alpha] | None = None,
) -> Lora:
    """Parse the tensors of a LoRA file.

    The alpha of a layer is its own tensor, else that of its part (or of "", any part) in `alphas`,
    else its rank.

    Raises:
        ValueError: the file is of another method, which is named; a layer lacks `up` or `down`; no
            layer matches, or shapes differ: the message names the family it is for.
    """
    form, layers = _group_by_layer(tensors)
    alphas = alphas or {}
    updates: dict[str, dict[str, Update]] = {}
    matched, unmatched = [], []
    for layer, halves in layers.items():
        if not {"down", "up"} <= halves.keys():
            raise ValueError(f"{layer} has only {' and '.join(halves)}: the file is incomplete")
        match = _find_layer(layer, targets)
        if match is None:
            unmatched.append(layer)
            continue
        target, ours = match
        update = _build_update(halves, alphas.get(target.part) or alphas.get(""))
        rows = [target.shapes[name][0] for name in ours]
        if sum(rows) != len(update.up):
            raise ValueError(_misfit_message(layer, update.shape, target, ours, tensors))
        for name, up in zip(ours, update.up.split(rows), strict=True):
            part = Update(update.down, up, update.alpha, update.mid)
            if not fits(part, target.shapes[name]):
                raise ValueError(_misfit_message(layer, update.shape, target, ours, tensors))
            if name in updates.setdefault(target.part, {}):
                raise ValueError(f"two layers of the file update {name}; the second one is {layer}")
            updates[target.part][name] = part
        matched.append(layer)
    if not matched:
        parts = " or ".join(target.part for target in targets)
        raise ValueError(
            f"none of its {len(unmatched)} layers, such as {unmatched[0]}, is in the {parts} of "
            f"this model: it is a LoRA for {_family(tensors) or 'another family of models'}"
        )
    return Lora(form, updates, tuple(matched), tuple(unmatched))


def export_lora(updates: Mapping[str, Update], target: Target) -> dict[str, Tensor]:
    """The tensors of a LoRA file in kohya's format, which diffusers and others read.

    Where a layer in files consists of several of our weights, their updates are joined.
    """
    prefixes = {part: prefix for prefix, part in KOHYA.items() if prefix != "lora_te1_"}
    tensors: dict[str, Tensor] = {}
    for layer in dict.fromkeys(target.exported[name] for name in updates):
        update = _join_updates(updates, target, target.layers[layer])
        name = prefixes[target.part] + layer.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = update.down
        tensors[f"{name}.lora_up.weight"] = update.up
        tensors[f"{name}.alpha"] = torch.tensor(update.alpha)
        if update.mid is not None:
            tensors[f"{name}.lora_mid.weight"] = update.mid
    return tensors


def write_lora(unet: LatentUNet, path: Path) -> None:
    """Write the trained low-rank layers (`nn.lora`) of a U-Net in kohya's format.

    Raises:
        OSError: the disk is full or the folder cannot be written; an older file is kept.
    """
    target = unet_target(skeleton(lambda: LatentUNet(unet.config)))
    write_safetensors(path, export_lora(updates_of(unet), target), {"format": "pt"})


def _join_updates(updates: Mapping[str, Update], target: Target, ours: Sequence[str]) -> Update:
    """One update of a layer that consists of several of our weights."""
    if len(ours) == 1:
        return updates[ours[0]]
    parts = [updates[name] for name in ours if name in updates]
    first = parts[0]
    same = all(u.down is first.down or torch.equal(u.down, first.down) for u in parts)
    if len(parts) == len(ours) and same and len({u.alpha for u in parts}) == 1:
        return Update(first.down, torch.cat([u.up for u in parts]), first.alpha, first.mid)
    rank = sum(update.rank for update in parts)
    rows, column = [], 0
    for name in ours:
        row = first.up.new_zeros(target.shapes[name][0], rank)
        if name in updates:
            one = updates[name]
            row[:, column : column + one.rank] = one.up * (one.alpha / one.rank)
            column += one.rank
        rows.append(row)
    return Update(torch.cat([update.down for update in parts]), torch.cat(rows), float(rank))


def _group_by_layer(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, dict[str, Tensor]]]:
    """The format of a file, and the tensors of every layer by the layer's name in the file."""
    layers: dict[str, dict[str, Tensor]] = {}
    forms = []
    for name, tensor in tensors.items():
        form, ending = _match_suffix(name)
        layer = name[: ending.start()].replace(".processor.", ".")
        layer = re.sub(r"\.to_out$", ".to_out.0", layer)  # in early diffusers
        layers.setdefault(layer, {})[ROLES.get(ending[1], ending[1])] = tensor
        forms += [form] if form else []
    if not forms:
        raise ValueError("it contains no LoRA: no name ends in lora_down.weight or lora_A.weight")
    return max(set(forms), key=forms.count), layers


def _match_suffix(name: str) -> tuple[str, re.Match[str]]:
    """The format of a tensor's name, and the match of its suffix."""
    for form, pattern in SUFFIXES:
        if match := pattern.search(name):
            return form, match
    for part, method in REFUSED.items():
        if f".{part}" in name:
            raise ValueError(
                f"{name} belongs to {method}; supported: low-rank updates (LoRA, LoCon)"
            )
    raise ValueError(f"{name} is not part of a LoRA")


def _find_layer(layer: str, targets: Iterable[Target]) -> tuple[Target, tuple[str, ...]] | None:
    """The target and our weights of a layer in a file; None if no target has it."""
    layer = layer.removeprefix("base_model.model.")
    part = ""
    for prefix, name in (*KOHYA.items(), *((f"{p}.", p) for p in KOHYA.values())):
        if layer.startswith(prefix):
            part, layer = name, layer.removeprefix(prefix)
            break
    for target in targets:
        if part in ("", target.part) and layer in target.layers:
            return target, target.layers[layer]
    return None


def _build_update(halves: Mapping[str, Tensor], declared: Alpha | None) -> Update:
    down, up = halves["down"], halves["up"]
    flat = down.ndim < 2 or up.ndim < 2 or not len(down) or not len(up)
    if flat or up[0].numel() != len(down):
        raise ValueError(f"up {tuple(up.shape)} and down {tuple(down.shape)} do not fit each other")
    rank = len(down)
    if "alpha" in halves:
        if halves["alpha"].numel() != 1 or halves["alpha"].is_complex():
            raise ValueError("its alpha is not one number: download it again")
        alpha = float(halves["alpha"])
    elif declared is not None:
        alpha = declared.value * (rank**0.5 if declared.rank_stabilised else 1)
    else:
        alpha = float(rank)
    if not math.isfinite(alpha):
        raise ValueError(f"alpha is {alpha}: download it again")
    return Update(down, up, alpha, halves.get("mid"))


def _read_alphas(file: WeightFile) -> dict[str, Alpha]:
    """Alphas in the metadata of a safetensors file (diffusers) or PEFT's `adapter_config.json`."""
    settings: dict[str, Any] = {}
    beside = file.path.with_name("adapter_config.json")
    if beside.is_file():
        stored = read_object(beside)
        settings = {f".{name}": value for name, value in stored.items()}
    else:
        try:
            settings = json.loads(file.header.notes.get("lora_adapter_metadata", "{}"))
        except (ValueError, RecursionError) as error:
            raise ValueError("its lora_adapter_metadata is not JSON: download it again") from error
    if not isinstance(settings, dict):
        raise ValueError("its LoRA metadata is not a JSON object: download it again")
    alphas: dict[str, Alpha] = {}
    for name, value in settings.items():
        part, _, field = name.rpartition(".")
        if field in ("alpha_pattern", "use_dora", "layer_replication") and value:
            raise ValueError(f"its {field} is {value!r}; only plain LoRA is supported")
        if field == "lora_alpha" and isinstance(value, int | float):
            if not abs(value) <= sys.float_info.max:
                raise ValueError(f"its {name} is {str(value)[:50]}: download it again")
            root = bool(settings.get(f"{part}.use_rslora", False))
            alphas[part] = Alpha(float(value), root)
    return alphas


def _misfit_message(
    layer: str,
    shape: tuple[int, ...],
    target: Target,
    ours: Sequence[str],
    tensors: Mapping[str, Tensor],
) -> str:
    rows, *others = target.shapes[ours[0]]
    return (
        f"{layer} updates a layer of shape {shape}, which in this model is "
        f"{(len(ours) * rows, *others)}: it is a LoRA for "
        f"{_family(tensors) or 'another family of models'}"
    )


def _family(tensors: Mapping[str, Tensor]) -> str:
    """The family of models that a LoRA is for, by its names or the width of its context."""
    for name, tensor in tensors.items():
        for part, family in OTHER_FAMILIES.items():
            if part in name:
                return family
        if re.search(r"attn2[._](processor\.)?to_k[._]\w*(lora\.|_)?(down|A)\b", name):
            return CONTEXT_FAMILIES.get(tensor.shape[1], "")
    return ""


def _format_range(values: Sequence[float]) -> str:
    shown = [f"{value:g}" for value in values]
    return shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"

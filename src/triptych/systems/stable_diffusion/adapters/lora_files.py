"""LoRA files of others: kohya's, diffusers' and PEFT's names, linear and convolutional layers.

A file says by names of its own which layers it changes; here they become names of ours. What finds
no place is counted and named, and a file of which nothing does is refused.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from triptych.config import read_json
from triptych.systems.clip.published import TRANSFORMERS_TEXT
from triptych.systems.stable_diffusion.adapters.lora_updates import Update, fits, of_module
from triptych.systems.stable_diffusion.published.unet import diffusers_rules, ldm_rules
from triptych.systems.stable_diffusion.unet import LatentUNet
from triptych.weights.files.read import read_weights, write_safetensors
from triptych.weights.files.sniff import container
from triptych.weights.keymap import Rule, counterparts, rename, under
from triptych.weights.skeleton import skeleton

KOHYA = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
         "lora_te2_": "text_encoder_2"}  # fmt: skip
ROLES = {"A": "down", "B": "up"}
ENDINGS = (  # what stands behind a layer's name, and which of kohya, diffusers, PEFT it tells
    ("kohya", re.compile(r"\.lora_(down|up|mid)\.weight$")),
    ("PEFT", re.compile(r"\.lora_(A|B)(?:\.[\w-]+)?\.weight$")),
    ("diffusers", re.compile(r"\.lora(?:_linear_layer)?\.(down|up)\.weight$")),
    ("diffusers", re.compile(r"_lora\.(down|up)\.weight$")),
    ("", re.compile(r"\.(alpha)$")),
)
REFUSED = {  # parts of other methods: what they are
    "hada_": "LoHa, products of low-rank matrices",
    "lokr_": "LoKr, Kronecker products",
    "dora_scale": "DoRA, directions and magnitudes",
    "lora_magnitude_vector": "DoRA, directions and magnitudes",
    "oft_": "OFT, rotations",
    "on_input": "(IA)3, scales of activations",
    "diff": "whole differences",
}
STRANGERS = {
    "double_blocks": "FLUX",
    "single_transformer_blocks": "FLUX",
    "joint_blocks": "Stable Diffusion 3",
    "transformer.transformer_blocks": "Stable Diffusion 3 or FLUX",
    "lora_prior": "Stable Cascade",
}
CONTEXTS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL",
            1280: "the refiner of Stable Diffusion XL"}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A model that a file may change, and what its layers are called in files."""

    part: str
    """unet, text_encoder or text_encoder_2, as diffusers calls the parts of a pipeline."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of our weights."""
    layers: Mapping[str, tuple[str, ...]]
    """Published names of layers, each with our weights that it is made of."""
    exported: Mapping[str, str]
    """Our weights, each with the layer that diffusers calls so."""


def unet_target(model: LatentUNet) -> Target:
    """A U-Net, whose layers files call by diffusers' names or by LDM's."""
    config = model.config
    return _target("unet", model, [diffusers_rules(config), ldm_rules(config)])


def text_target(model: nn.Module, part: str = "text_encoder") -> Target:
    """A text tower of CLIP's (`models/clip.py: TextTransformer`), under transformers' names."""
    rules = [
        *under(TRANSFORMERS_TEXT, "text_model."),
        rename("text_projection.weight", "projection.weight"),
    ]
    return _target(part, model, [rules])


def _target(part: str, model: nn.Module, tables: Sequence[Sequence[Rule]]) -> Target:
    shapes = {name: tuple(x.shape) for name, x in model.named_parameters() if x.ndim > 1}
    layers: dict[str, tuple[str, ...]] = {}
    exported: dict[str, str] = {}
    for rules in tables:
        found = {
            name.removesuffix(".weight"): ours for name, ours in counterparts(shapes, rules).items()
        }
        exported = exported or {name: layer for layer, ours in found.items() for name in ours}
        layers |= found
    # kohya's names have no dots; diffusers once called the projections of both towers alike
    flat = {name.replace(".", "_"): ours for name, ours in layers.items()}
    old = {
        re.sub(r"self_attn\.(?:(\w)_proj|out_proj)$", _old, name): ours
        for name, ours in layers.items()
    }
    return Target(part, shapes, {**flat, **old, **layers}, exported)


def _old(match: re.Match[str]) -> str:
    return f"self_attn.to_{match[1]}" if match[1] else "self_attn.to_out.0"


@dataclass(frozen=True)
class Lora:
    """A LoRA file in terms of our models."""

    form: str
    """kohya, diffusers or PEFT."""
    updates: dict[str, dict[str, Update]]
    """By part, then by the weight of ours that it is for."""
    matched: tuple[str, ...]
    """Layers of the file that found their place."""
    unmatched: tuple[str, ...]
    """Layers of the file that no part has."""

    def __str__(self) -> str:
        found = [update for part in self.updates.values() for update in part.values()]
        ranks = sorted({update.rank for update in found})
        alphas = sorted({update.alpha for update in found})
        return (
            f"{self.form} LoRA of rank {_span(ranks)}, alpha {_span(alphas)}: "
            f"{len(self.matched)} layers matched, {len(self.unmatched)} unmatched"
        )


class Alpha(NamedTuple):
    """What a file says of its alphas beside its tensors."""

    value: float
    by_root: bool = False
    """Updates are divided by the square root of the rank (arXiv:2312.03732)."""


def read_lora(path: Path, targets: Sequence[Target]) -> Lora:
    """A LoRA file, or PEFT's folder of `adapter_model.safetensors` and `adapter_config.json`.

    Raises:
        ValueError: what is wrong with the file, or which family of models it is for.
    """
    folder = path if path.is_dir() else None
    if folder is not None:
        stems = ("adapter_model", "pytorch_lora_weights")
        names = [f"{stem}.{ending}" for ending in ("safetensors", "bin") for stem in stems]
        path = next((folder / name for name in names if (folder / name).is_file()), path)
        if path == folder:
            raise ValueError(f"{folder} holds no LoRA: there is no {' or '.join(names)}")
    tensors = read_weights(path)
    try:
        alphas = _declared(path)
        return parse_lora(tensors, targets, alphas)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_lora(
    tensors: Mapping[str, Tensor],
    targets: Sequence[Target],
    alphas: Mapping[str, Alpha] | None = None,
) -> Lora:
    """Tensors of a LoRA file as updates of our weights.

    A layer's alpha is its own, else the one in `alphas` of its part (or of "", any part), else its
    rank.

    Raises:
        ValueError: another method than LoRA, by its name; a layer without one of its halves; no
            layer that the targets have, or layers of other shapes: which family it is for.
    """
    form, layers = _layers(tensors)
    alphas = alphas or {}
    updates: dict[str, dict[str, Update]] = {}
    matched, unmatched = [], []
    for layer, halves in layers.items():
        if not {"down", "up"} <= halves.keys():
            raise ValueError(f"{layer} has only {' and '.join(halves)}: the file is not whole")
        place = _place(layer, targets)
        if place is None:
            unmatched.append(layer)
            continue
        target, ours = place
        whole = _update(halves, alphas.get(target.part) or alphas.get(""))
        rows = [target.shapes[name][0] for name in ours]
        if sum(rows) != len(whole.up):
            raise ValueError(_misfit(layer, whole.shape, target, ours, tensors))
        for name, up in zip(ours, whole.up.split(rows), strict=True):
            part = Update(whole.down, up, whole.alpha, whole.mid)
            if not fits(part, target.shapes[name]):
                raise ValueError(_misfit(layer, whole.shape, target, ours, tensors))
            if name in updates.setdefault(target.part, {}):
                raise ValueError(f"two layers of the file update {name}; the second is {layer}")
            updates[target.part][name] = part
        matched.append(layer)
    if not matched:
        parts = " or ".join(target.part for target in targets)
        raise ValueError(
            f"none of its {len(unmatched)} layers, such as {unmatched[0]}, is one of the {parts} "
            f"here: it is a LoRA of {_family(tensors) or 'another family of models'}"
        )
    return Lora(form, updates, tuple(matched), tuple(unmatched))


def export_lora(updates: Mapping[str, Update], target: Target) -> dict[str, Tensor]:
    """Updates of one part as a file of kohya's names, which diffusers and others read.

    Where a published layer is several of ours, its update is theirs side by side.
    """
    prefixes = {part: prefix for prefix, part in KOHYA.items() if prefix != "lora_te1_"}
    layers: dict[str, list[str]] = {}
    for name in updates:
        layers.setdefault(target.exported[name], []).append(name)
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        whole = _joined(updates, target, target.layers[layer])
        name = prefixes[target.part] + layer.replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = whole.down
        tensors[f"{name}.lora_up.weight"] = whole.up
        tensors[f"{name}.alpha"] = torch.tensor(whole.alpha)
        if whole.mid is not None:
            tensors[f"{name}.lora_mid.weight"] = whole.mid
    return tensors


def write_lora(unet: LatentUNet, path: Path) -> None:
    """The updates that `nn.lora.add` gave a U-Net and training filled, alone, in kohya's form.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was there before stays.
    """
    target = unet_target(skeleton(lambda: LatentUNet(unet.config)))
    write_safetensors(path, export_lora(of_module(unet), target), {"format": "pt"})


def _joined(updates: Mapping[str, Update], target: Target, ours: Sequence[str]) -> Update:
    """One update of a published layer that is several of ours."""
    if len(ours) == 1:
        return updates[ours[0]]
    found = [updates[name] for name in ours if name in updates]
    first = found[0]
    same = all(u.down is first.down or torch.equal(u.down, first.down) for u in found)
    if len(found) == len(ours) and same and len({u.alpha for u in found}) == 1:
        return Update(first.down, torch.cat([u.up for u in found]), first.alpha, first.mid)
    rank = sum(update.rank for update in found)
    rows, column = [], 0
    for name in ours:
        row = first.up.new_zeros(target.shapes[name][0], rank)
        if name in updates:
            one = updates[name]
            row[:, column : column + one.rank] = one.up * (one.alpha / one.rank)
            column += one.rank
        rows.append(row)
    return Update(torch.cat([update.down for update in found]), torch.cat(rows), float(rank))


def _layers(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, dict[str, Tensor]]]:
    """Whose form it is, and the halves of every layer by its name there."""
    layers: dict[str, dict[str, Tensor]] = {}
    forms = []
    for name, tensor in tensors.items():
        form, ending = _ending(name)
        layer = name[: ending.start()].replace(".processor.", ".")
        layer = re.sub(r"\.to_out$", ".to_out.0", layer)  # of diffusers' first form
        layers.setdefault(layer, {})[ROLES.get(ending[1], ending[1])] = tensor
        forms += [form] if form else []
    if not forms:
        raise ValueError("it holds no LoRA: no name ends like lora_down.weight or lora_A.weight")
    return max(set(forms), key=forms.count), layers


def _ending(name: str) -> tuple[str, re.Match[str]]:
    """Whose form a name has, and what stands behind the layer's."""
    for form, pattern in ENDINGS:
        if match := pattern.search(name):
            return form, match
    for part, method in REFUSED.items():
        if f".{part}" in name:
            raise ValueError(f"{name} is of {method}: only low-rank updates (LoRA, LoCon) load")
    raise ValueError(f"{name} is no part of a LoRA")


def _place(layer: str, targets: Iterable[Target]) -> tuple[Target, tuple[str, ...]] | None:
    """The part and our weights that a layer's name in a file stands for."""
    layer = layer.removeprefix("base_model.model.")
    wanted = ""
    for prefix, part in (*KOHYA.items(), *((f"{p}.", p) for p in KOHYA.values())):
        if layer.startswith(prefix):
            wanted, layer = part, layer.removeprefix(prefix)
            break
    for target in targets:
        if wanted in ("", target.part) and layer in target.layers:
            return target, target.layers[layer]
    return None


def _update(halves: Mapping[str, Tensor], declared: Alpha | None) -> Update:
    down, up = halves["down"], halves["up"]
    if down.ndim < 2 or up.ndim < 2 or not len(down) or up[0].numel() != len(down):
        raise ValueError(f"halves of {tuple(up.shape)} and {tuple(down.shape)} do not multiply")
    rank = len(down)
    if "alpha" in halves:
        alpha = float(halves["alpha"])
    elif declared is not None:
        alpha = declared.value * (rank**0.5 if declared.by_root else 1)
    else:
        alpha = float(rank)
    return Update(down, up, alpha, halves.get("mid"))


def _declared(path: Path) -> dict[str, Alpha]:
    """Alphas that stand in a safetensors header (diffusers) or in PEFT's `adapter_config.json`."""
    settings: dict[str, Any] = {}
    beside = path.with_name("adapter_config.json")
    if beside.is_file():
        stored = read_json(beside)
        settings = {f".{name}": value for name, value in stored.items()}
    elif container(path) == "safetensors":
        with safe_open(path, "pt") as file:
            stored = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
        try:
            settings = json.loads(stored)
        except ValueError as error:
            raise ValueError("its lora_adapter_metadata is no JSON. Fetch it again") from error
    if not isinstance(settings, dict):
        raise ValueError("what it says of its LoRA is no JSON object. Fetch it again")
    alphas: dict[str, Alpha] = {}
    for name, value in settings.items():
        part, _, field = name.rpartition(".")
        if field in ("alpha_pattern", "use_dora", "layer_replication") and value:
            raise ValueError(f"its {field} is {value!r}: only plain LoRA loads")
        if field == "lora_alpha" and isinstance(value, int | float):
            root = bool(settings.get(f"{part}.use_rslora", False))
            alphas[part] = Alpha(float(value), root)
    return alphas


def _misfit(
    layer: str,
    shape: tuple[int, ...],
    target: Target,
    ours: Sequence[str],
    tensors: Mapping[str, Tensor],
) -> str:
    wanted = target.shapes[ours[0]]
    family = _family(tensors)
    of = f"it is a LoRA of {family}" if family else "it is a LoRA of another family of models"
    return (
        f"{layer} updates a layer of shape {shape}, which here is "
        f"{(len(ours) * wanted[0], *wanted[1:])}: {of}"
    )


def _family(tensors: Mapping[str, Tensor]) -> str:
    """Whom a LoRA is for, by its names or by the width of the text that its U-Net reads."""
    for name, tensor in tensors.items():
        for part, family in STRANGERS.items():
            if part in name:
                return family
        if re.search(r"attn2[._](processor\.)?to_k[._]\w*(lora\.|_)?(down|A)\b", name):
            return CONTEXTS.get(tensor.shape[1], "")
    return ""


def _span(values: Sequence[float]) -> str:
    shown = [f"{value:g}" for value in values]
    return shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}"

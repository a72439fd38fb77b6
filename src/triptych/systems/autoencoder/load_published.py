"""Autoencoders that are published by themselves: KL ones, and the tiny ones of the TAESD family.

A tiny one comes as two files, encoder and decoder, as one with both, or as a folder of diffusers. A
KL one has a `config.json`, in a folder or beside its file, since its shapes do not tell the scale
of its latents.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.config import read_json
from triptych.systems.autoencoder import published as published_autoencoder
from triptych.systems.autoencoder import tiny_published
from triptych.systems.autoencoder.model import Autoencoder
from triptych.systems.autoencoder.tiny_model import TinyAutoencoder, TinyAutoencoderConfig
from triptych.weights.files.read import read_cast, read_header
from triptych.weights.keymap import convert, fill
from triptych.weights.layouts import Layout
from triptych.weights.loaded import AS_STORED, Published, Reading
from triptych.weights.skeleton import skeleton
from triptych.weights.variants import chosen

VAE = "first_stage_model."
ENDS = ("encoder", "decoder")
FIRST = {"encoder": "0.weight", "decoder": "1.weight"}
"""The first layer of each half of a tiny autoencoder; the decoder's is behind a bend."""


def recognise(found: Layout) -> bool:
    """Whether a checkpoint is an autoencoder alone."""
    if found.form == "diffusers":
        return "Pipeline" not in found.declared
    return found.form == "file" and is_autoencoder(read_header(found.path).shapes)


def is_autoencoder(names: Iterable[str]) -> bool:
    """Whether a file of these tensors is an autoencoder and nothing else."""
    own = set(names)
    return _is_half(own) or (all(
        name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", VAE, "loss."))
        for name in own
    ) and any("conv_in.weight" in name or ".layers.0." in name for name in own))  # fmt: skip


def load_published(
    found: Layout, dtype: torch.dtype | None = None, reading: Reading = AS_STORED
) -> Published:
    """A checkpoint that `recognise` accepts; see `load_autoencoder`."""
    return load_autoencoder(found.path, dtype)


def load_autoencoder(path: Path, dtype: torch.dtype | None = None) -> Published:
    """A folder of diffusers with an `AutoencoderKL` or `AutoencoderTiny`, or a file of either.

    Weights come in `dtype`; None keeps the type that each is stored in.

    Raises:
        ValueError: another kind of model; the other half of a tiny autoencoder, or the
            configuration of a KL one, is missing; or tensors do not fit.
    """
    try:
        if path.is_dir():
            return _of_diffusers(read_json(path / "config.json"), chosen(path)[0], dtype)
        names = set(read_header(path).shapes)
        if _is_half(names):
            return _of_halves(path, names, dtype)
        if any(".layers." in name for name in names):
            return _of_both(path, dtype)
        stored = path.parent / "config.json"
        notes = read_json(stored) if stored.is_file() else {}
        if not isinstance(notes, Mapping) or "_class_name" not in notes:
            raise ValueError(
                "an autoencoder's file does not say the scale of its latents (0.18215 in Stable "
                "Diffusion 1.x and 2.x, 0.13025 in XL): put the config.json of the publisher's "
                "folder `vae` beside it"
            )
        return _of_diffusers(notes, path, dtype)
    except ValueError as error:
        about = "" if str(error).startswith(f"{path}") else f"{path}: "
        raise ValueError(f"{about}{error}") from error


def _of_diffusers(stored: Mapping[str, Any], file: Path, dtype: torch.dtype | None) -> Published:
    state = read_cast(file, dtype)
    if stored.get("_class_name") == "AutoencoderTiny":
        tiny = tiny_published.from_diffusers(stored)
        return _tiny(tiny, convert(state, tiny_published.diffusers_rules(tiny)))
    config = published_autoencoder.from_diffusers(stored)
    state = {
        name.removeprefix(VAE): x for name, x in published_autoencoder.without_loss(state).items()
    }
    state = published_autoencoder.without_loss(state)
    ldm = any(name.startswith("encoder.down.") for name in state)
    rules = (
        published_autoencoder.ldm_rules(len(config.widths))
        if ldm
        else published_autoencoder.diffusers_rules(state)
    )
    model = skeleton(lambda: Autoencoder(config))
    fill(model, convert(state, rules))
    return Published("autoencoder", config, model)


def _of_both(path: Path, dtype: torch.dtype | None) -> Published:
    """One file under diffusers' names, which tell the configuration."""
    state = read_cast(path, dtype)
    prefix = "encoder.layers."
    first = {n.removeprefix(prefix): x for n, x in state.items() if n.startswith(prefix)}
    config = tiny_published.from_taesd(first)
    return _tiny(config, convert(state, tiny_published.diffusers_rules(config)))


def _of_halves(path: Path, names: set[str], dtype: torch.dtype | None) -> Published:
    """TAESD's own two files, of which one was given."""
    given = "encoder" if FIRST["encoder"] in names else "decoder"
    other = ENDS[1 - ENDS.index(given)]
    if given not in path.name:
        raise ValueError(
            f"is the {given} of a tiny autoencoder: call it {path.stem}_{given}{path.suffix}, and "
            f"its other half {path.stem}_{other}{path.suffix}"
        )
    partner = path.with_name(path.name.replace(given, other))
    if not partner.is_file():
        raise ValueError(
            f"is the {given} of a tiny autoencoder, and {partner.name} is not beside it: fetch it "
            "from where this one is"
        )
    paths = {given: path, other: partner}
    encoder, decoder = (read_cast(paths[end], dtype) for end in ENDS)
    config = tiny_published.from_taesd(encoder)
    ours: dict[str, Tensor] = convert(encoder, tiny_published.encoder_rules(config))
    return _tiny(config, ours | convert(decoder, tiny_published.decoder_rules(config)))


def _tiny(config: TinyAutoencoderConfig, state: dict[str, Tensor]) -> Published:
    model = skeleton(lambda: TinyAutoencoder(config))
    fill(model, state)
    return Published("tiny-autoencoder", config, model)


def _is_half(names: Iterable[str]) -> bool:
    own = set(names)
    blocks = any(name.endswith(".conv.0.weight") and name[:1].isdigit() for name in own)
    return blocks and all(name[:1].isdigit() for name in own)

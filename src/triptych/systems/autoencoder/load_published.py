"""Load a published autoencoder: KL, or tiny (TAESD).

A tiny one is two files, encoder and decoder, one file with both, or a diffusers folder. A KL one
needs a `config.json`, in its folder or beside its file, because its tensors do not show the scale
of its latents.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from triptych.config import errors_about, read_json, read_object, settings_of_others
from triptych.systems.autoencoder import published as published_autoencoder
from triptych.systems.autoencoder import tiny_published
from triptych.systems.autoencoder.model import Autoencoder, AutoencoderConfig
from triptych.systems.autoencoder.tiny_model import TinyAutoencoder, TinyAutoencoderConfig
from triptych.weights.files.weight_file import WeightFile, open_weights
from triptych.weights.keymap import convert, fill
from triptych.weights.layouts import Layout
from triptych.weights.loaded import AS_STORED, Published, Reading
from triptych.weights.skeleton import skeleton
from triptych.weights.variants import choose_variant

VAE = "first_stage_model."
ENDS = ("encoder", "decoder")


def recognise(layout: Layout) -> bool:
    """Whether a checkpoint is an autoencoder and nothing else."""
    if layout.form == "diffusers":
        return layout.config is not None and layout.config.name == "config.json"
    if layout.form != "file":
        return False
    names = set(layout.open().header.shapes)
    if _is_taesd_half(names):
        return True
    prefixes = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", VAE, "loss.")
    return all(name.startswith(prefixes) for name in names) and any(
        "conv_in.weight" in name or ".layers.0." in name for name in names
    )


def load_published(
    layout: Layout, dtype: torch.dtype | None = None, reading: Reading = AS_STORED
) -> Published:
    """Load a diffusers folder with an `AutoencoderKL` or `AutoencoderTiny`, or a file of either.

    Weights are cast to `dtype`; None keeps the dtype in which each is stored.

    Raises:
        ValueError: the model is of another kind; the other half of a tiny autoencoder, or the
            configuration of a KL one, is missing; or tensors do not fit.
    """
    file, path = layout.file, layout.path
    with errors_about(path):
        if file is None:
            weights = open_weights(choose_variant(path)[0])
            return _from_config(path / "config.json", weights, dtype)
        names = set(file.header.shapes)
        if _is_taesd_half(names):
            return _from_taesd_halves(file, names, dtype)
        if any(".layers." in name for name in names):
            return _from_taesd_file(file, dtype)
        beside = path.parent / "config.json"
        stored = read_json(beside) if beside.is_file() else {}
        if not isinstance(stored, dict) or "_class_name" not in stored:
            raise ValueError(
                "the file of an autoencoder does not contain the scale of its latents (0.18215 in "
                "Stable Diffusion 1.x and 2.x, 0.13025 in XL): put the config.json of the "
                "publisher's folder `vae` beside it"
            )
        return _from_config(beside, file, dtype)


def read_config(layout: Layout) -> tuple[str, AutoencoderConfig | TinyAutoencoderConfig]:
    """The kind of a diffusers folder and its configuration.

    Raises:
        BadFile: the configuration is damaged, or of another model.
    """
    config = _parse(layout.path / "config.json")
    tiny = isinstance(config, TinyAutoencoderConfig)
    return ("tiny-autoencoder" if tiny else "autoencoder"), config


def _parse(path: Path) -> AutoencoderConfig | TinyAutoencoderConfig:
    with settings_of_others(path):
        stored = read_object(path)
        if stored.get("_class_name") == "AutoencoderTiny":
            return tiny_published.from_diffusers(stored)
        return published_autoencoder.from_diffusers(stored)


def _from_config(path: Path, file: WeightFile, dtype: torch.dtype | None) -> Published:
    config = _parse(path)
    if isinstance(config, TinyAutoencoderConfig):
        return _build_tiny(
            config, lambda: convert(file.read(dtype), tiny_published.diffusers_rules(config))
        )
    model = skeleton(lambda: Autoencoder(config))
    state = file.read(dtype)
    state = {name.removeprefix(VAE): tensor for name, tensor in state.items()}
    state = published_autoencoder.without_loss(state)
    ldm = any(name.startswith("encoder.down.") for name in state)
    rules = (
        published_autoencoder.ldm_rules(len(config.widths))
        if ldm
        else published_autoencoder.diffusers_rules(state)
    )
    fill(model, convert(state, rules))
    return Published("autoencoder", config, model)


def _from_taesd_file(file: WeightFile, dtype: torch.dtype | None) -> Published:
    """One file with diffusers' names; the shapes of its tensors give the configuration."""
    state = file.read(dtype)
    prefix = "encoder.layers."
    first = {n.removeprefix(prefix): x for n, x in state.items() if n.startswith(prefix)}
    config = tiny_published.from_taesd(first)
    return _build_tiny(config, lambda: convert(state, tiny_published.diffusers_rules(config)))


def _from_taesd_halves(file: WeightFile, names: set[str], dtype: torch.dtype | None) -> Published:
    """TAESD's two files; `file` is one of them."""
    path = file.path
    half = "encoder" if "0.weight" in names else "decoder"  # whose layer 0 is a clamp
    other = ENDS[1 - ENDS.index(half)]
    if half not in path.name:
        raise ValueError(
            f"is the {half} of a tiny autoencoder: rename it to {path.stem}_{half}{path.suffix}, "
            f"and its other half to {path.stem}_{other}{path.suffix}"
        )
    partner = path.with_name(path.name.replace(half, other))
    if not partner.is_file():
        raise ValueError(
            f"is the {half} of a tiny autoencoder, and {partner.name} is not beside it: download "
            "it from where you got this one"
        )
    halves = {half: file, other: open_weights(partner)}
    encoder, decoder = (halves[end].read(dtype) for end in ENDS)
    config = tiny_published.from_taesd(encoder)

    def read() -> dict[str, Tensor]:
        ours: dict[str, Tensor] = convert(encoder, tiny_published.encoder_rules(config))
        return ours | convert(decoder, tiny_published.decoder_rules(config))

    return _build_tiny(config, read)


def _build_tiny(config: TinyAutoencoderConfig, read: Callable[[], dict[str, Tensor]]) -> Published:
    """The rules have one for each block, so they are made after the model, which is bounded."""
    model = skeleton(lambda: TinyAutoencoder(config))
    fill(model, read())
    return Published("tiny-autoencoder", config, model)


def _is_taesd_half(names: set[str]) -> bool:
    numbered = [name for name in names if name[:1].isdigit()]
    return len(numbered) == len(names) and any(n.endswith(".conv.0.weight") for n in numbered)

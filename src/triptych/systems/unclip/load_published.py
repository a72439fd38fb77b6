"""Load Karlo: a folder of diffusers, its form for image variations, or Karlo's own checkpoints.

The folder of diffusers has a `model_index.json`; Karlo's own files are read in `load_karlo.py`.
Nothing is guessed, executed or downloaded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.config import errors_about, errors_in, read_object, settings_of_others
from triptych.systems.clip.configs import read_vision
from triptych.systems.clip.model import TextEncoderConfig
from triptych.systems.stable_diffusion.published import text_encoder
from triptych.systems.stable_diffusion.published.tokenizers import folder_tokenizers
from triptych.systems.two_towers.load_published import read_clip_transform
from triptych.systems.unclip import published
from triptych.systems.unclip.load_karlo import load_karlo
from triptych.systems.unclip.model import Unclip, UnclipConfig
from triptych.weights.files.weight_file import open_weights
from triptych.weights.keymap import convert, fill
from triptych.weights.layouts import Layout
from triptych.weights.loaded import AS_STORED, Published, Reading
from triptych.weights.skeleton import skeleton
from triptych.weights.variants import choose_variant

Json = Mapping[str, Any]

PIPELINES = {"UnCLIPPipeline": "text", "UnCLIPImageVariationPipeline": "pictures"}
"""What the prompts of diffusers' pipelines are."""
NETWORKS = ("decoder", "text_proj", "text_encoder", "super_res_first", "super_res_last")
SCHEDULERS = ("decoder_scheduler", "super_res_scheduler")


def recognise(layout: Layout) -> bool:
    """Whether a checkpoint is a Karlo."""
    return layout.declared in PIPELINES or layout.form == "karlo"


def load_published(
    layout: Layout, dtype: torch.dtype | None = None, reading: Reading = AS_STORED
) -> Published:
    """Load a folder of diffusers, or of Karlo's own checkpoints.

    Weights are cast to `dtype`; None keeps the dtype in which each is stored.

    Raises:
        ValueError: a part is missing, a field of a configuration is not supported, or tensors do
            not fit.
    """
    path = layout.path
    if layout.form == "karlo":
        return load_karlo(path, dtype)
    with errors_about(path):
        if reading.weights != "raw" or reading.predicts is not None:
            raise ValueError("Karlo has no averaged weights and says what its networks predict")
        variation = PIPELINES[layout.declared] == "pictures"
        names = (*NETWORKS, "image_encoder" if variation else "prior")
        configs = {name: _read_part(path, name, "config.json") for name in names}
        schedulers = SCHEDULERS if variation else (*SCHEDULERS, "prior_scheduler")
        configs |= {name: _read_part(path, name, "scheduler_config.json") for name in schedulers}
        config = parse_configs(configs)
        tower = TextEncoderConfig(config.text, config.dim)
        (tokenizer,) = folder_tokenizers(path, {"tokenizer": tower})
        transform = None
        if variation:
            stored = _read_part(path, "feature_extractor", "preprocessor_config.json")
            with settings_of_others(path / "feature_extractor"):
                assert config.image is not None
                transform = read_clip_transform(stored, config.image.size)
        model = skeleton(lambda: Unclip(config))
        state: dict[str, Tensor] = {}
        for name in names:
            file, _ = choose_variant(path / name, reading.variant)
            with errors_about(file):
                state |= _convert_part(name, open_weights(file).read(dtype), tower)
        fill(model, state)
    return Published("unclip", config, model, tokenizer, transform)


def parse_configs(configs: Mapping[str, Json]) -> UnclipConfig:
    """Our configuration from those of the parts of a folder, by their names in it.

    Raises:
        ValueError: a field is not supported, or the parts do not fit together.
    """
    with errors_in("text_encoder"):
        tower = text_encoder.from_transformers(configs["text_encoder"])
        if tower.dim is None:
            raise ValueError("it has no projection, so that texts have no embeddings")
    with errors_in("decoder"):
        decoder = published.read_decoder(
            configs["decoder"], configs["text_proj"], configs["decoder_scheduler"]
        )
    with errors_in("super_res"):
        upsampler = published.read_upsampler(
            configs["super_res_first"],
            configs["super_res_last"],
            configs["super_res_scheduler"],
            decoder.size,
        )
    prior = image = None
    if "prior" in configs:
        with errors_in("prior"):
            prior = published.read_prior(configs["prior"], configs["prior_scheduler"])
    if "image_encoder" in configs:
        with errors_in("image_encoder"):
            image = read_vision(configs["image_encoder"])
            dim = configs["image_encoder"].get("projection_dim", 512)
            if dim != tower.dim:
                raise ValueError(f"its embeddings have {dim} numbers, those of texts {tower.dim}")
    return UnclipConfig(tower.dim, tower.text, image, False, prior, None, 0, decoder, (upsampler,))


def _convert_part(
    name: str, state: dict[str, Tensor], tower: TextEncoderConfig
) -> dict[str, Tensor]:
    """The tensors of one part of a folder under our names in the whole model."""
    tables = {
        "prior": (published.PRIOR, "prior."),
        "decoder": (published.DECODER, "decoder.unet."),
        "text_proj": (published.PROJECTIONS, "decoder."),
        "text_encoder": (text_encoder.transformers_rules(tower, state), "text."),
        "image_encoder": (published.VISION, "image."),
        "super_res_first": (published.UPSAMPLER, "upsamplers.0.unet."),
        "super_res_last": (published.UPSAMPLER, "upsamplers.0.last."),
    }
    rules, prefix = tables[name]
    return {prefix + key: tensor for key, tensor in convert(state, rules).items()}


def _read_part(path: Path, name: str, file: str) -> Json:
    if not (path / name / file).is_file():
        raise ValueError(f"{name}/{file} is missing: download it from where you got the others")
    return read_object(path / name / file)

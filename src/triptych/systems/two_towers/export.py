"""A CLIP or SigLIP written in the layout of transformers or open_clip, or as a run folder."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.config import write_json
from triptych.fields import to_json
from triptych.systems.clip import configs as clip_configs
from triptych.systems.clip import published as clip
from triptych.systems.clip.model import ClipConfig
from triptych.systems.siglip import published as siglip
from triptych.text.tokenizer import Tokenizer
from triptych.vision.transforms import ImageTransform, PatchTransform
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.keymap import export
from triptych.weights.loaded import Card, Loaded, Writer

PILLOW = {"bilinear": 2, "bicubic": 3}  # the filters' numbers, which transformers stores


def write_run(loaded: Loaded, folder: Path) -> tuple[str, ...]:
    if isinstance(loaded.transform, PatchTransform):
        raise ValueError("a model that reads pictures of native shape has no run folder yet")
    tokens = loaded.tokenizer.config if loaded.tokenizer else None
    card = Card(
        loaded.card.model,
        to_json(loaded.config),
        classes=loaded.card.classes,
        tokenizer=tokens,
        transform=loaded.transform,
        triptych=version("triptych"),
    )
    write_json(folder / "config.json", to_json(card))
    write_safetensors(folder / "model.safetensors", _state(loaded))
    return _save_vocabulary(loaded, folder)


def write_transformers(loaded: Loaded, folder: Path) -> tuple[str, ...]:
    settings = loaded.config
    if isinstance(settings, ClipConfig):
        stored, rules = clip_configs.to_transformers(settings), clip.TRANSFORMERS
    else:
        stored, rules = siglip.to_transformers(settings), siglip.TRANSFORMERS
    write_json(folder / "config.json", stored)
    # the reader of the other library asks which framework the tensors are of
    tensors = export(_state(loaded), rules)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    write_json(folder / "preprocessor_config.json", _processor(loaded))
    return _write_tokenizer(loaded, folder)


def write_open_clip(loaded: Loaded, folder: Path) -> tuple[str, ...]:
    settings, transform = loaded.config, loaded.transform
    if isinstance(settings, ClipConfig):
        model = clip_configs.to_open_clip(settings)
        rules = clip.openai_rules(settings.resnet is not None)
    else:
        model = siglip.to_open_clip(settings)
        rules = siglip.open_clip_rules(settings.image.naflex)
    preprocess: dict[str, Any] = {}
    if transform is not None:
        preprocess = {"mean": list(transform.mean), "std": list(transform.std)}
        preprocess |= {"interpolation": transform.interpolation}
    if isinstance(transform, ImageTransform):
        preprocess |= {"size": [transform.size] * 2, "resize_mode": transform.resize}
    if loaded.tokenizer is not None and not loaded.tokenizer.config.canonical:
        model["text_cfg"].pop("tokenizer_kwargs", None)
    if loaded.tokenizer is not None:
        # a local folder as its tokenizer: open_clip reads tokenizer.json beside the configuration
        model["text_cfg"] |= {"hf_tokenizer_name": "."} if not _is_clips(loaded.tokenizer) else {}
    write_json(folder / "open_clip_config.json", {"model_cfg": model, "preprocess_cfg": preprocess})
    tensors = export(_state(loaded), rules)
    write_safetensors(folder / "open_clip_model.safetensors", tensors, {"format": "pt"})
    return _write_tokenizer(loaded, folder)


def _save_vocabulary(loaded: Loaded, folder: Path) -> tuple[str, ...]:
    if loaded.tokenizer is not None:
        loaded.tokenizer.save(folder)
    return ()


def _write_tokenizer(loaded: Loaded, folder: Path) -> tuple[str, ...]:
    if loaded.tokenizer is not None:
        write_json(folder / "tokenizer_config.json", tokenizer_config(loaded.tokenizer))
    return _save_vocabulary(loaded, folder)


def _is_clips(tokenizer: Tokenizer) -> bool:
    """The published vocabulary, which open_clip has built in."""
    return tokenizer.vocabulary == 49408 and tokenizer.config.length == 77


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """The settings that transformers reads beside `tokenizer.json`."""
    config = tokenizer.config
    stored: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.length,
        "pad_token": tokenizer.name(config.pad),
        "padding_side": "right",
    }
    if config.start is not None:
        stored["bos_token"] = tokenizer.name(config.start)
    if config.end is not None:
        stored["eos_token"] = tokenizer.name(config.end)
        stored["unk_token"] = tokenizer.name(config.end)
    return stored


def _processor(loaded: Loaded) -> dict[str, Any]:
    transform = loaded.transform
    assert transform is not None
    stored: dict[str, Any] = {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "do_convert_rgb": True,
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
        "resample": PILLOW[transform.interpolation],
        "rescale_factor": 1 / 255,
    }
    if isinstance(transform, PatchTransform):
        return stored | {
            "image_processor_type": "Siglip2ImageProcessor",
            "patch_size": transform.patch,
            "max_num_patches": transform.patches,
        }
    side = transform.size
    if transform.resize == "squash":
        size = {"height": side, "width": side}
        return stored | {"image_processor_type": "SiglipImageProcessor", "size": size}
    return stored | {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
    }


def _state(loaded: Loaded) -> dict[str, Tensor]:
    return {name: x.to(torch.float32) if x.is_floating_point() else x
            for name, x in loaded.model.state_dict().items()}  # fmt: skip


WRITERS: dict[str, Writer] = {
    "transformers": write_transformers,
    "open_clip": write_open_clip,
    "triptych": write_run,
}

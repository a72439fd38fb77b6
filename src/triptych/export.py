"""What is loaded here, written in the layout of another library, so that it loads there.

A folder appears whole or not at all: it is written beside its place and renamed.
"""

from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from triptych.atomic import replace_folder
from triptych.config import to_json, write_json
from triptych.loading import load
from triptych.systems.clip import configs as clip_configs
from triptych.systems.clip import published as clip
from triptych.systems.clip.model import ClipConfig
from triptych.systems.siglip import published as siglip
from triptych.systems.siglip.model import SiglipConfig
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.systems.stable_diffusion.published.folder.write import write_diffusers
from triptych.systems.stable_diffusion.published.load import AS_STORED, Reading
from triptych.systems.stable_diffusion.published.single_file.write import write_single_file
from triptych.systems.stable_diffusion.published.tokenizers import NAMES
from triptych.text.tokenizer import Tokenizer
from triptych.vision.transforms import ImageTransform, PatchTransform
from triptych.weights.files.read import write_safetensors
from triptych.weights.keymap import export
from triptych.weights.loaded import Card, Loaded

Target = Literal["transformers", "open_clip", "diffusers", "single-file", "triptych"]
PILLOW = {"bilinear": 2, "bicubic": 3}  # the filters' numbers, which transformers stores


def convert_checkpoint(
    source: str, dest: Path, to: Target, reading: Reading = AS_STORED
) -> tuple[str, ...]:
    """Write a CLIP, a SigLIP or a Stable Diffusion, trained here or published, in another layout.

    Stable Diffusion keeps the type of its weights; the others become float32. Returns what someone
    should know of the conversion.

    Raises:
        ValueError: the source does not load, or the other library has no such architecture.
        OSError: the disk is full or the folder cannot be written; what was there before stays.
    """
    loaded = load(source, dtype="stored", reading=reading)
    kind = loaded.card.model
    known = WRITERS.get(kind, {})
    if to == "single-file" and kind == "stable-diffusion":
        return (*loaded.notes, *_single_file(loaded, dest))
    if to not in known:
        forms = f"converts to {', '.join(known)}" if known else "does not convert"
        raise ValueError(f"{source} is a {kind}, which {forms}: not to {to}")
    with replace_folder(dest) as folder:  # the caller has asked whether it may be replaced
        notes = known[to](loaded, folder)
    return (*loaded.notes, *notes)


def _single_file(loaded: Loaded, path: Path) -> tuple[str, ...]:
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} should end in .safetensors: a single file is one")
    notes = write_single_file(_whole(loaded), path)
    if not any((path.parent / name).exists() for name in NAMES):
        loaded.tokenizers[0].save(path.parent)
        notes = (*notes, "tokenizer.json beside it is its vocabulary, which such files do not hold")
    return notes


def _diffusers(loaded: Loaded, folder: Path) -> tuple[str, ...]:
    return write_diffusers(_whole(loaded), loaded.tokenizers, folder)


def _text_to_image(loaded: Loaded, folder: Path) -> tuple[str, ...]:
    """A run folder of a text-to-image model."""
    first = loaded.tokenizers[0]
    if any(other.pairs() != first.pairs() for other in loaded.tokenizers):
        raise ValueError("its text towers have different vocabularies; a run folder has one")
    write_json(folder / "config.json", to_json(replace(loaded.card, triptych=version("triptych"))))
    write_safetensors(folder / "model.safetensors", loaded.model.state_dict())
    first.save(folder)
    return ()


def _whole(loaded: Loaded) -> StableDiffusion:
    assert isinstance(loaded.model, StableDiffusion)
    return loaded.model


def _triptych(loaded: Loaded, folder: Path) -> tuple[str, ...]:
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
    return _with_vocabulary(loaded, folder)


def _transformers(loaded: Loaded, folder: Path) -> tuple[str, ...]:
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
    if loaded.tokenizer is not None:
        write_json(folder / "tokenizer_config.json", tokenizer_config(loaded.tokenizer, settings))
    return _with_vocabulary(loaded, folder)


def _open_clip(loaded: Loaded, folder: Path) -> tuple[str, ...]:
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
    if loaded.tokenizer is not None:
        # a local folder as its tokenizer: open_clip reads tokenizer.json beside the configuration
        model["text_cfg"] |= {"hf_tokenizer_name": "."} if not _is_clips(loaded.tokenizer) else {}
    write_json(folder / "open_clip_config.json", {"model_cfg": model, "preprocess_cfg": preprocess})
    tensors = export(_state(loaded), rules)
    write_safetensors(folder / "open_clip_model.safetensors", tensors, {"format": "pt"})
    if loaded.tokenizer is not None:
        write_json(folder / "tokenizer_config.json", tokenizer_config(loaded.tokenizer, settings))
    return _with_vocabulary(loaded, folder)


def _with_vocabulary(loaded: Loaded, folder: Path) -> tuple[str, ...]:
    if loaded.tokenizer is not None:
        loaded.tokenizer.save(folder)
    return ()


Writer = Callable[[Loaded, Path], tuple[str, ...]]
TOWERS: dict[str, Writer] = {
    "transformers": _transformers,
    "open_clip": _open_clip,
    "triptych": _triptych,
}
WRITERS: dict[str, dict[str, Writer]] = {
    "clip": TOWERS,
    "siglip": TOWERS,
    "stable-diffusion": {"diffusers": _diffusers, "triptych": _text_to_image},
}


def _is_clips(tokenizer: Tokenizer) -> bool:
    """The published vocabulary, which open_clip has built in."""
    return tokenizer.vocabulary == 49408 and tokenizer.config.length == 77


def tokenizer_config(tokenizer: Tokenizer, settings: ClipConfig | SiglipConfig) -> dict[str, Any]:
    """What transformers needs to know beside `tokenizer.json`."""
    around, backend = tokenizer.config, tokenizer
    stored: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": around.length,
        "pad_token": backend.name(around.pad),
        "padding_side": "right",
    }
    if around.start is not None:
        stored["bos_token"] = backend.name(around.start)
    if around.end is not None:
        stored["eos_token"] = backend.name(around.end)
        stored["unk_token"] = backend.name(around.end)
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

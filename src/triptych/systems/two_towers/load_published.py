"""Published CLIP and SigLIP checkpoints, in the layouts of four libraries.

A checkpoint is a configuration, tensors, a tokenizer and a transform. What a layout leaves out is
never guessed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triptych.config import errors_about, read_object, settings_of_others
from triptych.systems.clip import configs as clip_configs
from triptych.systems.clip import published as clip
from triptych.systems.clip.model import Clip, ClipConfig
from triptych.systems.siglip import big_vision
from triptych.systems.siglip import published as siglip
from triptych.systems.siglip.model import Siglip, SiglipConfig
from triptych.text.tokenizer import (
    Tokenizer,
    TokenizerConfig,
    clip_tokenizer,
    open_tokenizer,
    siglip_tokenizer,
)
from triptych.vision.transforms import CLIP_MEAN, CLIP_STD, HALF, ImageTransform, PatchTransform
from triptych.weights.keymap import Rule, convert, fill
from triptych.weights.layouts import Layout
from triptych.weights.loaded import AS_STORED, Published, Reading
from triptych.weights.skeleton import skeleton

GEMMA_VOCABULARY = 256_000
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which transformers stores


class Checkpoint(NamedTuple):
    """A configuration, the transform of pictures, and how to read tensors under our names."""

    config: ClipConfig | SiglipConfig
    transform: ImageTransform | PatchTransform
    read: Callable[[], dict[str, Tensor]]


def recognise(layout: Layout) -> bool:
    """Whether a checkpoint has a layout of CLIP or SigLIP."""
    return layout.form in READERS


def load_published(
    layout: Layout, dtype: torch.dtype | None = None, reading: Reading = AS_STORED
) -> Published:
    """A folder of transformers or open_clip, an archive of OpenAI's or an `.npz` of big_vision's.

    Nothing in a file is executed. Every tensor is used, and none is missing.

    Raises:
        ValueError: the path is something else, or tensors do not fit.
    """
    with errors_about(layout.path):
        with settings_of_others(layout.config or layout.path):
            settings, transform, read = READERS[layout.form](layout)
        model = skeleton(
            lambda: Clip(settings) if isinstance(settings, ClipConfig) else Siglip(settings)
        )
        fill(model, read())
        tokenizer = _open_tokenizer(layout, settings)
    return Published(_kind(settings), settings, model, tokenizer, transform)


def read_config(layout: Layout) -> tuple[str, ClipConfig | SiglipConfig]:
    """The kind of a checkpoint and its configuration.

    Raises:
        BadFile: the configuration is damaged, or one that is not supported.
    """
    with settings_of_others(layout.config or layout.path):
        settings = READERS[layout.form](layout).config
    return _kind(settings), settings


def _kind(settings: ClipConfig | SiglipConfig) -> str:
    return "clip" if isinstance(settings, ClipConfig) else "siglip"


def _read_transformers(layout: Layout) -> Checkpoint:
    stored = _json(layout.config)
    kind = stored.get("model_type")
    if kind not in ("clip", "siglip", "siglip2"):
        raise ValueError(f"its model_type is {kind!r}; supported: clip, siglip, siglip2")
    processor = _json(layout.preprocessor) if layout.preprocessor else {}
    settings: ClipConfig | SiglipConfig
    if kind == "clip":
        settings, rules = clip_configs.from_transformers(stored), clip.TRANSFORMERS
    else:
        settings, rules = siglip.from_transformers(stored), siglip.TRANSFORMERS
    with settings_of_others(layout.preprocessor or layout.path):
        transform = (
            read_clip_transform(processor, settings.size)
            if isinstance(settings, ClipConfig)
            else read_siglip_transform(processor, settings)
        )
    return Checkpoint(settings, transform, lambda: convert(layout.open().read(), rules))


def read_clip_transform(processor: Mapping[str, Any], size: int) -> ImageTransform:
    """A transformers `preprocessor_config.json` of CLIP's; what it leaves out has CLIP's values."""
    crop = processor.get("crop_size", size)
    crop = crop.get("height", size) if isinstance(crop, Mapping) else crop
    resized = processor.get("size", crop)
    if isinstance(resized, Mapping):
        resized = resized.get("shortest_edge", crop)
    if resized != crop:
        raise ValueError(f"pictures are resized to {resized} and cropped to {crop}: not supported")
    return ImageTransform(
        size=crop,
        mean=tuple(processor.get("image_mean", CLIP_MEAN)),
        std=tuple(processor.get("image_std", CLIP_STD)),
        interpolation=_filter(processor.get("resample", 3)),
    )


def read_siglip_transform(
    processor: Mapping[str, Any], settings: SiglipConfig
) -> ImageTransform | PatchTransform:
    """A transformers `preprocessor_config.json` of SigLIP's."""
    mean = tuple(processor.get("image_mean", HALF))
    std = tuple(processor.get("image_std", HALF))
    if settings.image.naflex:
        return PatchTransform(
            processor.get("patch_size", settings.image.patch),
            processor.get("max_num_patches", 256),
            mean,
            std,
            _filter(processor.get("resample", 2)),
        )
    if "crop_size" in processor:  # of a SigLIP trained here, which crops as CLIP does
        return read_clip_transform(processor, settings.size)
    size = processor.get("size", settings.size)
    side = size.get("height", settings.size) if isinstance(size, Mapping) else size
    # transformers: bicubic for SigLIP, bilinear for SigLIP 2; the files always have it
    return ImageTransform(
        side, mean, std, "squash", _filter(processor.get("resample", 3)), crop=False
    )


def _read_open_clip(layout: Layout) -> Checkpoint:
    stored = _json(layout.config)
    model = stored.get("model_cfg")
    if not isinstance(model, Mapping):
        raise ValueError("open_clip_config.json has no model_cfg")
    settings, rules = read_open_clip(model)
    preprocess = stored.get("preprocess_cfg") or {}
    resize = preprocess.get("resize_mode", "shortest")
    if resize not in ("shortest", "squash"):
        raise ValueError(f"its resize_mode is {resize!r}; supported: shortest, squash")
    interpolation = preprocess.get("interpolation", "bicubic")
    size = preprocess.get("size", settings.size)
    height, width = size if isinstance(size, list) else (size, size)
    if height != width:
        raise ValueError(f"pictures become {height} x {width}: only squares are supported")
    transform: ImageTransform | PatchTransform = ImageTransform(
        height,
        tuple(preprocess.get("mean", CLIP_MEAN)),
        tuple(preprocess.get("std", CLIP_STD)),
        resize,
        interpolation if interpolation != "random" else "bicubic",
        crop=resize == "shortest",
        centre="even",
    )
    if isinstance(settings, SiglipConfig) and settings.image.naflex:
        length = (model.get("vision_cfg") or {}).get("image_seq_len", 576)
        transform = PatchTransform(settings.image.patch, length, transform.mean, transform.std)
    return Checkpoint(settings, transform, lambda: convert(layout.open().read(), rules))


def read_open_clip(model: Mapping[str, Any]) -> tuple[ClipConfig | SiglipConfig, list[Rule]]:
    """An open_clip `model_cfg` as ours, and the rules for its names of tensors.

    Raises:
        ValueError: towers that are neither CLIP's nor SigLIP's, by their names.
    """
    if "init_logit_bias" in model:
        pictures = siglip.from_open_clip(model)
        return pictures, siglip.open_clip_rules(pictures.image.naflex)
    settings = clip_configs.from_open_clip(model)
    custom = bool(model.get("custom_text", False))
    return settings, clip.openai_rules(settings.resnet is not None, custom)


def _read_openai(layout: Layout) -> Checkpoint:
    state = layout.open().read()
    for name in ("text_projection", "positional_embedding", "token_embedding.weight"):
        if name not in state:
            raise ValueError(f"it is an archive without {name}: not OpenAI's CLIP")
    settings = clip_configs.from_openai(state)
    rules = clip.openai_rules(settings.resnet is not None)

    def read() -> dict[str, Tensor]:  # the archives hold float16
        wide = {name: x.float() if x.is_floating_point() else x for name, x in state.items()}
        return convert(wide, rules)

    return Checkpoint(settings, ImageTransform(settings.size, centre="even"), read)


def _read_big_vision(layout: Layout) -> Checkpoint:
    state = layout.open().read()
    settings = big_vision.configuration(state)
    if settings.image.naflex:
        transform: ImageTransform | PatchTransform = PatchTransform(settings.image.patch)
    else:  # resize(size, bilinear) and value_range(-1, 1) in its published configurations
        transform = ImageTransform(settings.size, HALF, HALF, "squash", "bilinear", crop=False)
    return Checkpoint(settings, transform, lambda: big_vision.convert(state))


READERS = {
    "transformers": _read_transformers,
    "open_clip": _read_open_clip,
    "openai": _read_openai,
    "big_vision": _read_big_vision,
}


def _open_tokenizer(layout: Layout, settings: ClipConfig | SiglipConfig) -> Tokenizer | None:
    """The vocabulary beside the weights, with the special tokens of the family."""
    folder = layout.path if layout.path.is_dir() else layout.path.parent
    if not layout.tokenizer and not _has_vocabulary(folder):
        return None
    length = settings.length
    if isinstance(settings, ClipConfig):
        text = settings.text
        if text is not None and text.pool == "last":  # CLIPA
            return open_tokenizer(folder, TokenizerConfig(length))
        return clip_tokenizer(
            folder, length, pad=0 if layout.form in ("open_clip", "openai") else None
        )
    return siglip_tokenizer(folder, length, canonical=_is_canonical(layout, settings))


def _is_canonical(layout: Layout, settings: SiglipConfig) -> bool:
    """SigLIP 1 was trained on cleaned text; SigLIP 2, whose vocabulary is Gemma's, on lower-cased
    text. open_clip's configurations have a setting for it.
    """
    if layout.form == "open_clip":
        text = _json(layout.config)["model_cfg"].get("text_cfg") or {}
        return (text.get("tokenizer_kwargs") or {}).get("clean") == "canonicalize"
    return settings.text is None or settings.text.vocabulary < GEMMA_VOCABULARY


def _has_vocabulary(folder: Path) -> bool:
    return (folder / "bpe_simple_vocab_16e6.txt.gz").is_file()


def _json(path: Path | None) -> dict[str, Any]:
    assert path is not None
    return read_object(path)


def _filter(number: Any) -> Any:
    if number not in RESAMPLING:
        raise ValueError(f"pictures are resized by the filter {number!r}; supported: {RESAMPLING}")
    return RESAMPLING[number]

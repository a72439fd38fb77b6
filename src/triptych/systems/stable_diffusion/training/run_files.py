"""The files of a run folder that hold the model."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from triptych.fields import to_json
from triptych.nn import lora
from triptych.systems.stable_diffusion.adapters.lora_files import write_lora
from triptych.systems.stable_diffusion.model import StableDiffusion, StableDiffusionConfig
from triptych.systems.stable_diffusion.unet import LatentUNet
from triptych.text.known_words import KnownWords
from triptych.text.tokenizer import Tokenizer
from triptych.train import checkpoint
from triptych.weights.loaded import Card


def exporter(
    config: StableDiffusionConfig,
    tokenizers: tuple[Tokenizer, ...],
    words: KnownWords | None,
    complete: Callable[[nn.Module], StableDiffusion] | None,
    *,
    with_lora: bool,
) -> Callable[[Path, nn.Module], None]:
    """The function that writes a run's model: complete, whatever part of it is trained; and beside
    it its vocabulary, the words that it was trained on, and its LoRA.
    """
    card = _card(config, tokenizers)

    def export(run: Path, module: nn.Module) -> None:
        tokenizers[0].save(run)
        if words is not None:
            words.save(run)
        checkpoint.export(run, complete(lora.merge(module)) if complete else module, card)
        if with_lora:
            assert isinstance(module, LatentUNet)
            write_lora(module, run / "lora.safetensors")

    return export


def _card(config: StableDiffusionConfig, tokenizers: tuple[Tokenizer, ...]) -> dict[str, Any]:
    return to_json(
        Card(
            "stable-diffusion",
            to_json(config),
            tokenizers=tuple(tokenizer.config for tokenizer in tokenizers),
            triptych=version("triptych"),
        )
    )

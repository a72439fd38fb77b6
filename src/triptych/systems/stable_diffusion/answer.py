"""Pictures of prompts with their records, and previews.

Dimensions: H height, W width, C channels.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from triptych.fields import to_json
from triptych.system import Answer, AnswerPicture
from triptych.systems.stable_diffusion.inputs.parameters_text import write_infotext
from triptych.systems.stable_diffusion.inputs.replay import infotext_of
from triptych.systems.stable_diffusion.pipeline import Drawing, drawing_model
from triptych.systems.stable_diffusion.preview import preview_of
from triptych.systems.stable_diffusion.request import TextToImage, parse_lora, parse_size
from triptych.text.known_words import describe_unknown
from triptych.text.prompt_schedule import parse_schedule, split_composition
from triptych.text.prompt_tokens import PromptTokens, spell
from triptych.text.tags import read_tags
from triptych.text.weighting import prompt_windows
from triptych.vision.images import to_pictures
from triptych.weights.loaded import Loaded

SMALL_AUTOENCODER = 10_000_000  # parameters


def to_answer(item: Drawing, model: str) -> Answer:
    """The request with all defaults filled in, what the user should know, and the pictures."""
    pictures = []
    for number in range(len(item.pictures)):
        one = item.request_of(number)
        record = {"request": to_record(one, model)}
        facts = {"prompt": one.prompt, "seed": one.seed}
        if one.variation_seed is not None:
            facts["variation_seed"] = one.variation_seed
        pixels = item.pictures[number]
        pictures.append(AnswerPicture(pixels, record, facts, to_parameters(one, model)))
    values = {"request": to_record(item.request, model), "notes": list(item.notes)}
    return Answer(values, pictures)


def make_preview(loaded: Loaded) -> Callable[[Drawing], UInt8[np.ndarray, "H W C"] | None]:
    """Small pictures of what the model expects of the first picture of a batch."""
    decode = preview_of(drawing_model(loaded))

    def preview(item: Drawing) -> UInt8[np.ndarray, "H W C"] | None:
        return None if item.guess is None else decode(item.guess[:1])[0]

    return preview


def decode_guess(loaded: Loaded) -> Callable[[Drawing], UInt8[np.ndarray, "H W C"] | None]:
    """The same pictures as the autoencoder draws them, where it is small enough for every step."""
    model = drawing_model(loaded)
    if sum(part.numel() for part in model.autoencoder.parameters()) > SMALL_AUTOENCODER:
        return make_preview(loaded)

    def decode(item: Drawing) -> UInt8[np.ndarray, "H W C"] | None:
        if item.guess is None:
            return None
        with torch.inference_mode():
            shown: np.ndarray = to_pictures(model.autoencoder.decode(item.guess[:1].float()))[0]
        return shown

    return decode


def read_prompt(loaded: Loaded, prompt: str) -> PromptTokens:
    """The tokens of a prompt, those of all parts of a composition one after the other; of a text
    that changes from step to step, as it is in the first one.

    Raises:
        ValueError: the prompt is too long, or has a weight out of range.
    """
    tokenizer, config = loaded.tokenizers[0], drawing_model(loaded).config
    words = read_tags(prompt).prompt
    windows = []
    for part in split_composition(words):
        text = parse_schedule(part.text).at(1, config.sampling.steps)
        read = prompt_windows(text, tokenizer)
        for row, weights in zip(read.tokens.tolist(), read.weights.tolist(), strict=True):
            windows.append(spell(tokenizer, row, weights))
    notes = describe_unknown(loaded.words, [words])
    return PromptTokens(windows, tokenizer.room, notes=notes)


def to_record(request: TextToImage, model: str) -> dict[str, Any]:
    """The request as it is stored in a picture: names instead of paths."""
    files = map(parse_lora, request.loras)
    loras = [str(file._replace(name=PurePath(file.name).name)) for file in files]
    names = {
        field: PurePath(getattr(request, field)).name for field in ("image", "mask", "latents")
    }
    return to_json(request) | names | {"model": model, "loras": loras}


def to_parameters(request: TextToImage, model: str) -> str:
    """The request of one picture in the text format of AUTOMATIC1111."""
    size = parse_size(request.size)
    assert size is not None and request.seed is not None
    info = infotext_of(
        replace(request, model=model),
        seed=request.seed,
        size=size,
        version=read_version(),
    )
    return write_infotext(info)


@cache
def read_version() -> str:
    """Name and version, as in such a text; read once, from the files of the installed package."""
    return f"triptych {version('triptych')}"

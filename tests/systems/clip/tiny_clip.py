"""A CLIP with random weights that fits into a test, and folders of pictures for it."""

from pathlib import Path

import numpy as np
import torch

from triptych.fields import to_json
from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, VitConfig
from triptych.text.tokenizer import train_tokenizer
from triptych.train.checkpoint import export
from triptych.vision.images import save_picture
from triptych.vision.transforms import ImageTransform
from triptych.weights.loaded import Card, Loaded

CAPTIONS = ["a photo of a dog at night", "a red car by day", "two cats"] * 3


def tiny_clip(seed: int = 0, name: str = "tiny") -> Loaded:
    tokenizer = train_tokenizer(CAPTIONS, 600, 16)
    text = TextConfig(tokenizer.vocabulary, 16, 32, 2, 2, 64, end=tokenizer.config.end or 0)
    config = ClipConfig(16, VitConfig(32, 8, 32, 2, 2, 64), None, text)
    torch.manual_seed(seed)
    model = Clip(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # further from its start: else all pictures look alike to it
                parameter.mul_(3)
    model.requires_grad_(False).eval()
    transform = ImageTransform(size=32)
    card = Card("clip", to_json(config), tokenizer=tokenizer.config, transform=transform)
    return Loaded(name, card, config, model, tokenizer, transform)


def saved(loaded: Loaded, folder: Path) -> Path:
    """As a run folder that `load` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    export(folder, loaded.model, to_json(loaded.card))
    assert loaded.tokenizer is not None
    loaded.tokenizer.save(folder)
    return folder


def picture(seed: int) -> np.ndarray:
    """Blocks of random colours: unlike any other seed's."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.repeat(np.repeat(blocks, 9, 0), 10, 1)


def pictures(folder: Path, count: int) -> Path:
    """A folder of PNGs, some in a subfolder."""
    (folder / "sub").mkdir(parents=True)
    for seed in range(count):
        save_picture(folder / ("sub" if seed % 3 == 0 else "") / f"{seed:03d}.png", picture(seed))
    return folder

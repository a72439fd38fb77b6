"""Samples of a text-to-image model for held-out prompts, and how many satisfy their prompt."""

from collections.abc import Callable, Sequence

import numpy as np

from triptych.data.captions import fill_templates
from triptych.data.order.batches import take_first
from triptych.data.scene_source import SceneSource
from triptych.data.source import Source
from triptych.systems.stable_diffusion.draw_prompts import Tokenizers, draw_prompts
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.systems.stable_diffusion.report import judge
from triptych.vision.grids import contact_sheet

SHOWN = 15  # prompts of a contact sheet
JUDGED = 200  # prompts that the exact judge checks during training


def choose_prompts(test: Source, count: int, templates: Sequence[str]) -> list[str]:
    """Captions of the first held-out pictures, or sentences of their class names."""
    batch = take_first(test, count)
    if "caption" in batch:
        return list(batch["caption"])
    labels = batch["label"].tolist()
    return fill_templates(test.info.classes, labels, templates, range(len(labels)))


def prompt_sheet(
    test: Source, tokenizers: Tokenizers, templates: Sequence[str], count: int = SHOWN
) -> Callable[[StableDiffusion], np.ndarray]:
    """A function from a model to a contact sheet: its pictures of the first held-out prompts."""
    prompts = choose_prompts(test, count, templates)

    def draw(module: StableDiffusion) -> np.ndarray:
        return contact_sheet(list(draw_prompts(module, tokenizers, prompts)), prompts)

    return draw


def judge_prompts(
    model: StableDiffusion, tokenizers: Tokenizers, prompts: Sequence[str]
) -> dict[str, float]:
    """The share of samples of the built-in world that satisfy their prompt, in everything and
    attribute by attribute, by the exact judge; and `nearest`, the median distance of regions from
    the objects that redraw them best.
    """
    pictures = draw_prompts(model, tokenizers, prompts)
    shares, nearest = judge(pictures, prompts)
    row = {name: share.value for name, share in shares["all"].items()}
    if nearest["all"].distances:
        row["nearest"] = nearest["all"].distances[1]
    return row


def held_out_judge(
    test: Source, tokenizers: Tokenizers
) -> Callable[[StableDiffusion], dict[str, float]] | None:
    """`judge_prompts` on the first prompts of the built-in world; None for another source."""
    if not isinstance(test, SceneSource):
        return None
    prompts = choose_prompts(test, JUDGED, ())
    return lambda model: judge_prompts(model, tokenizers, prompts)

"""The decoder's pictures before the exact judge of the built-in world: do they show their captions,
and do variations of a picture keep its attributes?

Dimensions: N prompts, E width of embeddings, H height, W width, C channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from triptych.data.scene_source import SceneSource
from triptych.diffusion.denoiser import Conditioning
from triptych.diffusion.noise import PictureNoise
from triptych.scenes.captions import parse
from triptych.scenes.judge import Share, agreement, holds
from triptych.scenes.reader import Reading, match_regions
from triptych.scenes.scene import COLOURS, GROUND_COLOURS, PATTERNS, SHAPES, SIZES, TEXTURES
from triptych.systems.stable_diffusion.report import FIRST_PROMPT, judge
from triptych.systems.unclip.draw import draw_pictures, encode
from triptych.systems.unclip.evaluation.figures import TOGETHER, Figure, draw_all, share_figure
from triptych.systems.unclip.evaluation.priors import embed
from triptych.systems.unclip.inputs import repeat_rows
from triptych.systems.unclip.pipeline import require_unclip
from triptych.systems.unclip.request import UnclipPictures
from triptych.vision.images import to_pictures
from triptych.weights.loaded import Loaded

SCALES = (1.0, 2.0, 4.0, 8.0)  # strengths of guidance at which variations are compared
NAMES: dict[str, Sequence[str]] = {
    "shape": SHAPES, "colour": COLOURS, "size": SIZES, "pattern": PATTERNS,
    "ground": GROUND_COLOURS, "texture": TEXTURES,
}  # fmt: skip
Pictures = UInt8[np.ndarray, "N H W C"]


@torch.inference_mode()
def decode_embeddings(
    loaded: Loaded,
    images: Float[Tensor, "N E"],
    request: UnclipPictures,
    captions: Sequence[str] | None = None,
) -> Pictures:
    """The decoder's pictures of embeddings, that of embedding i from seed + i. Without captions
    they are drawn from the embeddings alone.
    """
    model, tokenizer = require_unclip(loaded)
    assert request.seed is not None
    pictures, device = [], model.decoder.null_image.device
    for start in range(0, len(images), TOGETHER):
        image = images[start : start + TOGETHER].to(device)
        empty: Conditioning = repeat_rows(encode(model, tokenizer, [""]), len(image))
        cond = empty
        if captions is not None:
            cond = encode(model, tokenizer, captions[start : start + TOGETHER])
        noise = PictureNoise([request.seed + start + row for row in range(len(image))])
        *_, (_, last) = draw_pictures(model, image, cond, empty, noise, request, upsample=False)
        pictures.append(to_pictures(last.float().cpu()))
    return np.concatenate(pictures)


def judge_pictures(pictures: Pictures, captions: Sequence[str]) -> dict[str, Figure]:
    """How many pictures show their caption: `whole_nearest`, every region taken for its nearest
    object, and `whole_strict`, where regions that are too far from any object are none.
    """
    strict, nearest = judge(pictures, list(captions))
    none, count = Share(0, len(captions)), len(captions)
    return {
        "whole_nearest": share_figure(nearest["all"].shares.get("whole", none).right, count),
        "whole_strict": share_figure(strict["all"].get("whole", none).right, count),
    }


def judge_two_objects(
    loaded: Loaded, size: int, count: int, request: UnclipPictures
) -> dict[str, dict[str, Figure]]:
    """Scenes of two objects, of true embeddings and of the prior that the request names: how many
    pictures show their caption as a whole, and how many have all its colours, and all its shapes,
    on whatever objects. If those are right and the whole is not, they were bound wrongly.
    """
    captions, images = embed(loaded, SceneSource("scenes-two", "test", size), FIRST_PROMPT, count)
    drawn, _ = draw_all(loaded, captions, request)
    rows = {}
    for name, embeddings in (("true_embeddings", images), (request.prior, drawn)):
        pictures = decode_embeddings(loaded, embeddings, request)
        rows[name] = judge_pictures(pictures, captions) | _attributes(pictures, captions)
    return rows


def _attributes(pictures: Pictures, captions: Sequence[str]) -> dict[str, Figure]:
    """Shares of pictures with all colours, and with all shapes, that their captions mention, of
    nearest objects.
    """
    verdicts = []
    for picture, caption in zip(pictures, captions, strict=True):
        read = read_nearest(picture)
        claim = parse(caption)
        verdicts.append(holds(claim, read.things, read.ground, read.texture, unread=read.unread))
    said = {name: [v for v in (getattr(each, name) for each in verdicts) if v is not None]
            for name in ("colour", "shape")}  # fmt: skip
    return {name: share_figure(sum(values), len(values)) for name, values in said.items()}


def read_nearest(picture: UInt8[np.ndarray, "H W C"]) -> Reading:
    """What a picture shows, every region taken for its nearest object."""
    regions, ground, texture, _ = match_regions(picture)
    found = [match for match in regions if match is not None]
    things, distances = tuple(t for t, _ in found), tuple(d for _, d in found)
    return Reading(things, distances, len(regions) - len(found), ground, texture)


def compare_variations(
    loaded: Loaded, size: int, count: int, request: UnclipPictures
) -> Iterator[tuple[str, dict[str, Figure]]]:
    """For each strength of guidance: the share of variations that have one object, `read`, and of
    those the shares that keep each attribute of the held-out picture that they are made from.
    """
    source = SceneSource("scenes-one", "test", size)
    _, images = embed(loaded, source, FIRST_PROMPT, count)
    truth = true_attributes(source, range(FIRST_PROMPT, FIRST_PROMPT + count))
    for scale in SCALES:
        pictures = decode_embeddings(loaded, images, replace(request, guidance=scale))
        shares = agreement([read_nearest(picture) for picture in pictures], truth, NAMES)
        yield f"{scale:g}", {name: share_figure(s.right, s.of) for name, s in shares.items()}


def true_attributes(source: SceneSource, indices: Sequence[int]) -> dict[str, Any]:
    """The attributes of scenes of one object, as places in `NAMES`."""
    found: dict[str, list[int]] = {name: [] for name in NAMES}
    for scene in source.scenes(indices):
        (thing,), ground = scene.things, scene.ground
        values = {"ground": ground.colour, "texture": ground.texture}
        for name in NAMES:
            value = values.get(name) or getattr(thing, name)
            found[name].append(NAMES[name].index(value))
    return {name: np.array(rows) for name, rows in found.items()}

"""Recipe: the mask codes, on masks of the objects of scenes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version

import numpy as np
import torch

from triptych import runtime
from triptych.data.order.batches import take_first
from triptych.data.scene_source import SceneSource
from triptych.data.source import Columns, SourceInfo
from triptych.data.sources import open_train_and_test
from triptych.fields import to_json
from triptych.nn.loss import Loss
from triptych.scenes.drawing import boxes, masks
from triptych.systems.mask_codes.crops import crop_mask, overlap
from triptych.systems.mask_codes.model import (
    SIDE,
    MaskCodes,
    MaskCodesConfig,
    objective,
    place_codes,
    plain_objective,
)
from triptych.systems.mask_codes.request import TrainMaskCodes
from triptych.text.locations import Box
from triptych.train import checkpoint
from triptych.train.distributed import World
from triptych.train.optimizer import adam
from triptych.train.recipe import Batch, Recipe, Update, batches_for, data_notes
from triptych.vision.grids import labelled_grid
from triptych.vision.images import to_pictures
from triptych.weights.loaded import Card, Load

DRAWN = 256
"""Pixels of a side of the scenes whose masks are learned: the smallest object then has about 40."""
HELD_OUT = 400
SHOWN = 12


@dataclass(frozen=True)
class SceneMasks:
    """A `Source` of one mask per scene, cropped to its box: a grey picture of 64 x 64."""

    scenes: SceneSource

    @property
    def info(self) -> SourceInfo:
        return replace(
            self.scenes.info, shape=(SIDE, SIDE, 1), classes=(), attributes=(), vector=(),
            has_captions=False,
        )  # fmt: skip

    def read(self, indices: Sequence[int]) -> Columns:
        pictures = np.empty((len(indices), SIDE, SIDE, 1), np.uint8)
        scenes = self.scenes.scenes(indices)
        for picture, index, scene in zip(pictures, indices, scenes, strict=True):
            place = index % len(scene.things)
            (mask,) = masks(replace(scene, things=scene.things[place : place + 1]), DRAWN)
            left, top, right, bottom = boxes(scene)[place].clip(0, 1).tolist()
            box: Box = (left, top, right, bottom)
            inside = crop_mask(torch.from_numpy(mask), box)  # (1, S, S)
            picture[:] = np.rint((inside[0].numpy() + 1) * 127.5)[..., None]
        return {"image": pictures}


def build(request: TrainMaskCodes, world: World, load: Load) -> Recipe:
    """New mask codes and their data."""
    training = request.training
    device = runtime.device(training.device)
    if training.size:
        raise ValueError(f"masks are learned at {SIDE} pixels of a side: leave out size")
    pair = open_train_and_test(training.data)
    if not all(isinstance(each, SceneSource) for each in pair):
        raise ValueError(f"{training.data!r} has no masks of objects: choose --data scenes")
    source, test = (SceneMasks(each) for each in pair if isinstance(each, SceneSource))
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = MaskCodes(MaskCodesConfig(request.down, request.width, request.code_width)).to(device)
    first = take_first(source, HELD_OUT)["image"].to(device)
    held_out = take_first(test, HELD_OUT)["image"]
    inside = (held_out > 0)[:, 0]
    box = overlap(torch.ones_like(inside), inside).mean()
    card = Card("mask-codes", to_json(model.config), triptych=version("triptych"))

    def minimise(batch: Batch, step: int) -> Loss:
        if step <= request.plain_steps:
            return plain_objective(model, batch["image"])
        if step == request.plain_steps + 1:
            place_codes(model, first)
        return objective(model, batch["image"], request.commitment, request.spread)

    @torch.inference_mode()
    def evaluate(module: MaskCodes) -> dict[str, float]:
        codes = module.encode(held_out.to(device))
        found = (module.decode(codes) > 0)[:, 0].cpu()
        return {
            "test_overlap": float(overlap(found, inside).mean()),
            "overlap_of_the_box": float(box),
            "codes": len(codes.unique()),
        }

    @torch.inference_mode()
    def draw(module: MaskCodes) -> np.ndarray:
        shown = held_out[:SHOWN]
        back = module.decode(module.encode(shown.to(device))).cpu().clamp(-1, 1)
        return labelled_grid(np.stack([to_pictures(shown), to_pictures(back)]), ["given", "back"])

    return Recipe(
        model=model,
        exported=model,
        updates=[
            Update(
                "",
                model,
                adam(model, request.learning_rate, weight_decay=request.weight_decay),
                minimise,
                max_norm=request.max_norm,
            )
        ],
        batches=batches_for(source, training, world),
        export=partial(checkpoint.export, card=to_json(card)),
        chance=f"a mask that fills its box: overlap {box:.3f}",
        sample=draw,
        evaluate=evaluate,
        notes=data_notes(pair[0], training),
    )

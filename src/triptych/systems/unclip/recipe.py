"""Training of the parts of a DALL-E 2, each by itself: prior, decoder, upsamplers."""

from collections.abc import Callable
from typing import Any

from triptych.systems.unclip.request import (
    TrainUnclipAutoregressive,
    TrainUnclipDecoder,
    TrainUnclipPrior,
    TrainUnclipUpsampler,
)
from triptych.systems.unclip.training import (
    autoregressive_recipe,
    decoder_recipe,
    prior_recipe,
    upsampler_recipe,
)
from triptych.train.distributed import World
from triptych.train.recipe import Recipe
from triptych.weights.loaded import Load

BUILD: dict[type, Callable[[Any, World, Load], Recipe]] = {
    TrainUnclipPrior: prior_recipe.build,
    TrainUnclipAutoregressive: autoregressive_recipe.build,
    TrainUnclipDecoder: decoder_recipe.build,
    TrainUnclipUpsampler: upsampler_recipe.build,
}


def build(
    request: TrainUnclipPrior
    | TrainUnclipAutoregressive
    | TrainUnclipDecoder
    | TrainUnclipUpsampler,
    world: World,
    load: Load,
) -> Recipe:
    """The recipe of a part.

    Raises:
        ValueError: the request is of the whole chain, which has several.
    """
    if type(request) not in BUILD:
        raise ValueError(
            "a whole DALL-E 2 is trained part by part: triptych.training.train, or `triptych train "
            "unclip`"
        )
    return BUILD[type(request)](request, world, load)

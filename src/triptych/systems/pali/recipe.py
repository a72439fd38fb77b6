"""Recipe: a PaLI-3, on the same data and for the same tasks as a PaliGemma."""

from dataclasses import replace

import torch

from triptych import runtime
from triptych.systems.pali.model import Pali, PaliConfig
from triptych.systems.pali.request import TrainPali
from triptych.systems.pali.t5 import T5Config
from triptych.systems.paligemma.first_weights import order_locations
from triptych.systems.paligemma.learning import (
    answer_recipe,
    learn_words,
    load_parts,
    open_asked,
)
from triptych.train.distributed import World
from triptych.train.recipe import Recipe
from triptych.weights.loaded import Load


def build(request: TrainPali, world: World, load: Load) -> Recipe:
    """Recipe of a PaLI-3, with random weights or the eye of a trained SigLIP."""
    data = open_asked(request.training, request.answers)
    parts = load_parts(request.answers, Pali, data, load)
    tokenizer = parts.start.language if parts.start else None
    if parts.start and tokenizer:
        text = parts.start.config.text
    else:
        tokenizer = learn_words(request.answers, data)
        text = T5Config(
            tokenizer.vocabulary, request.width, request.layers, request.decoder_layers,
            request.heads, request.head_width, request.hidden, tied=True,
        )  # fmt: skip
    torch.manual_seed(runtime.key(request.training.seed, "weights"))
    model = Pali(PaliConfig(parts.image, text, parts.masks))
    if parts.start is None:
        order_locations(model.text.token, tokenizer)
    parts.fill(model)
    if request.freeze != "none":
        model.get_submodule(request.freeze).requires_grad_(False)
    recipe = answer_recipe("pali", model, tokenizer, request.training, request.answers, data, world)
    return replace(recipe, vocabulary="" if parts.start else tokenizer.to_json())

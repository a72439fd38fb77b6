"""Recipe: a PaliGemma on pictures with captions, questions, boxes and masks."""

from dataclasses import replace

import torch

from triptych import runtime
from triptych.nn import lora
from triptych.nn.transformer import Block
from triptych.systems.gemma.model import Gemma, GemmaBlock, GemmaConfig
from triptych.systems.paligemma.first_weights import order_locations
from triptych.systems.paligemma.learning import (
    answer_recipe,
    learn_words,
    load_part,
    load_parts,
    open_asked,
)
from triptych.systems.paligemma.model import PaliGemma, PaliGemmaConfig
from triptych.systems.paligemma.request import TrainVlm
from triptych.train.distributed import World
from triptych.train.recipe import Recipe
from triptych.weights.loaded import Load


def build(request: TrainVlm, world: World, load: Load) -> Recipe:
    """Recipe of a PaliGemma, with random weights or parts of trained models."""
    data = open_asked(request.training, request.answers)
    parts = load_parts(request.answers, PaliGemma, data, load)
    words = load_part(request.language, Gemma, load) if request.language else parts.start
    if words is None:
        tokenizer = learn_words(request.answers, data)
        text = text_config(request, tokenizer.vocabulary)
    elif words.language is None:
        raise ValueError(f"{request.language} has no tokenizer: it cannot be trained")
    else:
        tokenizer = words.language
        text = words.config.text if parts.start else words.config
    torch.manual_seed(runtime.key(request.training.seed, "weights"))
    model = PaliGemma(PaliGemmaConfig(parts.image, text, parts.masks))
    if words is None:
        order_locations(model.text.token, tokenizer)
    elif not parts.start:
        model.text.load_state_dict(words.model.state_dict())
    parts.fill(model)
    if request.lora:
        lora.add(model.text, request.lora, names=("q_proj", "v_proj", "up", "down"))
    if request.freeze != "none":
        model.get_submodule(request.freeze).requires_grad_(False)
    recipe = answer_recipe(
        "paligemma",
        model,
        tokenizer,
        request.training,
        request.answers,
        data,
        world,
        blocks=(GemmaBlock, Block),
    )
    return replace(recipe, vocabulary="" if words else tokenizer.to_json())


def text_config(request: TrainVlm, vocabulary: int) -> GemmaConfig:
    """A Gemma 1 of these sizes, as in PaliGemma."""
    return GemmaConfig(
        vocabulary,
        request.width,
        request.layers,
        request.heads,
        request.kv_heads,
        request.head_width,
        request.hidden,
        context=8192,
        post_norms=False,
        head_norms=False,
        window=None,
        pattern=1,
        base=10_000.0,
        query_scale=float(request.head_width),
    )

"""Ask: an answer about a picture, as it comes, and the boxes in it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from triptych import runtime
from triptych.nn.decoding import Grammar
from triptych.systems.gemma.pipeline import Said, room, say
from triptych.systems.paligemma.model import PaliGemma
from triptych.systems.paligemma.request import Ask
from triptych.text.language import LanguageTokenizer
from triptych.text.locations import ObjectGrammar, Parsed, parse_objects
from triptych.vision.pixels import read_named
from triptych.weights.loaded import Load, Loaded


def run(request: Ask, load: Load) -> Iterator[Said]:
    """The answer after each token; the last item is the complete one.

    Raises:
        ValueError: the model does not answer about pictures, the picture cannot be read, or the
            question is longer than the model reads.
    """
    # before the model is loaded, since it costs little
    pixels = read_named("picture", request.picture, channels=3)
    loaded = load(request.model, runtime.device(request.device), request.precision)
    model, tokenizer = require_eye(loaded)
    prompt = tokenizer.question(request.prefix)
    limit = room(loaded, model.config.places + len(prompt), request.decoding.max_tokens)
    grammar = _grammar(request, tokenizer, limit)
    assert loaded.transform is not None
    images = loaded.transform([pixels])
    device = next(model.parameters()).device
    assert isinstance(images, Tensor)
    with torch.inference_mode():
        tokens, pads = torch.tensor([prompt], device=device), torch.zeros(1, dtype=torch.long)
        logits, cache = model.read(images.to(device), tokens, pads)

    def step(token: Tensor) -> Tensor:
        with torch.inference_mode():
            return model.step(token, cache)

    said = Said(request, prompt=len(prompt))
    ends = (tokenizer.end,)
    yield from say(
        said, logits, step, tokenizer, request.decoding, limit, ends, [prompt], grammar
    )  # fmt: skip


def find_objects(said: Said) -> Parsed:
    """The boxes of an answer to a request to detect."""
    return parse_objects(said.text, said.request.location_steps)


def _grammar(request: Ask, tokenizer: LanguageTokenizer, limit: int) -> Grammar | None:
    """What an answer of boxes may be."""
    if request.task != "detect" or request.free:
        return None
    objects = ObjectGrammar(tokenizer, request.labels, (tokenizer.end,), limit, masks=False)

    def permit(row: int, made: Sequence[int]) -> Tensor:
        mask = torch.zeros(tokenizer.vocabulary, dtype=torch.bool)
        mask[objects.allowed(made)] = True
        return mask

    return permit


def require_eye(loaded: Loaded) -> tuple[PaliGemma, LanguageTokenizer]:
    """The model and its tokenizer.

    Raises:
        ValueError: it is another kind of model, or its vocabulary is missing.
    """
    if not isinstance(loaded.model, PaliGemma):
        raise ValueError(
            f"{loaded.name} is a {loaded.card.model}: it does not answer about pictures"
        )
    if loaded.language is None:
        raise ValueError(
            f"{loaded.name} has no vocabulary: put its publisher's tokenizer.json beside it"
        )
    return loaded.model, loaded.language

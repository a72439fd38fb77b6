"""Ask: an answer about a picture, as it comes, and the objects in it."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from triptych import runtime
from triptych.nn.decoding import Grammar
from triptych.systems.detection.heatmaps import ScoredBoxes
from triptych.systems.detection.pipeline import Detections
from triptych.systems.detection.request import Detect
from triptych.systems.gemma.pipeline import Said, room, say
from triptych.systems.mask_codes.crops import draw_masks
from triptych.systems.mask_codes.model import MaskCodes
from triptych.systems.paligemma.ask_all import Answering, Objects, find_objects, permit_objects
from triptych.systems.paligemma.request import OBJECTS, Ask
from triptych.text.language import LanguageTokenizer
from triptych.vision.pixels import read_named
from triptych.weights.loaded import ANSWERS, Load, Loaded


@dataclass(frozen=True)
class Seen:
    """The objects in a picture, and for a request to segment their masks."""

    objects: Objects
    picture: UInt8[np.ndarray, "H W C"]
    masks: Bool[Tensor, "N H W"] | None = None


def run(request: Ask, load: Load) -> Iterator[Said]:
    """The answer after each token; the last item is the complete one, with its objects.

    Raises:
        ValueError: the model does not answer about pictures, the picture cannot be read, or the
            question is longer than the model reads.
    """
    # before the model is loaded, since it costs little
    pixels = read_named("picture", request.picture, channels=3)
    loaded = load(request.model, runtime.device(request.device), request.precision)
    require_eye(loaded)
    codes = find_codes(request, loaded, load)
    yield from ask(request, loaded, pixels, codes)


def ask(
    request: Ask,
    loaded: Loaded,
    pixels: UInt8[np.ndarray, "H W C"],
    codes: MaskCodes | None = None,
) -> Iterator[Said]:
    """`run` with a loaded model and a picture that was read; `codes` draw masks."""
    model, tokenizer = require_eye(loaded)
    prompt = tokenizer.question(request.prefix)
    limit = room(loaded, model.config.places + len(prompt), request.decoding.max_tokens)
    grammar = _grammar(request, loaded.name, tokenizer, limit)
    assert loaded.transform is not None
    images = loaded.transform([pixels])
    device = next(loaded.model.parameters()).device
    assert isinstance(images, Tensor)
    with torch.inference_mode():
        tokens, pads = torch.tensor([prompt], device=device), torch.zeros(1, dtype=torch.long)
        logits, cache = model.read(images.to(device), tokens, pads)

    def step(token: Tensor) -> Tensor:
        with torch.inference_mode():
            return model.step(token, cache)

    said = Said(request, prompt=len(prompt))
    ends = (tokenizer.end,)
    for item in say(
        said, logits, step, tokenizer, request.decoding, limit, ends, [prompt], grammar
    ):
        if item.reason and request.task in OBJECTS:
            yield replace(item, objects=_see(item, tokenizer, pixels, codes))
        else:
            yield item


def locate(
    request: Detect, loaded: Loaded, pixels: UInt8[np.ndarray, "H W C"]
) -> Iterator[Detections]:
    """Zero-shot detection by a model that writes boxes; the last item has them. There are no heat
    maps.

    Raises:
        ValueError: as `boxes_in_words`, or the model does not write boxes.
    """
    asked = boxes_in_words(request, loaded.name)
    size, no_heat = pixels.shape[:2], torch.empty(0, 1, 1)
    none = ScoredBoxes(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.int64))
    for said in ask(asked, loaded, pixels):
        yield Detections(request, (size[0], size[1]), none, no_heat, min(said.done, 0.99))
    found: Objects = said.objects.objects
    order = sorted(range(len(found.scores)), key=lambda i: -found.scores[i])
    corners = torch.tensor([found.located[i].box for i in order]).reshape(-1, 4)
    labels = [request.labels.index(found.located[i].label) for i in order]
    scores = torch.tensor([found.scores[i] for i in order])
    boxes = ScoredBoxes(corners, scores, torch.tensor(labels, dtype=torch.int64))
    yield Detections(request, (size[0], size[1]), boxes, no_heat)


def boxes_in_words(request: Detect, name: str) -> Ask:
    """A request for boxes as a question, whose answer has them.

    Raises:
        ValueError: it has settings for heat maps, which the model `name` does not make, or a label
            that cannot be asked for.
    """
    for field in fields(request):
        used = field.name in ("picture", "labels", "model")
        if not used and getattr(request, field.name) != field.default:
            flag = field.name.replace("_", "-")
            raise ValueError(
                f"--{flag} cannot be used: {name} writes its boxes as words, without heat maps "
                "(`triptych ask --task detect --help` lists its options)"
            )
    return Ask("picture", model=request.model, task="detect", labels=request.labels)


def find_codes(request: Ask, loaded: Loaded, load: Load) -> MaskCodes | None:
    """What draws the masks of a request to segment; None for other requests.

    Raises:
        ValueError: the model has none in itself, and the request names none.
    """
    if request.task != "segment":
        return None
    if request.codes:
        given = load(request.codes, dtype="float32")
        if not isinstance(given.model, MaskCodes):
            raise ValueError(f"{request.codes} is a {given.card.model}, and no mask codes")
        return given.model
    own = getattr(loaded.model, "masks", None)
    if not isinstance(own, MaskCodes):
        raise ValueError(
            f"{loaded.name} does not have what draws masks: give it with --codes, such as the "
            "vae-oid.npz of big_vision, or train with --tasks segment and --mask-codes"
        )
    return own


def _see(
    said: Said,
    tokenizer: LanguageTokenizer,
    pixels: UInt8[np.ndarray, "H W C"],
    codes: MaskCodes | None,
) -> Seen:
    """The objects of a complete answer."""
    steps = said.request.location_steps
    found = find_objects(tokenizer, said.text, said.tokens, said.log_probs, steps)
    if codes is None:
        return Seen(found, pixels)
    kept = [i for i, each in enumerate(found.located) if each.codes]
    # without the grammar a box may come without a mask
    bare = tuple(f"{each.label}: no mask" for each in found.located if not each.codes)
    located, scores = found.located, found.scores
    found = Objects(
        tuple(located[i] for i in kept), tuple(scores[i] for i in kept), found.ignored + bare
    )
    return Seen(found, pixels, draw_masks(codes, found.located, *pixels.shape[:2]))


def _grammar(request: Ask, name: str, tokenizer: LanguageTokenizer, limit: int) -> Grammar | None:
    """What an answer of objects may be."""
    if request.task not in OBJECTS or request.free:
        return None
    try:
        return permit_objects(
            tokenizer,
            [request.labels],
            limit,
            masks=request.task == "segment",
            greedy=request.decoding.temperature == 0,
        )
    except ValueError as error:
        raise ValueError(f"{name} cannot {request.task}: {error}") from error


def require_eye(loaded: Loaded) -> tuple[Answering, LanguageTokenizer]:
    """The model and its tokenizer.

    Raises:
        ValueError: it is another kind of model, or its vocabulary is missing.
    """
    if loaded.card.model not in ANSWERS:
        raise ValueError(
            f"{loaded.name} is a {loaded.card.model}: it does not answer about pictures"
        )
    if loaded.language is None:
        raise ValueError(
            f"{loaded.name} has no vocabulary: put its publisher's tokenizer.json beside it"
        )
    return cast(Any, loaded.model), loaded.language

"""The priors by their embeddings: how near to the true ones of held-out pictures, which pictures
they retrieve, how much they vary, how long they take.

Dimensions: B texts of a batch, N prompts, E width of embeddings.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from triptych.data.order.batches import take
from triptych.data.source import Source
from triptych.systems.stable_diffusion.report import FIRST_PROMPT
from triptych.systems.unclip.evaluation.figures import (
    TOGETHER,
    Figure,
    draw_all,
    encode_in_batches,
    mean_figure,
    share_figure,
)
from triptych.systems.unclip.model import Unclip
from triptych.systems.unclip.pipeline import require_unclip
from triptych.systems.unclip.request import UnclipPictures
from triptych.vision.images import to_pictures
from triptych.weights.loaded import Loaded

LEARNED_FROM = 4000  # training pictures of the linear regression
VARIED = 64  # prompts whose embeddings are drawn twice, for diversity
Regression = Callable[[Float[Tensor, "B E"]], Float[Tensor, "B E"]]


def available_priors(model: Unclip) -> list[str]:
    """Names of the priors that a model has, as requests name them."""
    there = {"autoregressive": model.autoregressive, "diffusion": model.prior}
    return [name for name, part in there.items() if part is not None]


def held_out(loaded: Loaded, test: Source, count: int) -> tuple[list[str], Float[Tensor, "N E"]]:
    """Captions of held-out pictures, and the pictures' embeddings.

    Raises:
        ValueError: the data has no captions.
    """
    if not test.info.has_captions:
        raise ValueError(f"{test.info.name!r} has no captions, which the priors are compared on")
    return embed(loaded, test, first_picture(test), min(count, test.info.length or count))


def first_picture(test: Source) -> int:
    """The number of the first picture that is measured."""
    return FIRST_PROMPT if test.info.length is None else 0


def embed(
    loaded: Loaded, source: Source, first: int, count: int
) -> tuple[list[str], Float[Tensor, "N E"]]:
    """Captions and embeddings of `count` pictures of a source, from number `first` on."""
    model, _ = require_unclip(loaded)
    captions, rows = [], []
    device = model.decoder.null_image.device
    for start in range(first, first + count, TOGETHER):
        batch = take(source, range(start, min(start + TOGETHER, first + count)))
        captions += batch["caption"]
        pixels = to_pictures(batch["image"].expand(-1, 3, -1, -1))
        ready: Tensor = loaded.transform(pixels)  # type: ignore[misc,assignment,arg-type]
        with torch.inference_mode():
            rows.append(model.embed_image(ready.to(device)).cpu())
    return captions, torch.cat(rows)


def fit_regression(loaded: Loaded, train: Source) -> Regression:
    """Least squares from text embeddings to image embeddings, on training pictures."""
    count = min(LEARNED_FROM, train.info.length or LEARNED_FROM)
    texts, images = embed(loaded, train, 0, count)
    known = torch.cat([encode_in_batches(loaded, texts), torch.ones(count, 1)], dim=1)
    ridge = 1e-4 * count * torch.eye(known.shape[1], dtype=torch.float64)
    gram = known.double().T @ known.double() + ridge
    weights = torch.linalg.solve(gram, known.double().T @ images.double()).float()

    def predict(text: Float[Tensor, "B E"]) -> Float[Tensor, "B E"]:
        predicted: Tensor = torch.cat([text, torch.ones(len(text), 1)], dim=1) @ weights
        return predicted

    return predict


def measure(
    loaded: Loaded,
    name: str,
    texts: Sequence[str],
    images: Float[Tensor, "N E"],
    regress: Regression,
    request: UnclipPictures,
) -> tuple[dict[str, Figure], Float[Tensor, "N E"]]:
    """The figures of one prior, and the embeddings that it drew with the request's seed."""
    assert request.seed is not None
    text = encode_in_batches(loaded, texts)
    chosen = replace(request, prior="none" if name == "linear" else name)  # type: ignore[arg-type]
    drawn, spent = draw_all(loaded, texts, chosen)
    if name == "linear":
        drawn = regress(text)
    unit, other = F.normalize(drawn, dim=-1), images.roll(1, 0)
    again = drawn[:VARIED]
    if name not in ("none", "linear"):
        later = replace(chosen, seed=request.seed + len(texts))
        again, _ = draw_all(loaded, texts[:VARIED], later)
    cosines = (unit[: len(again)] * F.normalize(again, dim=-1)).sum(1)
    varied = 1 - cosines.clamp(max=1)  # equal ones are rounded
    return {
        "cosine_true": mean_figure((unit * images).sum(1)),
        "cosine_shuffled": mean_figure((unit * other).sum(1)),
        "cosine_text": mean_figure((unit * text).sum(1)),
        "retrieval_at_1": share_figure(int(retrieved(unit, images, texts).sum()), len(texts)),
        "diversity": mean_figure(varied),
        "milliseconds": mean_figure(spent),
    }, drawn


def retrieved(
    drawn: Float[Tensor, "N E"], images: Float[Tensor, "N E"], texts: Sequence[str]
) -> Bool[Tensor, " N"]:
    """Whether the picture nearest to each embedding has its caption: equal captions count."""
    nearest = (drawn @ images.T).argmax(1).tolist()
    return torch.tensor([texts[row] == texts[found] for row, found in enumerate(nearest)])

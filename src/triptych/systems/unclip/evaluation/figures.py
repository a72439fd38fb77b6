"""Figures with their 95 % intervals, and batches of drawings.

Dimensions: N values, E width of embeddings.
"""

import math
import time
from collections.abc import Generator, Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from triptych.diffusion.noise import PictureNoise
from triptych.scores.accuracy import NORMAL_95, wilson_interval
from triptych.scores.fid import Estimate
from triptych.systems.unclip.draw import draw_embeddings, encode
from triptych.systems.unclip.inputs import repeat_rows
from triptych.systems.unclip.pipeline import require_unclip
from triptych.systems.unclip.request import UnclipPictures
from triptych.weights.loaded import Loaded

TOGETHER = 64  # prompts of a batch
Figure = dict[str, float]
"""`value`, and its 95 % interval `low` and `high`; of `count` values."""


def mean_figure(values: Float[Tensor, " N"]) -> Figure:
    """The mean of independent values, and its interval."""
    count, mean = len(values), float(values.mean())
    spread = NORMAL_95 * float(values.std()) / math.sqrt(count) if count > 1 else 0.0
    return {"value": mean, "low": mean - spread, "high": mean + spread, "count": count}


def share_figure(right: int, count: int) -> Figure:
    """A share of independent trials, and its interval; of none, anything from 0 to 1."""
    if not count:
        return {"value": 0.0, "low": 0.0, "high": 1.0, "count": 0}
    low, high = wilson_interval(right, count)
    return {"value": right / count, "low": low, "high": high, "count": count}


def estimate_figure(estimate: Estimate, count: int) -> Figure:
    """A distance between sets of `count` pictures."""
    return {
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "count": count,
    }


def ratio_figure(share: Figure, of: Figure) -> Figure | None:
    """The ratio of two shares, by the normal distribution of its logarithm (Katz 1978); None where
    one of them is 0.
    """
    if not share["value"] or not of["value"]:
        return None
    ratio = share["value"] / of["value"]
    variance = sum((1 - each["value"]) / (each["value"] * each["count"]) for each in (share, of))
    spread = math.exp(NORMAL_95 * math.sqrt(variance))
    return {
        "value": ratio,
        "low": ratio / spread,
        "high": ratio * spread,
        "count": share["count"],
    }


def format_figure(figure: Figure, factor: float = 1.0) -> str:
    """A figure with its interval in brackets."""
    value, low, high = (factor * figure[name] for name in ("value", "low", "high"))
    return f"{value:.3g}" if low == high else f"{value:.3g} ({low:.3g} to {high:.3g})"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown, and an empty one."""
    head, *body = (f"| {' | '.join(cells)} |" for cells in (columns, *rows))
    return [head, "|---" * len(columns) + "|", *body, ""]


def encode_in_batches(loaded: Loaded, texts: Sequence[str]) -> Float[Tensor, "N E"]:
    """Embeddings of texts."""
    model, tokenizer = require_unclip(loaded)
    with torch.inference_mode():
        parts = [
            encode(model, tokenizer, texts[start : start + TOGETHER])["text"].cpu()
            for start in range(0, len(texts), TOGETHER)
        ]
    return torch.cat(parts)


def draw_all(
    loaded: Loaded, texts: Sequence[str], request: UnclipPictures
) -> tuple[Float[Tensor, "N E"], Float[Tensor, " _"]]:
    """An embedding of each text by the prior of the request, that of text i from seed + i; and the
    milliseconds of each batch for one embedding, without encoding texts.
    """
    model, tokenizer = require_unclip(loaded)
    assert request.seed is not None
    parts, spent = [], []
    for start in range(0, len(texts), TOGETHER):
        chosen = texts[start : start + TOGETHER]
        with torch.inference_mode():
            cond = encode(model, tokenizer, chosen)
            uncond = repeat_rows(encode(model, tokenizer, [""]), len(chosen))
            noise = PictureNoise([request.seed + start + row for row in range(len(chosen))])
            began = time.perf_counter()
            parts.append(finish_generator(draw_embeddings(model, cond, uncond, noise, request)))
            spent.append(1000 * (time.perf_counter() - began) / len(chosen))
    return torch.cat([part.cpu() for part in parts]), torch.tensor(spent)


def finish_generator(work: Generator[float, None, Tensor]) -> Tensor:
    """The result of work whose progress nobody watches."""
    while True:
        try:
            next(work)
        except StopIteration as finished:
            result: Tensor = finished.value
            return result

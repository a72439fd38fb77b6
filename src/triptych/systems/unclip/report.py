"""The lecture's question: which prior? Both, against the text's embedding and linear regression.

How near each comes to the true embeddings of held-out pictures, which pictures it retrieves, how
much it varies, how long it takes; and, of the built-in world, whether the decoder's pictures of its
embeddings show their prompts, with the caption dropped: else the caption answers for the prior.

Dimensions: N prompts, E width of embeddings.
"""

import math
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from triptych.config import write_json
from triptych.data.order.batches import take
from triptych.data.scene_source import SceneSource
from triptych.data.source import Source
from triptych.diffusion.denoiser import Conditioning
from triptych.diffusion.noise import PictureNoise
from triptych.scores.accuracy import NORMAL_95, wilson_interval
from triptych.scores.environment import environment
from triptych.systems.stable_diffusion.report import FIRST_PROMPT, judge
from triptych.systems.unclip.draw import draw_embeddings, draw_pictures, encode
from triptych.systems.unclip.inputs import repeat_rows
from triptych.systems.unclip.model import Unclip
from triptych.systems.unclip.pipeline import require_unclip
from triptych.systems.unclip.request import EvaluateUnclip, UnclipPictures
from triptych.train.evaluation import TrainedRun
from triptych.vision.images import to_pictures
from triptych.weights.loaded import Loaded

TOGETHER = 64  # prompts of a batch
LEARNED_FROM = 4000  # training pictures of the linear regression
VARIED = 64  # prompts whose embeddings are drawn twice, for diversity
COLUMNS = {
    "cosine_true": "cosine to the true embedding",
    "cosine_shuffled": "to another picture's",
    "cosine_text": "to the text's",
    "retrieval_at_1": "its picture is nearest",
    "diversity": "1 - cosine of two seeds",
    "milliseconds": "ms a sample",
    "whole_nearest": "whole, by the nearest object, no caption",
    "whole_nearest_caption": "the same with the caption",
}
Figure = dict[str, float]
"""`value`, and its 95 % interval `low` and `high`; of `count` values."""


def evaluate(options: EvaluateUnclip, run: TrainedRun) -> Generator[str, None, dict[str, Any]]:
    """Compare the priors on held-out captions; yields messages and returns the figures."""
    if not isinstance(run.loaded.model, Unclip):
        raise ValueError(
            f"{run.run} is a part of a DALL-E 2, whose figures are in its metrics.jsonl: evaluate "
            "the run of `triptych train unclip`, which compares its priors"
        )
    texts, images = held_out(run.loaded, run.test, options.prompts)
    yield f"{len(texts):,} held-out captions; regression on {LEARNED_FROM:,} training pictures"
    regress = fit_regression(run.loaded, run.train)
    rows: dict[str, dict[str, Figure]] = {}
    for name in ("none", "linear", *available_priors(run.loaded.model)):
        rows[name], drawn = measure(run.loaded, name, texts, images, regress, run.seed)
        if isinstance(run.test, SceneSource) and options.pictures:
            for column, captioned in (("whole_nearest", False), ("whole_nearest_caption", True)):
                count = min(options.pictures, len(texts))
                figure = judge_pictures(
                    run.loaded, texts[:count], drawn[:count], captioned, run.seed
                )
                rows[name][column] = figure
        shown = ", ".join(f"{key} {figure['value']:.3g}" for key, figure in rows[name].items())
        yield f"  {name}: {shown}"
    figures: dict[str, Any] = {"prompts": len(texts), "priors": rows}
    if isinstance(run.test, SceneSource) and options.pictures:
        count = min(options.pictures, len(texts))
        truth = judge_pictures(run.loaded, texts[:count], images[:count], False, run.seed)
        figures["true_embeddings"] = {"whole_nearest": truth}
        yield f"  true embeddings: whole_nearest {truth['value']:.3g}"
    setting = environment(run.command)
    write_json(run.folder / "priors.json", {"environment": setting} | figures)
    (run.folder / "priors.md").write_text(markdown(figures), encoding="utf-8")
    yield f"  {run.folder / 'priors.md'}"
    return figures


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
    first = FIRST_PROMPT if test.info.length is None else 0
    return embed(loaded, test, first, min(count, test.info.length or count))


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


def fit_regression(
    loaded: Loaded, train: Source
) -> Callable[[Float[Tensor, "B E"]], Float[Tensor, "B E"]]:
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


def encode_in_batches(loaded: Loaded, texts: Sequence[str]) -> Float[Tensor, "N E"]:
    """Embeddings of texts."""
    model, tokenizer = require_unclip(loaded)
    with torch.inference_mode():
        parts = [
            encode(model, tokenizer, texts[start : start + TOGETHER])["text"].cpu()
            for start in range(0, len(texts), TOGETHER)
        ]
    return torch.cat(parts)


def measure(
    loaded: Loaded,
    name: str,
    texts: Sequence[str],
    images: Float[Tensor, "N E"],
    regress: Callable[[Tensor], Tensor],
    seed: int,
) -> tuple[dict[str, Figure], Float[Tensor, "N E"]]:
    """The figures of one prior, and the embeddings that it drew."""
    text = encode_in_batches(loaded, texts)
    began = time.perf_counter()
    drawn = regress(text) if name == "linear" else draw_all(loaded, texts, name, seed)
    seconds = time.perf_counter() - began
    unit, other = F.normalize(drawn, dim=-1), images.roll(1, 0)
    again = drawn[:VARIED]
    if name not in ("none", "linear"):
        again = draw_all(loaded, texts[:VARIED], name, seed + len(texts))
    varied = 1 - (unit[: len(again)] * F.normalize(again, dim=-1)).sum(1)
    hits = int(retrieved(unit, images, texts).sum())
    low, high = wilson_interval(hits, len(texts))
    each = 1000 * seconds / len(texts)
    return {
        "cosine_true": mean_figure((unit * images).sum(1)),
        "cosine_shuffled": mean_figure((unit * other).sum(1)),
        "cosine_text": mean_figure((unit * text).sum(1)),
        "retrieval_at_1": {
            "value": hits / len(texts),
            "low": low,
            "high": high,
            "count": len(texts),
        },
        "diversity": mean_figure(varied),
        "milliseconds": {"value": each, "low": each, "high": each, "count": 1},
    }, drawn


def draw_all(loaded: Loaded, texts: Sequence[str], prior: Any, seed: int) -> Float[Tensor, "N E"]:
    """An embedding of each text by a prior, that of text i from seed + i."""
    model, tokenizer = require_unclip(loaded)
    request, parts = UnclipPictures("x", prior=prior), []
    for start in range(0, len(texts), TOGETHER):
        chosen = texts[start : start + TOGETHER]
        with torch.inference_mode():
            cond = encode(model, tokenizer, chosen)
            uncond = repeat_rows(encode(model, tokenizer, [""]), len(chosen))
            noise = PictureNoise([seed + start + row for row in range(len(chosen))])
            parts.append(finish_generator(draw_embeddings(model, cond, uncond, noise, request)))
    return torch.cat([part.cpu() for part in parts])


def finish_generator(work: Generator[float, None, Tensor]) -> Tensor:
    """The result of work whose progress nobody watches."""
    while True:
        try:
            next(work)
        except StopIteration as finished:
            result: Tensor = finished.value
            return result


def retrieved(
    drawn: Float[Tensor, "N E"], images: Float[Tensor, "N E"], texts: Sequence[str]
) -> Bool[Tensor, " N"]:
    """Whether the picture nearest to each embedding has its caption: equal captions count."""
    nearest = (drawn @ images.T).argmax(1).tolist()
    return torch.tensor([texts[row] == texts[found] for row, found in enumerate(nearest)])


def mean_figure(values: Float[Tensor, " N"]) -> Figure:
    """The mean of independent values, and its interval."""
    count, mean = len(values), float(values.mean())
    spread = NORMAL_95 * float(values.std()) / math.sqrt(count) if count > 1 else 0.0
    return {"value": mean, "low": mean - spread, "high": mean + spread, "count": count}


@torch.inference_mode()
def judge_pictures(
    loaded: Loaded,
    texts: Sequence[str],
    drawn: Float[Tensor, "N E"],
    captioned: bool,
    seed: int,
) -> Figure:
    """How many of the decoder's pictures of these embeddings show their caption, every region taken
    for its nearest object.
    """
    model, tokenizer = require_unclip(loaded)
    request, pictures = UnclipPictures("x"), []
    for start in range(0, len(texts), TOGETHER):
        chosen = list(texts[start : start + TOGETHER])
        empty: Conditioning = repeat_rows(encode(model, tokenizer, [""]), len(chosen))
        cond = encode(model, tokenizer, chosen) if captioned else empty
        noise = PictureNoise([seed + start + row for row in range(len(chosen))])
        image = drawn[start : start + TOGETHER].to(model.decoder.null_image.device)
        *_, (_, last) = draw_pictures(model, image, cond, empty, noise, request, upsample=False)
        pictures.append(to_pictures(last.float().cpu()))
    _, nearest = judge(np.concatenate(pictures), list(texts))
    share = nearest["all"].shares.get("whole")
    right = share.right if share else 0
    low, high = wilson_interval(right, len(texts))
    return {"value": right / len(texts), "low": low, "high": high, "count": len(texts)}


def markdown(figures: dict[str, Any]) -> str:
    """The comparison as one table."""
    rows = figures["priors"]
    used = [name for name in COLUMNS if any(name in row for row in rows.values())]
    lines = [
        f"# Priors on {figures['prompts']:,} held-out captions",
        "",
        " | ".join(["| prior", *(COLUMNS[name] for name in used)]) + " |",
        "|---" * (len(used) + 1) + "|",
    ]
    for name, row in rows.items():
        cells = [_cell(row[column]) if column in row else "" for column in used]
        lines.append(" | ".join([f"| {name}", *cells]) + " |")
    if "true_embeddings" in figures:
        truth = _cell(figures["true_embeddings"]["whole_nearest"])
        lines += ["", f"The decoder given true embeddings, no caption: {truth}."]
    return "\n".join([*lines, "", "In brackets the 95 % interval.", ""])


def _cell(figure: Figure) -> str:
    if figure["low"] == figure["high"]:
        return f"{figure['value']:.3g}"
    return f"{figure['value']:.3g} ({figure['low']:.3g} to {figure['high']:.3g})"

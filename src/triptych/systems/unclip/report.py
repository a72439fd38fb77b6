"""The lecture's question: which prior? Both, against the text's embedding and linear regression, by
their embeddings and, of the built-in world, by the decoder's pictures of them, with the caption
dropped: else the caption answers for the prior.

Beside it: scenes of two objects, what variations keep of a picture, and the upsamplers.

Dimensions: N prompts, E width of embeddings.
"""

from collections.abc import Generator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from triptych import runtime
from triptych.config import write_json
from triptych.data.scene_source import SceneSource
from triptych.data.sources import open_train_and_test
from triptych.scores.environment import environment
from triptych.systems.unclip.evaluation.enlarged import (
    compare_inputs,
    require_fitting,
    take_large,
)
from triptych.systems.unclip.evaluation.figures import (
    Figure,
    format_figure,
    ratio_figure,
    table,
)
from triptych.systems.unclip.evaluation.judged import (
    compare_variations,
    decode_embeddings,
    judge_pictures,
    judge_two_objects,
)
from triptych.systems.unclip.evaluation.priors import (
    LEARNED_FROM,
    available_priors,
    embed,
    first_picture,
    fit_regression,
    held_out,
    measure,
)
from triptych.systems.unclip.model import Unclip
from triptych.systems.unclip.request import EvaluateUnclip, UnclipPictures
from triptych.systems.unclip.upsampler import Upsampler
from triptych.train.evaluation import TrainedRun

COLUMNS = {
    "cosine_true": "cosine to the true embedding",
    "cosine_shuffled": "to another picture's",
    "cosine_text": "to the text's",
    "retrieval_at_1": "its picture is nearest",
    "diversity": "1 - cosine of two seeds",
    "milliseconds": "ms a sample",
    "whole_nearest": "whole, by the nearest object, no caption",
    "share_of_true": "of what true embeddings give",
    "whole_strict": "whole, strictly",
    "whole_nearest_caption": "by the nearest object, with the caption",
}
"""Of the table of priors."""
Rows = dict[str, dict[str, Figure]]


def evaluate(options: EvaluateUnclip, run: TrainedRun) -> Generator[str, None, dict[str, Any]]:
    """Measure on held-out pictures; yields messages and returns the figures."""
    if not isinstance(run.loaded.model, Unclip):
        raise ValueError(
            f"{run.run} is a part of a DALL-E 2, whose figures are in its metrics.jsonl: evaluate "
            "the run of `triptych train unclip`, which compares its priors"
        )
    model, world = run.loaded.model, isinstance(run.test, SceneSource)
    networks: list[tuple[str, Upsampler]] = [
        (f"upsampler-{number}", network)  # type: ignore[misc]
        for number, network in enumerate(model.upsamplers, 1)
    ]
    if options.upsampler:  # read before hours of work
        networks.append((options.upsampler, _load_other(options.upsampler, run, networks)))
    request = UnclipPictures("x", seed=run.seed, steps=options.steps, precision=options.precision)
    texts, images = held_out(run.loaded, run.test, options.prompts)
    chosen = runtime.precision(options.precision, model.decoder.null_image.device)
    figures: dict[str, Any] = {"prompts": len(texts), "precision": chosen}
    count, fewer = (min(each, len(texts)) for each in (options.pictures, options.more))
    if world and count:
        pictures = decode_embeddings(run.loaded, images[:count], request)
        truth = judge_pictures(pictures, texts[:count])
        figures["true_embeddings"] = truth
        yield f"  decoder, of {count:,} true embeddings: {_line(truth)}"
    yield f"  {len(texts):,} held-out captions; regression on {LEARNED_FROM:,} training pictures"
    figures["priors"] = {}
    regress = fit_regression(run.loaded, run.train)
    for name in ("none", "linear", *available_priors(model)):
        row, drawn = measure(run.loaded, name, texts, images, regress, request)
        if world and count:
            row |= _judge(run, texts, drawn[:count], fewer, request)
            ratio = ratio_figure(row["whole_nearest"], figures["true_embeddings"]["whole_nearest"])
            row |= {"share_of_true": ratio} if ratio else {}
        figures["priors"][name] = row
        yield f"  {name}: {_line(row)}"
    if world and fewer:
        yield from _compare_scenes(run, figures, fewer, request)
    if networks and options.more:
        yield from _compare_upsamplers(run, figures, networks, options.more, request)
    setting = environment(run.command)
    write_json(run.folder / "priors.json", {"environment": setting} | figures)
    (run.folder / "priors.md").write_text(markdown(figures), encoding="utf-8")
    yield f"  {run.folder / 'priors.md'}"
    return figures


def _judge(
    run: TrainedRun,
    texts: Sequence[str],
    drawn: Float[Tensor, "N E"],
    fewer: int,
    request: UnclipPictures,
) -> dict[str, Figure]:
    """The decoder's pictures of these embeddings without their captions, and of some with them."""
    row = judge_pictures(decode_embeddings(run.loaded, drawn, request), texts[: len(drawn)])
    if fewer:
        captions = texts[: min(fewer, len(drawn))]
        shown = decode_embeddings(run.loaded, drawn[: len(captions)], request, captions)
        row["whole_nearest_caption"] = judge_pictures(shown, captions)["whole_nearest"]
    return row


def _compare_scenes(
    run: TrainedRun, figures: dict[str, Any], count: int, request: UnclipPictures
) -> Generator[str, None, None]:
    """Scenes of two objects, and variations of scenes of one."""
    side = run.loaded.config.decoder.size
    if "diffusion" in figures["priors"]:
        figures["two_objects"] = judge_two_objects(run.loaded, side, count, request)
        for name, row in figures["two_objects"].items():
            yield f"  two objects, {name}: {_line(row)}"
    figures["variations"] = {}
    for scale, row in compare_variations(run.loaded, side, count, request):
        figures["variations"][scale] = row
        yield f"  variations, guidance {scale}: {_line(row)}"


def _load_other(name: str, run: TrainedRun, networks: Sequence[tuple[str, Upsampler]]) -> Upsampler:
    """Another upsampler, which does what the first one does."""
    other = run.load(name, runtime.device(), "float32").model
    if not isinstance(other, Upsampler):
        raise ValueError(f"{name} is no run of `triptych train unclip-upsampler`")
    if not networks:
        raise ValueError(f"{run.run} has no upsampler that {name} can be compared with")
    require_fitting([network for _, network in networks], other, name)
    return other


def _compare_upsamplers(
    run: TrainedRun,
    figures: dict[str, Any],
    networks: Sequence[tuple[str, Upsampler]],
    count: int,
    request: UnclipPictures,
) -> Generator[str, None, None]:
    """Each upsampler on true small pictures and on those of the part before it, which starts with
    the decoder's pictures of true embeddings.
    """
    figures["upsamplers"] = {}
    first, length = first_picture(run.test), run.test.info.length
    _, images = embed(run.loaded, run.test, first, min(count, length or count))
    pictures = torch.from_numpy(decode_embeddings(run.loaded, images, request))
    drawn = {run.loaded.config.decoder.size: pictures.permute(0, 3, 1, 2).float() / 127.5 - 1}
    for name, network in networks:
        config = network.config
        train, test = open_train_and_test(run.request.training.data, size=config.size)
        true, others = take_large(test, count), take_large(train, count)
        rows, made = compare_inputs(run.loaded, network, true, others, drawn[config.small], request)
        drawn.setdefault(config.size, made)
        figures["upsamplers"][name] = {"small": config.small, "size": config.size} | rows
        for what in ("true", "decoder"):
            yield f"  {name}, of {what} pictures: {_line(rows[what])}"


def _line(row: dict[str, Figure]) -> str:
    return ", ".join(f"{name} {figure['value']:.3g}" for name, figure in row.items())


def markdown(figures: dict[str, Any]) -> str:
    """All comparisons as tables."""
    lines = [f"# Priors on {figures['prompts']:,} held-out captions", ""]
    lines += _table(figures["priors"], COLUMNS, "prior")
    if "true_embeddings" in figures:
        truth = figures["true_embeddings"]
        lines += [
            "The decoder given true embeddings, no caption: "
            f"{format_figure(truth['whole_nearest'])}; strictly "
            f"{format_figure(truth['whole_strict'])}.",
            "",
        ]
    for key, title, first in (
        ("two_objects", "Scenes of two objects, no caption", "embeddings"),
        ("variations", "What variations keep of scenes of one object", "guidance"),
    ):
        if key in figures:
            lines += [f"## {title}", "", *_table(figures[key], {}, first)]
    for name, rows in figures.get("upsamplers", {}).items():
        title = f"## {name}: {rows['small']} to {rows['size']} pixels"
        shown = {what: row for what, row in rows.items() if isinstance(row, dict)}
        lines += [title, "", *_table(shown, {}, "pictures")]
    return "\n".join([*lines, f"In {figures['precision']}. In brackets the 95 % interval.", ""])


def _table(rows: Rows, titles: dict[str, str], first: str) -> list[str]:
    """A table with a column for each figure of any row; those with titles in their order."""
    there = dict.fromkeys(name for row in rows.values() for name in row)
    names = [name for name in titles or there if name in there]
    return table(
        [first, *(titles.get(name, name) for name in names)],
        [
            [key, *(format_figure(row[name]) if name in row else "" for name in names)]
            for key, row in rows.items()
        ],
    )

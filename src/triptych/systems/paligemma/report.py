"""Evaluates a trained run: on scenes captions, questions, boxes and masks by the exact judge; on
other data the perplexity of held-out captions, with their picture, another one, and none.
"""

from collections.abc import Generator, Mapping
from typing import Any, cast

import torch

from triptych.config import write_json
from triptych.data.captions import batch_texts
from triptych.data.order.batches import take_first
from triptych.data.scene_source import SceneSource
from triptych.scores.environment import environment
from triptych.systems.paligemma.ask_all import ask_all
from triptych.systems.paligemma.examples import (
    CAPTION,
    AskedScenes,
    Example,
    choose_tasks,
    read_pair,
)
from triptych.systems.paligemma.held_out import FEW, caption_perplexity
from triptych.systems.paligemma.pipeline import require_eye
from triptych.systems.paligemma.request import Answers, EvaluateVlm
from triptych.systems.paligemma.scene_report import SceneJudge
from triptych.text.templates import template_set
from triptych.train.evaluation import TrainedRun

SHOWN = 25
"""Captions that are shown as text."""


def evaluate(options: EvaluateVlm, run: TrainedRun) -> Generator[str, None, dict[str, Any]]:
    """The figures of a run; yields messages and returns them."""
    if isinstance(run.test, SceneSource):
        figures = yield from _judge(options, run, run.test)
    else:
        figures = yield from _measure(options, run)
    parameters = sum(p.numel() for p in run.loaded.model.parameters())
    figures = {"parameters": parameters, **figures}
    setting = environment(run.command)
    write_json(run.folder / "vlm.json", {"environment": setting} | figures)
    (run.folder / "vlm.md").write_text(markdown(figures), encoding="utf-8")
    yield f"  {run.folder / 'vlm.md'}"
    return figures


def _judge(
    options: EvaluateVlm, run: TrainedRun, test: SceneSource
) -> Generator[str, None, dict[str, Any]]:
    """The figures on scenes, of the tasks that the run learned."""
    model, tokenizer = require_eye(run.loaded)
    device = next(run.loaded.model.parameters()).device
    judge = SceneJudge(model, tokenizer, AskedScenes(test), options.pictures, device)
    figures: dict[str, Any] = {"pictures": options.pictures}
    answers: Answers = run.request.answers  # type: ignore[attr-defined]
    tasks = choose_tasks(test, answers)
    if "caption" in tasks:
        figures["captions"] = judge.captions(answers.length)
        yield f"captions true: {_shown(figures['captions'])}"
    if "answer" in tasks:
        figures["questions"] = judge.questions()
        for kind, figure in figures["questions"].items():
            yield f"questions exact, {kind}: {_shown(figure)}"
    if "detect" in tasks:
        found = figures["detection"] = judge.boxes()
        yield f"boxes: AP50 {found['ap50']:.3f}, those of the next picture {found['floor']:.3f}"
    if "segment" in tasks:
        found = figures["masks"] = judge.masks(run.loaded.model.masks)  # type: ignore[arg-type]
        yield (
            f"masks: mean overlap {found['miou']:.3f}, true codes {found['by_true_codes']:.3f}, "
            f"filled boxes {found['floor']:.3f}"
        )
    return figures


def _measure(options: EvaluateVlm, run: TrainedRun) -> Generator[str, None, dict[str, Any]]:
    """Perplexities, and some captions beside those that were given."""
    model, tokenizer = require_eye(run.loaded)
    device = next(run.loaded.model.parameters()).device
    answers: Answers = run.request.answers  # type: ignore[attr-defined]
    templates = template_set(answers.templates)
    measure = caption_perplexity(
        run.test, tokenizer, answers.length, templates, device, options.pictures
    )
    figures: dict[str, Any] = dict(measure(cast(Any, run.loaded.model)))
    for name, value in figures.items():
        yield f"{name}: {value:.2f}"
    batch = take_first(run.test, SHOWN)
    if run.test.info.asked:
        given = batch["caption"]
        pairs = [read_pair(t if isinstance(t, str) else t[0]) for t in given]
    else:
        torch.manual_seed(run.seed)  # draws among sentences of class names
        texts = batch_texts(run.test, templates)(batch)
        pairs = [Example(CAPTION, t if isinstance(t, str) else t[0]) for t in texts]
    images = batch["image"].expand(-1, 3, -1, -1).to(device)
    rows: list[str] = []
    for begin in range(0, len(images), FEW):
        part = slice(begin, begin + FEW)
        prefixes = [pair.prefix for pair in pairs[part]]
        written = ask_all(model, tokenizer, images[part], prefixes, answers.length)
        rows += [answer.text.strip() for answer in written]
    figures["answers"] = [
        {"prefix": pair.prefix, "given": pair.suffix, "written": text}
        for pair, text in zip(pairs, rows, strict=True)
    ]
    for row in figures["answers"][:3]:
        yield f"  {row['written']}"
    return figures


def _shown(figure: Mapping[str, Any]) -> str:
    interval = f"{figure['share']:.1%} ({figure['low']:.1%} to {figure['high']:.1%})"
    return f"{interval} of {figure['of']:,}, floor {figure['floor']:.1%}"


def markdown(figures: Mapping[str, Any]) -> str:
    """The figures as a page."""
    rows = ["# Evaluation\n", f"{figures['parameters']:,} parameters\n"]
    if "perplexity" in figures:
        rows += ["| captions with | perplexity |", "|---|---|"]
        names = {"perplexity": "their picture", "perplexity_shuffled": "another picture"}
        for name, title in {**names, "perplexity_blind": "no picture"}.items():
            rows.append(f"| {title} | {figures[name]:.2f} |")
        rows += ["", "| written | given |", "|---|---|"]
        rows += [f"| {row['written']} | {row['given']} |" for row in figures["answers"]]
        return "\n".join(rows) + "\n"
    rows += [f"{figures['pictures']:,} held-out scenes\n", "| | | floor |", "|---|---|---|"]
    if "captions" in figures:
        figure = figures["captions"]
        rows.append(f"| captions true | {_shares(figure)} | {figure['floor']:.1%} |")
    for kind, figure in figures.get("questions", {}).items():
        rows.append(f"| questions exact, {kind} | {_shares(figure)} | {figure['floor']:.1%} |")
    if "detection" in figures:
        figure = figures["detection"]
        rows.append(f"| boxes, AP50 | {figure['ap50']:.3f} | {figure['floor']:.3f} |")
    if "masks" in figures:
        figure = figures["masks"]
        rows.append(f"| masks, mean overlap | {figure['miou']:.3f} | {figure['floor']:.3f} |")
        rows.append(f"| masks by their true codes | {figure['by_true_codes']:.3f} | |")
    return "\n".join(rows) + "\n"


def _shares(figure: Mapping[str, Any]) -> str:
    return f"{figure['share']:.1%} ({figure['low']:.1%} to {figure['high']:.1%})"

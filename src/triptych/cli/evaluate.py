"""`triptych evaluate RUN`: a judge, its numbers, and the figures of the system."""

import json
import shlex
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from triptych.cli.main import Interrupt, say, stop
from triptych.config import to_json, write_json
from triptych.diffusion.names import parse_sampler
from triptych.train.recipes.presets import PRESETS
from triptych.train.recipes.requests import (
    TrainClassifier,
    TrainClip,
    TrainCvae,
    TrainRequest,
    TrainSiglip,
    TrainTextToImage,
)

if TYPE_CHECKING:
    from torch import Tensor

    from triptych.data.source import Source
    from triptych.systems.class_to_image.report import TrainJudge
    from triptych.systems.classifier.model import Classifier
    from triptych.weights.loaded import Loaded

Result = TypeVar("Result")
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)  # of a text-to-image model's curve


@dataclass(frozen=True)
class EvaluateRun:
    """Judge a trained conditional VAE, GAN, diffusion or text-to-image model, a CLIP or SigLIP:
    numbers, tables and plots in RUN/evaluation.
    """

    run: tyro.conf.Positional[Path]
    """A run folder."""
    samples_per_class: int = 1000
    judge: Path | None = None
    """A classifier's run folder; by default one beside RUN, trained there if it is missing."""
    judge_steps: int = 0
    """Steps of a judge that has to be trained; 0 is what its preset says."""
    score: bool = True
    """Also train classifiers on samples and on real pictures: the classification accuracy score."""
    likelihood_samples: int = 100
    """Importance samples for the likelihood of a VAE."""
    likelihood_pictures: int = 1000
    """Test pictures that the likelihood is estimated on."""
    guidance: float | None = None
    """Diffusion: the guidance that samples are drawn with; None takes the model's."""
    prompts: int = 500
    """Text-to-image: captions of held-out pictures that are drawn."""
    sampler: str = ""
    """Text-to-image: what draws them, by any name that `generate` takes; empty: the model's."""
    steps: int = 0
    """Text-to-image: of the sampler; 0 is what the model's configuration says."""
    clip: str = ""
    """Text-to-image: a CLIP or SigLIP whose eyes compare drawn with real pictures and with texts.
    """
    curves: bool = False
    """Diffusion: also draw quality against guidance, and against network calls for every sampler.
    Takes long: 78 settings, `curve_samples` and a half pictures each. Text-to-image: quality
    against guidance, all prompts at each of six.
    """
    curve_samples: int = 200
    """Pictures that each point of the curves is judged on."""
    seed: int = 0
    out: Path | None = None
    """Folder for the report; by default RUN/evaluation."""
    json: bool = False
    """The report as one JSON object on stdout."""

    def __post_init__(self) -> None:
        for name in (
            "samples_per_class",
            "likelihood_samples",
            "likelihood_pictures",
            "curve_samples",
            "prompts",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, not {self.steps}")
        if self.sampler:
            parse_sampler(self.sampler)


def main(arguments: list[str]) -> int:
    request = tyro.cli(EvaluateRun, args=arguments, prog="triptych evaluate")
    from triptych import runtime
    from triptych import training as runs
    from triptych.data.sources import open_train_and_test
    from triptych.loading import load
    from triptych.systems.wgan import report as conditional_gan
    from triptych.systems.wgan.model import Generator
    from triptych.train.conditioning import conditioning
    from triptych.train.curves import draw_curves
    from triptych.train.journal import rows

    trained = runs.stored(request.run)
    if trained is None:
        raise ValueError(f"{request.run} is no run folder: it has no run.json")
    loaded = load(str(request.run), runtime.device(), "float32")  # figures are to be compared
    train, test = open_train_and_test(trained.training.data, size=trained.training.size or None)
    folder = request.out or request.run / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["triptych", "evaluate", request.run.name, *arguments[1:]])
    draw_curves(rows(request.run / "metrics.jsonl"), folder / "curves.png")
    found: dict[str, Any] = {}
    if isinstance(trained, TrainCvae):
        given = conditioning(trained.condition, train, quadrants=trained.quadrants)
        found["vae"] = _vae(request, loaded, train, test, given.of, folder, command)
    kind = loaded.card.config.get("condition")
    if loaded.card.model == "classifier":
        say("a classifier's test accuracy is in the last row of its metrics.jsonl")
        return 0
    if isinstance(trained, TrainTextToImage):
        found["pictures"] = _pictures(request, loaded, train, test, folder, command)
        say(f"report: {folder}")
        if request.json:
            print(json.dumps(found))
        return 0
    if isinstance(trained, TrainClip | TrainSiglip):
        found["towers"] = _towers(loaded, test, trained.towers.templates, folder, command)
        say(f"report: {folder}")
        if request.json:
            print(json.dumps(found))
        return 0
    if kind == "label" and isinstance(loaded.model, Generator):
        conditional_gan.draw_figures(loaded.model, test.info.classes, folder, seed=request.seed)
    if kind == "label":
        found["classes"] = _classes(request, trained, loaded, train, test, folder, command)
    else:
        say(f"conditioned on {kind}: there is no class for a judge to check")
    say(f"report: {folder}")
    if request.json:
        print(json.dumps(found))
    return 0


def _pictures(
    request: EvaluateRun,
    loaded: "Loaded",
    train: "Source",
    test: "Source",
    folder: Path,
    command: str,
) -> list[dict[str, Any]]:
    from triptych.diffusion.sampling import check_draws_batches
    from triptych.loading import load
    from triptych.systems.stable_diffusion.model import StableDiffusion
    from triptych.systems.stable_diffusion.report import evaluate_text_to_image, write_text_to_image
    from triptych.systems.stable_diffusion.training.held_out_prompts import drawn

    model, tokenizers = loaded.model, loaded.tokenizers
    assert isinstance(model, StableDiffusion)
    own = model.config.sampling.guidance if request.guidance is None else request.guidance
    sampler, spacing = parse_sampler(request.sampler) if request.sampler else ("", "")
    check_draws_batches(sampler)
    reports = _told(
        evaluate_text_to_image(
            lambda texts, guidance, seed: drawn(
                model,
                tokenizers,
                texts,
                guidance=guidance,
                sampler=sampler,
                steps=request.steps,
                spacing=spacing or None,  # type: ignore[arg-type]
                first_seed=seed,
            ),
            train,
            test,
            count=request.prompts,
            guidance=GUIDANCE if request.curves else (own,),
            clip=load(request.clip, dtype="float32") if request.clip else None,
            seed=request.seed,
        )
    )
    for path in write_text_to_image(reports, folder, command=command):
        say(f"  {path}")
    for report in reports:
        parts = [f"guidance {report.guidance:g}"]
        if report.judged:
            parts += [f"{name} {s.value:.1%}" for name, s in report.judged["all"].items()]
        near = report.nearest.get("all")
        if near is not None and near.distances is not None:
            parts += [
                f"nearest object's {name} {share.right} of {share.of}"
                for name, share in near.shares.items()
                if name in ("colour", "shape")
            ]
            parts += [f"distance {near.distances[1]:.3f} (judge {near.limit:.3f})"]
        if report.likeness is not None:
            alike = report.likeness
            kid, floor = 1000 * alike.kernel.value, 1000 * alike.floor.value
            parts += [
                f"KID x 1000 {kid:.3g}, real {floor:.3g}",
                f"CLIP score {alike.alignment.score:.3f}, real {alike.real.score:.3f}",
            ]
        say(", ".join(parts))
    return [to_json(report) for report in reports]


def _towers(
    loaded: "Loaded", test: "Source", templates: str, folder: Path, command: str
) -> dict[str, Any]:
    from triptych.scores.environment import environment
    from triptych.systems.two_towers.report import evaluate_two_towers
    from triptych.text.templates import TEMPLATES

    report = evaluate_two_towers(loaded, test, TEMPLATES[templates])
    numbers = to_json(report)
    write_json(folder / "towers.json", {"environment": environment(command)} | numbers)
    if report.zero_shot is not None:
        named = report.zero_shot
        notes = f"{named.value:.1%} ({named.low:.1%} to {named.high:.1%})"
        say(f"zero-shot accuracy over the classes {notes}, chance {named.chance:.1%}")
    if report.recall is not None:
        for what, found in (
            ("a picture by its text", report.recall.text_to_image),
            ("a text by its picture", report.recall.image_to_text),
        ):
            shares = ", ".join(f"@{k} {share:.1%}" for k, share in found.at.items())
            say(
                f"recall of {what} among {found.among:,}: {shares}, chance @1 {found.chance[1]:.2%}"
            )
    return numbers


def _vae(
    request: EvaluateRun,
    loaded: "Loaded",
    train: "Source",
    test: "Source",
    told: Callable[[Any], "Tensor | None"],
    folder: Path,
    command: str,
) -> dict[str, Any]:
    from triptych.scores.environment import environment
    from triptych.systems.cvae.model import Cvae
    from triptych.systems.cvae.report import draw_figures, evaluate_vae

    assert isinstance(loaded.model, Cvae)
    report, codes = _told(
        evaluate_vae(
            loaded.model,
            train,
            test,
            told,
            samples=request.likelihood_samples,
            nll_limit=request.likelihood_pictures,
            seed=request.seed,
        )
    )
    draw_figures(loaded.model, test, told, codes, folder, seed=request.seed)
    numbers = to_json(report)
    write_json(folder / "vae.json", {"environment": environment(command)} | numbers)
    terms = f"-({report.reconstruction:.2f} + {report.kl:.2f})"
    say(f"evidence lower bound {report.elbo:.2f} = {terms} nats")
    say(f"-log likelihood {report.nll:.2f} nats ({report.nll_samples} samples)")
    for name, leak in (("means", report.leak_means), ("samples", report.leak_samples)):
        if leak:
            say(f"class read from posterior {name}: {leak.value:.1%}, chance {leak.chance:.1%}")
    return numbers


def _classes(
    request: EvaluateRun,
    trained: TrainRequest,
    loaded: "Loaded",
    train: "Source",
    test: "Source",
    folder: Path,
    command: str,
) -> dict[str, Any]:
    from triptych import runtime
    from triptych.requests import ClassToImage
    from triptych.systems.class_to_image.pipeline import DIFFUSION, diffused, draw
    from triptych.systems.class_to_image.report import evaluate_class_conditional
    from triptych.systems.class_to_image.report_files import write_report

    side = min(train.info.shape[:2])
    judge = _judge(request, trained, side)

    def sample(labels: "Tensor", seed: int) -> "Tensor":
        seeds = range(seed, seed + len(labels))
        if loaded.card.model == DIFFUSION:
            asked = ClassToImage(guidance=request.guidance)
            *_, (_, last) = diffused(asked, loaded, labels, seeds)
            return last.x.float().cpu()
        return draw(loaded, labels, runtime.noise((loaded.config.latent,), seeds))

    report = _told(
        evaluate_class_conditional(
            sample,
            train,
            test,
            judge,
            train_judge=_scored(request, side) if request.score else None,
            samples_per_class=request.samples_per_class,
            seed=request.seed,
        )
    )
    write_report(report, folder, command=command)
    overall = report.accuracy.overall
    real = f"judge on real pictures {report.judge.value:.2%}"
    say(f"conditional accuracy {overall.value:.2%} ({real})")
    kernel, floor = report.distance.kernel, report.floor.kernel
    say(f"KID x 1000 {1000 * kernel.value:.3g}, training against training {1000 * floor.value:.3g}")
    numbers = to_json(report)
    del numbers["pairs"]
    if request.curves and loaded.card.model == DIFFUSION:
        numbers["curves"] = _curves(request, loaded, train, test, judge, folder, command)
    return numbers


def _curves(
    request: EvaluateRun,
    loaded: "Loaded",
    train: "Source",
    test: "Source",
    judge: "Classifier",
    folder: Path,
    command: str,
) -> dict[str, Any]:
    from triptych.requests import ClassToImage
    from triptych.systems.class_to_image.diffusion_curves import draw_curves_of, write_curves
    from triptych.systems.class_to_image.pipeline import diffused

    def draw(labels: "Tensor", seed: int, sampler: str, steps: int, guidance: float) -> "Tensor":
        asked = ClassToImage(sampler=sampler, steps=steps, guidance=guidance)
        *_, (_, last) = diffused(asked, loaded, labels, range(seed, seed + len(labels)))
        return last.x.float().cpu()

    config = loaded.config
    curves = _told(
        draw_curves_of(
            draw,
            train,
            test,
            judge,
            samples=request.curve_samples,
            sampler=config.sampler,
            steps=config.steps,
            guidance=config.guidance,
            seed=request.seed,
        )
    )
    for path in write_curves(curves, folder, command=command):
        say(f"  {path}")
    return to_json(curves)


def _judge(request: EvaluateRun, trained: TrainRequest, side: int) -> "Classifier":
    """The classifier that was named, or the one that belongs to this data, trained if need be."""
    from triptych import training as runs

    training = trained.training
    size = f"-{training.size}" if training.size else ""
    beside = request.run.resolve().parent / f"judge-{Path(training.data).stem}{size}"
    where = request.judge or beside
    before = runs.stored(where)
    if before is None and request.judge:
        raise ValueError(f"{where} is no run folder of a classifier")
    judge = before or _classifier(training.data, training.size, request.judge_steps, side)
    if not isinstance(judge, TrainClassifier):
        raise ValueError(f"{where} is a {runs.name(judge)} run; a judge is a classifier")
    return _trained(judge, where, "judge")


def _scored(request: EvaluateRun, side: int) -> "TrainJudge":
    """Trains a classifier like the judge on given pictures: for the classification accuracy
    score.
    """
    import numpy as np

    from triptych.vision.images import to_pictures

    def train(images: "Tensor", labels: "Tensor") -> "Classifier":
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "pictures.npz"
            x, y = to_pictures(images), labels.numpy()
            np.savez(data, x_train=x, y_train=y, x_test=x[:100], y_test=y[:100])
            judge = _classifier(str(data), 0, request.judge_steps, side)
            return _trained(judge, Path(folder) / "run", "classifier")

    return train


def _classifier(data: str, size: int, steps: int, side: int) -> TrainClassifier:
    """The preset for pictures of this side: large ones are shifted a little while it learns."""
    preset = PRESETS["classifier"]["mnist" if side >= 16 else "digits"]
    assert isinstance(preset, TrainClassifier)
    training = replace(preset.training, data=data, size=size, steps=steps or preset.training.steps)
    return replace(preset, training=training)


def _trained(request: TrainClassifier, run: Path, name: str) -> "Classifier":
    """Train a classifier, or continue it, or take it as it is."""
    from triptych import training as runs
    from triptych.loading import load
    from triptych.systems.classifier.model import Classifier

    steps = runs.train(request, run)
    with Interrupt() as interrupt:
        for report in steps:
            if report.row:
                accuracy = report.terms["accuracy"]
                say(
                    f"  {name}: step {report.step}/{request.training.steps} accuracy {accuracy:.3f}"
                )
            if interrupt.signal:
                steps.close()
                stop(interrupt.signal)
    model = load(str(run)).model
    assert isinstance(model, Classifier)
    return model


def _told(work: Generator[str, None, Result]) -> Result:
    """Runs a generator to its result, saying what it does."""
    while True:
        try:
            say(f"  {next(work)}")
        except StopIteration as done:
            result: Result = done.value
            return result

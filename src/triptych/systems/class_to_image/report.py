"""Evaluation of a trained run of a class-conditional model, for `triptych evaluate`."""

import io
import tempfile
import zipfile
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from triptych import runtime
from triptych.fields import to_json
from triptych.systems.class_to_image.diffusion_curves import compute_curves
from triptych.systems.class_to_image.judge import TrainJudge, evaluate_class_conditional
from triptych.systems.class_to_image.pipeline import DIFFUSION, sample_diffusion, sample_from_noise
from triptych.systems.class_to_image.report_files import write_curves, write_report
from triptych.systems.class_to_image.request import ClassToImage, EvaluateClasses
from triptych.systems.classifier.model import Classifier
from triptych.systems.classifier.request import PRESETS, TrainClassifier
from triptych.train.evaluation import TrainedRun, indent
from triptych.vision.images import to_pictures


def evaluate(options: EvaluateClasses, run: TrainedRun) -> Generator[str, None, dict[str, Any]]:
    """Evaluates samples of every class, and with `curves` a diffusion model at many settings.

    Yields messages and returns the numbers, which are also written to `run.folder`.

    Raises:
        ValueError: `judge` is no run folder of a classifier.
    """
    condition = run.loaded.card.config.get("condition")
    if condition != "label":
        yield f"conditioned on {condition}: there are no classes to judge"
        return {}
    judge = _judge(options, run)

    def sample(labels: Tensor, seed: int) -> Tensor:
        if run.loaded.card.model == DIFFUSION:
            return _denoise(run, ClassToImage(guidance=options.guidance), labels, seed)
        noise = runtime.noise((run.loaded.config.latent,), range(seed, seed + len(labels)))
        return sample_from_noise(run.loaded, labels, noise)

    report = yield from indent(
        evaluate_class_conditional(
            sample,
            run.train,
            run.test,
            judge,
            train_judge=_train_on_samples(options, run) if options.score else None,
            samples_per_class=options.samples_per_class,
            seed=run.seed,
        )
    )
    write_report(report, run.folder, command=run.command)
    overall = report.accuracy.overall
    real = f"judge on real pictures {report.judge.value:.2%}"
    yield f"conditional accuracy {overall.value:.2%} ({real})"
    kid, floor = 1000 * report.distance.kernel.value, 1000 * report.floor.kernel.value
    yield f"KID x 1000 {kid:.3g}, training against training {floor:.3g}"
    numbers = to_json(report)
    del numbers["pairs"]
    if options.curves and run.loaded.card.model == DIFFUSION:
        numbers["curves"] = yield from _curves(options, run, judge)
    return {"classes": numbers}


def _denoise(run: TrainedRun, request: ClassToImage, labels: Tensor, seed: int) -> Tensor:
    """Pictures of the run's diffusion model; picture i is seeded seed + i."""
    seeds = range(seed, seed + len(labels))
    *_, (_, last) = sample_diffusion(request, run.loaded, labels, seeds)
    return last.x.float().cpu()


def _curves(
    options: EvaluateClasses, run: TrainedRun, judge: Classifier
) -> Generator[str, None, dict[str, Any]]:
    def sample(labels: Tensor, seed: int, sampler: str, steps: int, guidance: float) -> Tensor:
        request = ClassToImage(sampler=sampler, steps=steps, guidance=guidance)
        return _denoise(run, request, labels, seed)

    config = run.loaded.config
    curves = yield from indent(
        compute_curves(
            sample,
            run.train,
            run.test,
            judge,
            samples=options.curve_samples,
            sampler=config.sampler,
            steps=config.steps,
            guidance=config.guidance,
            seed=run.seed,
        )
    )
    for path in write_curves(curves, run.folder, command=run.command):
        yield f"  {path}"
    numbers: dict[str, Any] = to_json(curves)
    return numbers


def _judge(options: EvaluateClasses, run: TrainedRun) -> Classifier:
    """The given classifier, or one for this data beside the run, trained if it is missing."""
    training = run.request.training
    size = f"-{training.size}" if training.size else ""
    beside = run.run.resolve().parent / f"judge-{Path(training.data).stem}{size}"
    folder = Path(options.judge) if options.judge else beside
    if options.judge and not (folder / "run.json").exists():
        raise ValueError(f"{folder} is no run folder of a classifier")
    request = _classifier(training.data, training.size, options.judge_steps, run)
    model = run.train_model(request, folder, "judge").model
    if not isinstance(model, Classifier):
        raise ValueError(f"{folder} is not a run of a classifier, which a judge has to be")
    return model


def _train_on_samples(options: EvaluateClasses, run: TrainedRun) -> TrainJudge:
    """A function that trains a classifier like the judge on given pictures."""

    def train(images: Tensor, labels: Tensor) -> Classifier:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "pictures.npz"
            x, y = to_pictures(images), labels.numpy()
            write_arrays(data, x_train=x, y_train=y, x_test=x[:100], y_test=y[:100])
            request = _classifier(str(data), 0, options.judge_steps, run)
            model = run.train_model(request, Path(folder) / "run", "classifier").model
            assert isinstance(model, Classifier)
            return model

    return train


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Arrays as npz; unlike numpy's function also where the clock stands before 1980."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in arrays.items():
            content = io.BytesIO()
            np.save(content, values)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())


def _classifier(data: str, size: int, steps: int, run: TrainedRun) -> TrainClassifier:
    """The preset for pictures of this size; large ones are shifted as augmentation."""
    side = min(run.train.info.shape[:2])
    preset = PRESETS["mnist" if side >= 16 else "digits"]
    training = replace(preset.training, data=data, size=size, steps=steps or preset.training.steps)
    return replace(preset, training=training)

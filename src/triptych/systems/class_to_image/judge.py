"""Evaluation of a class-conditional generator with a classifier as the judge.

Two separate questions: do the pictures show the requested class, and is their distribution that of
real pictures? Every number comes with the same number of real pictures.

Dimensions: N samples, C channels, H height, W width, D features, P pairs of neighbours.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from triptych.data.source import Source
from triptych.scores.accuracy import (
    Accuracy,
    ClassificationScore,
    ConditionalAccuracy,
    accuracy,
    conditional_accuracy,
)
from triptych.scores.diversity import diversity
from triptych.scores.fid import Estimate, frechet_estimate, kernel_distance
from triptych.scores.memorisation import Memorisation, memorisation, nearest_neighbours
from triptych.scores.prdc import Prdc, prdc
from triptych.systems.classifier.model import Classifier
from triptych.vision.images import to_pictures

Sample = Callable[[Int[Tensor, " N"], int], Float[Tensor, "N C H W"]]
"""(labels, seed) to pictures in [-1, 1]; picture i depends on seed + i alone."""
TrainJudge = Callable[[Float[Tensor, "N C H W"], Int[Tensor, " N"]], Classifier]
"""Trains a classifier on pictures and labels; returns it in evaluation mode."""

BATCH = 500  # pictures of one forward pass
MIN_SIZE = 10  # smallest set of pictures that is compared
PAIRS = 12  # samples shown beside their nearest training picture


@dataclass(frozen=True)
class Distances:
    """Distances of a set of pictures from training pictures, in the judge's features."""

    frechet: Estimate
    kernel: Estimate
    count: int
    """Pictures in the set."""
    reference: int
    """Training pictures it is compared with."""


@dataclass(frozen=True)
class ClassReport:
    """Samples and real pictures of one class. None where there are too few."""

    name: str
    accuracy: Accuracy
    samples: Distances | None
    floor: Distances | None
    """As many other training pictures of the class."""
    diversity: float | None
    """Mean distance of two samples over that of two real test pictures, in the judge's features."""


@dataclass(frozen=True, eq=False)
class ClassConditionalReport:
    """The numbers of a class-conditional generator."""

    source: str
    samples: int
    samples_per_class: int
    seed: int
    judge: Accuracy
    """Accuracy of the judge on real test pictures: the ceiling for samples."""
    accuracy: ConditionalAccuracy
    distance: Distances
    """Samples against training pictures."""
    held_out: Distances | None
    """Test pictures against the same training pictures; None where there are too few."""
    floor: Distances
    """As many other training pictures against the same ones: the value for perfect samples."""
    prdc: Prdc
    prdc_floor: Prdc
    """The same for those other training pictures."""
    score: ClassificationScore | None
    pixels: Memorisation
    """Distance to the nearest training picture in pixels, each in [-1, 1]."""
    features: Memorisation
    """The same in the judge's features."""
    training: int
    """Training pictures that were searched for neighbours."""
    classes: tuple[ClassReport, ...]
    pairs: UInt8[np.ndarray, "P 2 H W C"] = field(repr=False)
    """The samples closest to a training picture in pixels, closest first, each beside it."""


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Pictures as bytes with their labels, and the judge's features and predictions."""

    pictures: UInt8[Tensor, "N C H W"]
    label: Int[Tensor, " N"]
    features: Float[Tensor, "N D"]
    predicted: Int[Tensor, " N"]

    def first(self, count: int) -> "PictureSet":
        return PictureSet(
            self.pictures[:count], self.label[:count], self.features[:count], self.predicted[:count]
        )


def evaluate_class_conditional(
    sample: Sample,
    train: Source,
    test: Source,
    judge: Classifier,
    *,
    train_judge: TrainJudge | None = None,
    samples_per_class: int = 1000,
    limit: int = 60_000,
    queries: int = 1000,
    seed: int = 0,
) -> Generator[str, None, ClassConditionalReport]:
    """Yields messages about progress and returns the report.

    Samples are rounded to bytes first, as if saved. Training pictures are split in two halves:
    samples are compared with the first, in the class proportions of the second, which gives the
    floor. `limit` bounds the pictures read from each source, `queries` the samples whose nearest
    neighbours are searched. Without `train_judge` there is no classification score. Runs on the
    judge's device.

    Raises:
        ValueError: the sources have no classes, or not the classes and size of the judge.
    """
    classes = train.info.classes
    _check(train, test, judge)
    yield "reading real pictures"
    real = judge_pictures(judge, *read_pictures(train, limit, seed))
    held_out = judge_pictures(judge, *read_pictures(test, limit, seed + 1))
    count = samples_per_class * len(classes)
    samples = yield from _draw_samples(sample, judge, len(classes), count, seed)
    sets = _match_sets(train.info.name, samples, real, held_out)
    yield f"distances between sets of {len(sets.reference):,} pictures"
    distance = _distances(sets.samples, sets.reference)
    floor = _distances(sets.other, sets.reference)
    unseen = None
    if len(sets.held_out) >= MIN_SIZE:
        unseen = _distances(sets.held_out[: len(sets.reference)], sets.reference)
    yield "neighbourhoods: precision, recall, density, coverage"
    shares, share_floor = prdc(sets.reference, sets.samples), prdc(sets.reference, sets.other)
    yield "each class"
    conditional = conditional_accuracy(samples.predicted, samples.label, len(classes))
    rows = _class_reports(classes, conditional, samples, real, held_out)
    yield f"nearest of {len(real.label):,} training pictures"
    pixels, features, pairs = _memorisation(samples.first(queries), held_out.first(queries), real)
    score = None
    if train_judge is not None:
        score = yield from _classification_score(train_judge, samples, real, held_out)
    return ClassConditionalReport(
        source=train.info.name,
        samples=count,
        samples_per_class=samples_per_class,
        seed=seed,
        judge=accuracy(held_out.predicted, held_out.label),
        accuracy=conditional,
        distance=distance,
        held_out=unseen,
        floor=floor,
        prdc=shares,
        prdc_floor=share_floor,
        score=score,
        pixels=pixels,
        features=features,
        training=len(real.label),
        classes=rows,
        pairs=pairs,
    )


def _draw_samples(
    sample: Sample, judge: Classifier, classes: int, count: int, seed: int
) -> Generator[str, None, PictureSet]:
    """Samples of all classes in turn, shuffled."""
    pictures = []
    labels = torch.arange(count) % classes
    for start in range(0, count, BATCH):
        yield f"drawing pictures: {start:,} of {count:,}"
        images = to_pictures(sample(labels[start : start + BATCH], seed + start))
        pictures.append(torch.from_numpy(images).permute(0, 3, 1, 2))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))  # for jackknives
    return judge_pictures(judge, torch.cat(pictures)[order], labels[order])


class _Sets(NamedTuple):
    """Features of the sets that are compared."""

    samples: Float[Tensor, "N D"]
    reference: Float[Tensor, "N D"]  # the first half of the training pictures
    other: Float[Tensor, "N D"]  # the second half
    held_out: Float[Tensor, "M D"]  # test pictures


def _match_sets(name: str, samples: PictureSet, real: PictureSet, held_out: PictureSet) -> _Sets:
    half = len(real.label) // 2  # two disjoint sets of training pictures
    labels = real.label[half:]
    matched = match_classes(samples, labels)
    size = min(len(matched), half)
    if size < MIN_SIZE:
        raise ValueError(
            f"{name}: only {size} samples match the classes of half of the training pictures; "
            f"{MIN_SIZE} are needed: draw more samples per class or use more training pictures"
        )
    reference, other = real.features[:size], real.features[half : half + size]
    return _Sets(matched, reference, other, match_classes(held_out, labels))


def _check(train_source: Source, test_source: Source, judge: Classifier) -> None:
    train, test = train_source.info, test_source.info
    if not train.classes or train.classes != test.classes:
        raise ValueError(
            f"{train.name}: training and test pictures need the same classes, at least one; "
            f"they have {len(train.classes)} and {len(test.classes)}"
        )
    config = judge.config
    size = (config.height, config.width, config.channels)
    if config.groups[0] != len(train.classes) or size != train.shape or size != test.shape:
        raise ValueError(
            f"the judge reads {config.groups[0]} classes from pictures of {size}; {train.name} has "
            f"{len(train.classes)} and {train.shape}: train a judge on this source"
        )


def read_pictures(source: Source, limit: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures and labels of a source in random order, at most `limit`."""
    generator = torch.Generator().manual_seed(seed)
    length = source.info.length or limit
    indices = torch.randperm(length, generator=generator)[:limit].tolist()
    pictures, labels = [], []
    for start in range(0, len(indices), BATCH):
        columns = source.read(indices[start : start + BATCH])
        pictures.append(torch.from_numpy(columns["image"]).permute(0, 3, 1, 2).contiguous())
        labels.append(torch.as_tensor(columns["label"]))
    return torch.cat(pictures), torch.cat(labels).long()


def _to_floats(pictures: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    return pictures.float().div_(127.5).sub_(1)


def judge_pictures(judge: Classifier, pictures: Tensor, label: Tensor) -> PictureSet:
    """Features and predictions of the judge, on the CPU."""
    device = next(judge.parameters()).device
    features, predicted = [], []
    judge.eval()
    with torch.inference_mode():
        for part in pictures.split(BATCH):
            feature = judge.features(_to_floats(part).to(device)).float()
            features.append(feature.cpu())
            predicted.append(judge.logits(feature)[0].argmax(1).cpu())
    return PictureSet(pictures, label, torch.cat(features), torch.cat(predicted))


def match_classes(pictures: PictureSet, labels: Int[Tensor, " N"]) -> Float[Tensor, "M D"]:
    """Features of one picture per label, up to the first label whose pictures are used up.

    Samples are equally many of each class. Compared so, they would differ from real pictures, even
    real ones that are balanced on average: KID is unbiased only if class counts vary by chance in
    both sets, since in a balanced set two pictures are less often of one class.
    """
    rows = [
        iter((pictures.label == label).nonzero()[:, 0].tolist())
        for label in range(int(labels.max()) + 1)
    ]
    chosen = []
    for label in labels.tolist():
        row = next(rows[label], None)
        if row is None:
            break
        chosen.append(row)
    return pictures.features[chosen]


def _distances(features: Float[Tensor, "N D"], reference: Float[Tensor, "M D"]) -> Distances:
    frechet, kernel = frechet_estimate(features, reference), kernel_distance(features, reference)
    return Distances(frechet, kernel, len(features), len(reference))


def _class_reports(
    classes: tuple[str, ...],
    conditional: ConditionalAccuracy,
    samples: PictureSet,
    real: PictureSet,
    held_out: PictureSet,
) -> tuple[ClassReport, ...]:
    variety = diversity(
        samples.features, samples.label, held_out.features, held_out.label, len(classes)
    )
    rows = []
    for label, name in enumerate(classes):
        generated = samples.features[samples.label == label]
        training = real.features[real.label == label]
        size = min(len(generated), len(training) // 2)
        enough = size >= 4
        reference, other = training[:size], training[size : 2 * size]
        distance = _distances(generated[:size], reference) if enough else None
        floor = _distances(other, reference) if enough else None
        rows.append(
            ClassReport(name, conditional.per_class[label], distance, floor, variety[label])
        )
    return tuple(rows)


def _memorisation(
    samples: PictureSet, held_out: PictureSet, real: PictureSet
) -> tuple[Memorisation, Memorisation, UInt8[np.ndarray, "P 2 H W C"]]:
    training = real.pictures.flatten(1)  # bytes: 127.5 of them are 1
    distance, index = nearest_neighbours(samples.pictures.flatten(1), training)
    unseen, _ = nearest_neighbours(held_out.pictures.flatten(1), training)
    in_features, _ = nearest_neighbours(samples.features, real.features)
    unseen_in_features, _ = nearest_neighbours(held_out.features, real.features)
    closest = distance.argsort()[:PAIRS]
    pairs = torch.stack([samples.pictures[closest], real.pictures[index[closest]]], dim=1)
    return (
        memorisation(distance / 127.5, unseen / 127.5),
        memorisation(in_features, unseen_in_features),
        pairs.permute(0, 1, 3, 4, 2).contiguous().numpy(),
    )


def _classification_score(
    train_judge: TrainJudge, samples: PictureSet, real: PictureSet, held_out: PictureSet
) -> Generator[str, None, ClassificationScore]:
    """Accuracy on test pictures of a classifier trained on samples, and on as many real ones."""
    size = min(len(samples.label), len(real.label))

    def train_and_test(pictures: PictureSet) -> Accuracy:
        judge = train_judge(_to_floats(pictures.pictures), pictures.label)
        predicted = judge_pictures(judge, held_out.pictures, held_out.label).predicted
        return accuracy(predicted, held_out.label)

    yield f"a classifier learns from {size:,} samples"
    on_samples = train_and_test(samples.first(size))
    yield f"a classifier learns from {size:,} real pictures"
    on_real = train_and_test(real.first(size))
    return ClassificationScore(on_samples, on_real, size)

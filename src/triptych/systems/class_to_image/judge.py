"""Judge a class-conditional generator: every number of its report, from samples and a judge.

Two questions are kept apart: does a picture show the class that was asked for, and is the set of
pictures like the real one? Every number stands beside the same number of real pictures.

Dimensions: N samples, C channels, H height, W width, D features, P pairs of neighbours.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field

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
"""Pictures in [-1, 1] of these classes; picture i of the call is a function of the seed plus i."""
TrainJudge = Callable[[Float[Tensor, "N C H W"], Int[Tensor, " N"]], Classifier]
"""A classifier trained on these pictures and classes, in evaluation mode."""

BATCH = 500  # pictures that go through a network at once
MIN_SIZE = 10  # pictures in a set that is compared
PAIRS = 12  # nearest neighbours to look at


@dataclass(frozen=True)
class Distances:
    """How far a set of pictures is from training pictures, in the judge's features."""

    frechet: Estimate
    kernel: Estimate
    count: int
    """Pictures of the set."""
    reference: int
    """Training pictures that it is held against."""


@dataclass(frozen=True)
class ClassReport:
    """One class: its samples, and real pictures for comparison. None where there are too few."""

    name: str
    accuracy: Accuracy
    samples: Distances | None
    floor: Distances | None
    """Other training pictures of the class, as many."""
    diversity: float | None
    """Mean distance of two samples over that of two real test pictures, in the judge's features."""


@dataclass(frozen=True, eq=False)
class ClassConditionalReport:
    """All that is known of a class-conditional generator."""

    source: str
    samples: int
    samples_per_class: int
    seed: int
    judge: Accuracy
    """The judge on real test pictures: what perfect samples would get."""
    accuracy: ConditionalAccuracy
    distance: Distances
    """Samples against training pictures."""
    held_out: Distances | None
    """Test pictures against the same training pictures; None where a class has too few."""
    floor: Distances
    """Other training pictures, as many, against the same ones: what chance alone gives."""
    prdc: Prdc
    prdc_floor: Prdc
    """The same of those other training pictures."""
    score: ClassificationScore | None
    pixels: Memorisation
    """Distance to the nearest training picture in pixels, each in [-1, 1]."""
    features: Memorisation
    """The same in the judge's features."""
    training: int
    """Training pictures among which neighbours were looked for."""
    classes: tuple[ClassReport, ...]
    pairs: UInt8[np.ndarray, "P 2 H W C"] = field(repr=False)
    """The samples closest to a training picture in pixels, closest first, each beside it."""


@dataclass(frozen=True, eq=False)
class PictureSet:
    """Pictures as bytes, what they show or should show, and what the judge makes of them."""

    pictures: UInt8[Tensor, "N C H W"]
    label: Int[Tensor, " N"]
    features: Float[Tensor, "N D"]
    seen: Int[Tensor, " N"]

    def first(self, count: int) -> "PictureSet":
        return PictureSet(
            self.pictures[:count], self.label[:count], self.features[:count], self.seen[:count]
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
    """Yield a line on what is being done, and return the report.

    Samples are rounded to bytes first, as they would be saved. Training pictures are halved:
    samples are held against one half, in the classes of the other, the floor. `limit` bounds the
    pictures that are read of each source, `queries` the samples whose neighbours are looked for.
    Without `train_judge` there is no classification score. The judge's device is used.

    Raises:
        ValueError: the sources have no classes, or not those and the size that the judge reads.
    """
    classes = train.info.classes
    _check(train, test, judge)
    yield "reading real pictures"
    real = judged(judge, *read_pictures(train, limit, seed))
    held_out = judged(judge, *read_pictures(test, limit, seed + 1))
    count = samples_per_class * len(classes)
    drawn = []
    asked = torch.arange(count) % len(classes)
    for start in range(0, count, BATCH):
        yield f"drawing pictures: {start:,} of {count:,}"
        images = to_pictures(sample(asked[start : start + BATCH], seed + start))
        drawn.append(torch.from_numpy(images).permute(0, 3, 1, 2))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))  # for jackknives
    samples = judged(judge, torch.cat(drawn)[order], asked[order])

    half = len(real.label) // 2  # two disjoint sets of training pictures
    labels = real.label[half:]
    ours, theirs = with_classes(samples, labels), with_classes(held_out, labels)
    size = min(len(ours), half)
    if size < MIN_SIZE:
        raise ValueError(
            f"{train.info.name}: {size} samples have as many training pictures of their classes in "
            f"each of two halves; {MIN_SIZE} are needed: take more samples a class or more pictures"
        )
    reference, other = real.features[:size], real.features[half : half + size]
    yield f"distances between sets of {size:,} pictures"
    distance, floor = _distances(ours, reference), _distances(other, reference)
    unseen = _distances(theirs[:size], reference) if len(theirs) >= MIN_SIZE else None
    yield "neighbourhoods: precision, recall, density, coverage"
    shares, share_floor = prdc(reference, ours), prdc(reference, other)
    yield "each class on its own"
    seen = conditional_accuracy(samples.seen, samples.label, len(classes))
    rows = _class_reports(classes, seen, samples, real, held_out)
    yield f"nearest of {len(real.label):,} training pictures"
    pixels, features, pairs = _memorisation(samples.first(queries), held_out.first(queries), real)
    score = None
    if train_judge is not None:
        size = min(count, len(real.label))
        yield f"a classifier learns from {size:,} samples"
        on_samples = _trained(train_judge, samples.first(size), held_out)
        yield f"a classifier learns from {size:,} real pictures"
        on_real = _trained(train_judge, real.first(size), held_out)
        score = ClassificationScore(on_samples, on_real, size)
    return ClassConditionalReport(
        source=train.info.name,
        samples=count,
        samples_per_class=samples_per_class,
        seed=seed,
        judge=accuracy(held_out.seen, held_out.label),
        accuracy=seen,
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


def _check(train_source: Source, test_source: Source, judge: Classifier) -> None:
    train, test = train_source.info, test_source.info
    if not train.classes or train.classes != test.classes:
        raise ValueError(
            f"{train.name}: training and test pictures need the same classes, at least one; "
            f"there are {len(train.classes)} and {len(test.classes)}"
        )
    config = judge.config
    size = (config.height, config.width, config.channels)
    if config.groups[0] != len(train.classes) or size != train.shape or size != test.shape:
        raise ValueError(
            f"the judge reads {config.groups[0]} classes from pictures of {size}; {train.name} has "
            f"{len(train.classes)} and {train.shape}: train a judge on this source"
        )


def read_pictures(source: Source, limit: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures and classes of a source in random order; of an endless one the first `limit`."""
    generator = torch.Generator().manual_seed(seed)
    length = source.info.length or limit
    indices = torch.randperm(length, generator=generator)[:limit].tolist()
    pictures, labels = [], []
    for start in range(0, len(indices), BATCH):
        columns = source.read(indices[start : start + BATCH])
        pictures.append(torch.from_numpy(columns["image"]).permute(0, 3, 1, 2).contiguous())
        labels.append(torch.as_tensor(columns["label"]))
    return torch.cat(pictures), torch.cat(labels).long()


def _floats(pictures: UInt8[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
    return pictures.float().div_(127.5).sub_(1)


def judged(judge: Classifier, pictures: Tensor, label: Tensor) -> PictureSet:
    """Features and answers of a judge, on the CPU."""
    device = next(judge.parameters()).device
    features, seen = [], []
    judge.eval()
    with torch.inference_mode():
        for part in pictures.split(BATCH):
            feature = judge.features(_floats(part).to(device)).float()
            features.append(feature.cpu())
            seen.append(judge.logits(feature)[0].argmax(1).cpu())
    return PictureSet(pictures, label, torch.cat(features), torch.cat(seen))


def with_classes(found: PictureSet, labels: Int[Tensor, " N"]) -> Float[Tensor, "M D"]:
    """Features of pictures whose classes are these, one by one, for as long as there are enough.

    Samples come equally many of each class. Taken so, they would differ from real pictures that do
    not, and even if those do on average: KID is unbiased only if classes vary by chance on both
    sides, since in a set of equal shares two pictures rarely are of one class.
    """
    rows = [
        iter((found.label == label).nonzero()[:, 0].tolist())
        for label in range(int(labels.max()) + 1)
    ]
    chosen = []
    for label in labels.tolist():
        row = next(rows[label], None)
        if row is None:
            break
        chosen.append(row)
    return found.features[chosen]


def _distances(features: Float[Tensor, "N D"], reference: Float[Tensor, "M D"]) -> Distances:
    frechet, kernel = frechet_estimate(features, reference), kernel_distance(features, reference)
    return Distances(frechet, kernel, len(features), len(reference))


def _class_reports(
    classes: tuple[str, ...],
    seen: ConditionalAccuracy,
    samples: PictureSet,
    real: PictureSet,
    held_out: PictureSet,
) -> tuple[ClassReport, ...]:
    variety = diversity(
        samples.features, samples.label, held_out.features, held_out.label, len(classes)
    )
    rows = []
    for label, name in enumerate(classes):
        ours = samples.features[samples.label == label]
        theirs = real.features[real.label == label]
        size = min(len(ours), len(theirs) // 2)
        enough = size >= 4
        reference, other = theirs[:size], theirs[size : 2 * size]
        distance = _distances(ours[:size], reference) if enough else None
        floor = _distances(other, reference) if enough else None
        rows.append(ClassReport(name, seen.per_class[label], distance, floor, variety[label]))
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


def _trained(train_judge: TrainJudge, pictures: PictureSet, held_out: PictureSet) -> Accuracy:
    judge = train_judge(_floats(pictures.pictures), pictures.label)
    return accuracy(judged(judge, held_out.pictures, held_out.label).seen, held_out.label)

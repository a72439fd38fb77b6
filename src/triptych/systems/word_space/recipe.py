"""Recipe: classes that no picture showed, by their words (Socher 2013, DeViSE 2013)."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych import runtime
from triptych.config import nearest, to_json
from triptych.data.disk.table import Table, of_classes
from triptych.data.order.batches import batches, take
from triptych.data.source import Source
from triptych.data.sources import open_train_and_test
from triptych.nn.loss import Loss
from triptych.systems.classifier.model import ClassifierConfig
from triptych.systems.word_space.model import WordSpace, WordSpaceConfig, objective
from triptych.systems.word_space.report import Answers, answers, report, threshold_keeping
from triptych.systems.word_space.request import TrainWordSpace
from triptych.systems.word_space.word_vectors import read_word_vectors
from triptych.train.conditioning import card, conditioning
from triptych.train.distributed import World
from triptych.train.optimizer import adam
from triptych.train.recipe import Batch, Recipe, Update
from triptych.weights.loaded import Load

HELD_OUT = 10_000  # test pictures at most
CHUNK = 500
POINTS, NEIGHBOURS = 2000, 20  # of the outlier detector, where there are so many pictures
LEAST = 10  # pictures of each class that detectors are fitted on, if training can spare them
KEPT = 0.9  # share of pictures of seen classes that the reported threshold lets stay seen


def build(request: TrainWordSpace, world: World, load: Load) -> Recipe:
    """The network and its map, trained on the seen classes alone."""
    training = request.training
    device = runtime.device(training.device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    given = conditioning("label", source)
    if not isinstance(source, Table):
        raise ValueError(f"{source.info.name} has no classes with names: take pictures that have")
    classes = source.info.classes
    seen = _seen(classes, request.unseen)
    if not request.words:
        raise ValueError("give --words FILE: GloVe or word2vec text, .npz or .json")
    words = torch.from_numpy(read_word_vectors(Path(request.words)).of(classes))
    learned, calibration = _apart(of_classes(source, seen), seen, training.seed)

    height, width, channels = source.info.shape
    assert calibration.info.length is not None
    points = min(POINTS, calibration.info.length)
    config = WordSpaceConfig(
        ClassifierConfig(height, width, channels, (len(seen),), request.widths),
        seen,
        len(classes),
        words.shape[1],
        request.method,
        request.hidden,
        request.margin,
        points,
        min(NEIGHBOURS, points - 1),
    )
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = WordSpace(config).to(device)
    model.set_words(words.to(device))
    tuned_from = (1 - request.fine_tune) * training.steps

    def minimise(batch: Batch, step: int) -> Loss:
        tuning = request.method == "devise" and step > tuned_from
        image, label = batch["image"], batch["label"]
        return objective(model, image, label, fine_tune=tuning, shift=request.shift)

    def evaluate(module: nn.Module) -> dict[str, float]:
        assert isinstance(module, WordSpace)
        return evaluated(module, calibration, test, device)

    optimizer = adam(model, request.learning_rate, weight_decay=request.weight_decay)
    chance = torch.log(torch.tensor(float(len(seen)))).item()
    of_map = words[list(seen)].square().sum(1).mean().item()
    if request.method == "devise":
        of_map = (len(seen) - 1) * request.margin
    return Recipe(
        model=model,
        exported=model,
        updates=[Update("", model, optimizer, minimise, max_norm=request.max_norm)],
        batches=lambda start: batches(
            learned,
            training.batch_size // world.size,
            seed=training.seed,
            rank=world.rank,
            ranks=world.size,
            start=start,
            workers=training.workers,
        ),
        card=to_json(card("word-space", asdict(config), source, given)),
        chance=(
            f"before learning: map {of_map:.2f}, loss {of_map + chance:.2f}, accuracy "
            f"{1 / len(seen):.2f} on seen, {1 / len(config.unseen):.2f} on unseen classes"
        ),
        evaluate=evaluate,
    )


def _seen(classes: tuple[str, ...], unseen: str) -> tuple[int, ...]:
    """Indices of the classes that stay, when those named are kept out of training."""
    names = [name.strip() for name in unseen.split(",") if name.strip()]
    if not names:
        raise ValueError("give --unseen NAMES: the classes kept out of training, as in cat,truck")
    for name in names:
        if name not in classes:
            there = ", ".join(classes[:20])
            raise ValueError(f"no class {name!r} to keep out.{nearest(name, classes)} Of: {there}")
    return tuple(k for k, name in enumerate(classes) if name not in names)


def _apart(seen: Table, classes: tuple[int, ...], seed: int) -> tuple[Table, Table]:
    """Pictures to train on, and a tenth that detectors are fitted on; where a tenth is too few,
    they are fitted on the training pictures, as in Socher et al.
    """
    count = len(seen.rows)
    order = torch.randperm(count, generator=runtime.generator(runtime.key(seed, "apart")))
    tenth = sorted(order[: count // 10].tolist())
    labels = seen.labels[tenth]
    if min((int((labels == k).sum()) for k in classes), default=0) < LEAST:
        return seen, seen
    rest = sorted(order[count // 10 :].tolist())
    return seen.part(rest), seen.part(tenth)


@torch.inference_mode()
def evaluated(
    model: WordSpace, calibration: Source, test: Source, device: torch.device
) -> dict[str, float]:
    """Fit the detectors that the model carries, then answer the test pictures.

    A threshold keeps nine tenths of the calibration pictures seen.
    """
    seen, classes = model.config.seen, model.config.classes
    _, mapped, label = _mapped(model, calibration, device)
    model.fit_novelty(mapped, label)
    features, of_test, truth = _mapped(model, test, device)
    (logits,) = model.network.logits(features)
    given, own = answers(model.scores(of_test), seen), answers(model.scores(mapped), seen).novelty
    if model.config.method == "socher":
        own = model.novelty(mapped, "gaussian")
        among_seen = torch.tensor(seen, device=logits.device)[logits.argmax(1)]
        given = Answers(among_seen, given.among_unseen, model.novelty(of_test, "gaussian"))
    given, truth = Answers(*(column.cpu() for column in given)), truth.cpu()
    is_seen = torch.isin(truth, torch.tensor(seen))
    if is_seen.all() or not is_seen.any():  # no test pictures of one kind: half of the numbers
        return {"test_seen": float((given.among_seen == truth).float().mean())}
    found = report(given, truth, seen, classes, threshold_keeping(own.cpu(), KEPT))
    return {
        "test_seen": found.seen.value,
        "test_unseen": found.unseen.value,
        "test_all_seen": found.all_seen.value,
        "test_all_unseen": found.all_unseen.value,
        "test_harmonic": found.harmonic,
        "test_detection": found.detection,
        "test_area": found.area,
    }


def _mapped(
    model: WordSpace, source: Source, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, points among words, and labels of a source's pictures."""
    count = min(HELD_OUT, source.info.length or HELD_OUT)
    features, labels = [], []
    for start in range(0, count, CHUNK):
        rows: Iterable[int] = range(start, min(start + CHUNK, count))
        batch = take(source, list(rows))
        features.append(model.network.features(batch["image"].to(device)))
        labels.append(batch["label"])
    found = torch.cat(features)
    return found, model.map(found), torch.cat(labels).to(device)

"""Recipe: zero-shot classification by word vectors (Socher 2013, DeViSE 2013)."""

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from triptych import runtime
from triptych.data.disk.table import Table, select_classes
from triptych.data.order.batches import take
from triptych.data.source import Source
from triptych.data.sources import open_train_and_test
from triptych.fields import nearest
from triptych.nn.loss import Loss
from triptych.systems.classifier.model import ClassifierConfig
from triptych.systems.word_space.model import WordSpace, WordSpaceConfig, objective
from triptych.systems.word_space.report import (
    Answers,
    answer_by_scores,
    choose_threshold,
    evaluate_answers,
)
from triptych.systems.word_space.request import TrainWordSpace
from triptych.systems.word_space.word_vectors import read_word_vectors
from triptych.train import checkpoint
from triptych.train.conditioning import build_card, choose_condition
from triptych.train.distributed import World
from triptych.train.optimizer import adam
from triptych.train.recipe import Batch, Recipe, Update, batches_for, data_notes
from triptych.weights.loaded import Load

HELD_OUT = 10_000  # most pictures of an evaluation
BATCH = 500
POINTS, NEIGHBOURS = 2000, 20  # of the outlier detector; fewer if there are fewer pictures
LEAST = 10  # pictures of each class to fit the detectors on, or training pictures are used
KEPT = 0.9  # share of pictures of seen classes that the reported threshold answers as seen


def build(request: TrainWordSpace, world: World, load: Load) -> Recipe:
    """A network and its map to word vectors, trained on the seen classes alone."""
    training = request.training
    device = runtime.device(training.device)
    source, test = open_train_and_test(training.data, size=training.size or None)
    condition = choose_condition("label", source, required=True)
    if not isinstance(source, Table):
        raise ValueError(f"{source.info.name} has no named classes: give --data with class names")
    classes = source.info.classes
    seen = _seen_classes(classes, request.unseen)
    if not request.words:
        raise ValueError("give --words FILE: word vectors as GloVe or word2vec text, .npz or .json")
    words = torch.from_numpy(read_word_vectors(Path(request.words)).of(classes))
    learned, calibration = _split(select_classes(source, seen), seen, training.seed)

    config = _make_config(request, source, seen, words.shape[1], len(calibration.rows))
    torch.manual_seed(runtime.key(training.seed, "weights"))
    model = WordSpace(config).to(device)
    model.set_words(words.to(device))
    tuned_from = (1 - request.fine_tune) * training.steps

    def minimise(batch: Batch, step: int) -> Loss:
        tuning = request.method == "devise" and step > tuned_from
        image, label = batch["image"], batch["label"]
        return objective(model, image, label, fine_tune=tuning, shift=request.shift)

    optimizer = adam(model, request.learning_rate, weight_decay=request.weight_decay)
    card = build_card("word-space", config, source, condition)
    return Recipe(
        model=model,
        exported=model,
        updates=[Update("", model, optimizer, minimise, max_norm=request.max_norm)],
        batches=batches_for(learned, training, world),
        export=partial(checkpoint.export, card=card),
        chance=_describe_chance(config, words),
        evaluate=lambda module: evaluate_model(module, calibration, test, device),
        notes=data_notes(learned, training),
    )


def _make_config(
    request: TrainWordSpace, source: Table, seen: tuple[int, ...], words: int, pictures: int
) -> WordSpaceConfig:
    """`words` is the width of a word vector; `pictures` can be used to fit the detectors."""
    height, width, channels = source.info.shape
    points = min(POINTS, pictures)
    return WordSpaceConfig(
        ClassifierConfig(height, width, channels, (len(seen),), request.widths),
        seen,
        len(source.info.classes),
        words,
        request.method,
        request.hidden,
        request.margin,
        points,
        min(NEIGHBOURS, points - 1),
    )


def _describe_chance(config: WordSpaceConfig, words: Tensor) -> str:
    seen = len(config.seen)
    if config.method == "devise":
        map_loss = (seen - 1) * config.margin
    else:
        map_loss = words[list(config.seen)].square().sum(1).mean().item()
    loss = map_loss + math.log(seen)
    return (
        f"before learning: map {map_loss:.2f}, loss {loss:.2f}, accuracy {1 / seen:.2f} on seen, "
        f"{1 / len(config.unseen):.2f} on unseen classes"
    )


def _seen_classes(classes: tuple[str, ...], unseen: str) -> tuple[int, ...]:
    """Indices of the classes that are not named in `unseen`."""
    names = [name.strip() for name in unseen.split(",") if name.strip()]
    if not names:
        raise ValueError("give --unseen NAMES: the classes kept out of training, such as cat,truck")
    for name in names:
        if name not in classes:
            known = ", ".join(classes[:20])
            raise ValueError(
                f"--unseen: there is no class {name!r}.{nearest(name, classes)} Classes: {known}"
            )
    return tuple(k for k, name in enumerate(classes) if name not in names)


def _split(seen: Table, classes: tuple[int, ...], seed: int) -> tuple[Table, Table]:
    """Pictures to train on, and a tenth to fit the detectors on; if that is too few, both are all
    pictures, as in Socher et al.
    """
    count = len(seen.rows)
    order = torch.randperm(count, generator=runtime.generator(runtime.key(seed, "apart")))
    tenth = sorted(order[: count // 10].tolist())
    labels = seen.labels[tenth]
    if min((int((labels == k).sum()) for k in classes), default=0) < LEAST:
        return seen, seen
    rest = sorted(order[count // 10 :].tolist())
    return seen.subset(rest), seen.subset(tenth)


@torch.inference_mode()
def evaluate_model(
    model: WordSpace, calibration: Source, test: Source, device: torch.device
) -> dict[str, float]:
    """Fit the detectors of the model, then evaluate it on test pictures, at the threshold at which
    nine tenths of the calibration pictures are answered as seen.
    """
    seen, classes = model.config.seen, model.config.classes
    _, mapped, label = _map_pictures(model, calibration, device)
    model.fit_novelty(mapped, label)
    features, of_test, truth = _map_pictures(model, test, device)
    (logits,) = model.network.logits(features)
    answers = answer_by_scores(model.scores(of_test), seen)
    novelty = answer_by_scores(model.scores(mapped), seen).novelty
    if model.config.method == "socher":
        novelty = model.novelty(mapped, "gaussian")
        among_seen = torch.tensor(seen, device=logits.device)[logits.argmax(1)]
        answers = Answers(among_seen, answers.among_unseen, model.novelty(of_test, "gaussian"))
    answers, truth = Answers(*(column.cpu() for column in answers)), truth.cpu()
    is_seen = torch.isin(truth, torch.tensor(seen))
    if is_seen.all() or not is_seen.any():  # only one kind of test pictures
        return {"test_seen": float((answers.among_seen == truth).float().mean())}
    threshold = choose_threshold(novelty.cpu(), KEPT)
    report = evaluate_answers(answers, truth, seen, classes, threshold)
    return {
        "test_seen": report.seen.value,
        "test_unseen": report.unseen.value,
        "test_all_seen": report.all_seen.value,
        "test_all_unseen": report.all_unseen.value,
        "test_harmonic": report.harmonic,
        "test_detection": report.detection,
        "test_area": report.area,
    }


def _map_pictures(
    model: WordSpace, source: Source, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, points in the space of words, and labels of the first pictures of a source."""
    count = min(HELD_OUT, source.info.length or HELD_OUT)
    features, labels = [], []
    for start in range(0, count, BATCH):
        rows: Iterable[int] = range(start, min(start + BATCH, count))
        batch = take(source, list(rows))
        features.append(model.network.features(batch["image"].to(device)))
        labels.append(batch["label"])
    joined = torch.cat(features)
    return joined, model.map(joined), torch.cat(labels).to(device)

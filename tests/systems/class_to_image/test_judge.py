"""The whole evaluation on toy generators: a perfect one, and one for each fault."""

from dataclasses import replace

import pytest
import torch

from tests.scores.toy import CLASSES, Bars, draw, trained_judge
from triptych.scores.fid import kernel_distance
from triptych.systems.class_to_image.judge import (
    PictureSet,
    evaluate_class_conditional,
    match_classes,
)
from triptych.systems.classifier.model import Classifier, ClassifierConfig

TRAIN, TEST = Bars("train", 600, 10_000), Bars("test", 300, 20_000)


@pytest.fixture(scope="module")
def judge():
    labels = torch.arange(600) % 3
    return trained_judge(draw(labels, 50_000), labels, steps=80)


def finish(work):
    messages = []
    while True:
        try:
            messages.append(next(work))
        except StopIteration as end:
            return end.value, messages


def evaluate(sample, judge, **settings):
    settings = {"samples_per_class": 100, "queries": 200} | settings
    return finish(evaluate_class_conditional(sample, TRAIN, TEST, judge, **settings))[0]


@pytest.fixture(scope="module")
def perfect(judge):
    return evaluate(draw, judge, train_judge=trained_judge)


def test_perfect_samples_are_not_told_from_real_ones(perfect):
    assert perfect.judge.value > 0.98
    assert perfect.accuracy.overall.value > 0.98
    assert perfect.accuracy.overall.chance == pytest.approx(1 / 3)
    assert perfect.distance.kernel.low <= 0 <= perfect.distance.kernel.high
    assert perfect.distance.frechet.value < 2 * perfect.floor.frechet.value
    sizes = perfect.distance.count, perfect.distance.reference, perfect.floor.count
    assert len(set(sizes)) == 1 and 200 < sizes[0] <= 300  # as far as the classes of a half go
    assert perfect.held_out.kernel.low <= 0 <= perfect.held_out.kernel.high
    assert perfect.prdc.coverage == pytest.approx(perfect.prdc_floor.coverage, abs=0.06)
    assert perfect.pixels.nearer == pytest.approx(0.5, abs=0.1)
    assert perfect.score.trained_on == 300
    assert perfect.score.samples.value == pytest.approx(perfect.score.real.value, abs=0.05)
    for name, row in zip(CLASSES, perfect.classes, strict=True):
        assert row.name == name and row.accuracy.count == 100
        assert row.diversity == pytest.approx(1, abs=0.25)
        assert row.samples.count == row.floor.count == 100


def test_the_generator_is_asked_for_every_class_with_seeds_that_do_not_overlap(judge, monkeypatch):
    monkeypatch.setattr("triptych.systems.class_to_image.judge.BATCH", 70)
    calls = []

    def sample(labels, seed):
        calls.append((seed, labels.tolist()))
        return draw(labels, seed)

    report = evaluate(sample, judge, seed=7)
    assert [seed for seed, _ in calls] == [7, 77, 147, 217, 287]
    labels_drawn = [label for _, labels in calls for label in labels]
    assert [labels_drawn.count(label) for label in range(3)] == [100, 100, 100]
    monkeypatch.undo()
    whole = evaluate(draw, judge, seed=7)  # in one call: the same pictures, so the same numbers
    assert report.accuracy == whole.accuracy
    assert report.distance.kernel.value == pytest.approx(whole.distance.kernel.value, abs=1e-6)


def test_a_class_shown_for_another_is_found(judge, perfect):
    found = evaluate(lambda labels, seed: draw(labels.where(labels != 1, 2), seed), judge)
    assert [row.accuracy.value > 0.95 for row in found.classes] == [True, False, True]
    assert found.accuracy.confusion[1][2] > 95
    assert found.classes[1].samples.kernel.low > found.classes[1].floor.kernel.high
    assert found.distance.frechet.value > 10 * perfect.distance.frechet.value


def test_a_collapsed_class_is_found(judge):
    def sample(labels, seed):
        pictures = draw(labels, seed)
        pictures[labels == 0] = draw(torch.tensor([0]), 3)
        return pictures

    found = evaluate(sample, judge)
    assert found.classes[0].diversity < 0.01
    assert found.classes[1].diversity > 0.7
    assert found.prdc.recall < found.prdc_floor.recall - 0.1


def test_copies_are_found_and_shown_beside_what_they_copy(judge):
    training = torch.from_numpy(TRAIN.read(range(600))["image"]).permute(0, 3, 1, 2)

    def sample(labels, seed):
        generator = torch.Generator().manual_seed(seed)
        rows = 200 * labels + torch.randint(200, labels.shape, generator=generator)
        return training[rows].float() / 127.5 - 1

    found = evaluate(sample, judge)
    assert found.accuracy.overall.value > 0.95  # by its other numbers it would be perfect
    assert found.pixels.closer == 1 and found.features.closer > 0.99
    assert found.pairs.shape == (12, 2, 8, 8, 1) and found.pairs.dtype == "uint8"
    assert (found.pairs[:, 0] == found.pairs[:, 1]).all()


def test_labels_that_mean_nothing_give_chance(judge):
    """Pictures are real, but not of the class asked for: only accuracy and CAS may notice."""

    def sample(labels, seed):
        generator = torch.Generator().manual_seed(seed)
        return draw(torch.randint(3, labels.shape, generator=generator), seed)

    found = evaluate(sample, judge, train_judge=trained_judge)
    assert found.accuracy.overall.low < 1 / 3 < found.accuracy.overall.high
    assert found.score.samples.value < 0.6 < found.score.real.value
    assert found.distance.kernel.low < 0.01


def test_an_endless_source_is_read_up_to_the_limit(judge):
    train, test = Bars("train", None, 10_000), Bars("test", None, 90_000)
    work = evaluate_class_conditional(
        draw, train, test, judge, samples_per_class=50, limit=200, queries=20
    )
    report, messages = finish(work)
    assert report.training == 200 and train.largest == test.largest == 199
    assert 60 < report.distance.count == report.distance.reference <= 100  # half of what was read
    assert any("150" in line for line in messages)


def test_a_judge_of_other_pictures_is_refused():
    other = Classifier(ClassifierConfig(8, 8, 1, groups=(4,), widths=(8,)))
    with pytest.raises(ValueError, match=r"the judge reads 4 classes.*bars has 3"):
        next(evaluate_class_conditional(draw, TRAIN, TEST, other))
    nameless = Bars("train", 10, 0)
    nameless.info = replace(nameless.info, classes=())
    with pytest.raises(ValueError, match="same classes"):
        next(evaluate_class_conditional(draw, nameless, TEST, other))


def test_equal_numbers_of_each_class_do_not_bias_the_kernel_distance():
    """Classes far apart, samples as many of each: the plain estimate is below zero by far, the one
    in the classes of a random half is zero on average."""
    plain, matched = [], []
    for seed in range(80):
        generator = torch.Generator().manual_seed(seed)

        def drawn(labels, generator=generator):
            place = 3 * torch.nn.functional.one_hot(labels, 4).float()
            features = place + 0.1 * torch.randn(len(labels), 4, generator=generator)
            return PictureSet(labels, labels, features, labels)

        real = drawn(torch.randint(4, (200,), generator=generator))
        samples = drawn(torch.arange(160) % 4)
        plain.append(kernel_distance(samples.features[:100], real.features[:100]).value)
        ours = match_classes(samples, real.label[100:])
        assert torch.equal(ours.argmax(1), real.label[100 : 100 + len(ours)])  # one by one
        matched.append(kernel_distance(ours, real.features[: len(ours)]).value)
    error = torch.tensor(matched).std() / 80**0.5
    assert abs(torch.tensor(matched).mean()) < 3 * error
    assert torch.tensor(plain).mean() < -3 * error

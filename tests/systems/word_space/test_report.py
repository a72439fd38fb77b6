"""Seen against unseen: every threshold counted by hand, scikit-learn, and detectors whose trade-off
is known."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from triptych.systems.word_space.report import (
    Answers,
    answer_by_scores,
    area_under,
    choose_threshold,
    compute_trade_off,
    evaluate_answers,
    novelty_auc,
)

SEEN, CLASSES = (0, 1, 3), 5


def guesses(count: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores that know something of the truth."""
    torch.manual_seed(seed)
    truth = torch.randint(CLASSES, (count,))
    scores = torch.randn(count, CLASSES)
    scores[torch.arange(count), truth] += 1.5
    return scores, truth


def test_the_trade_off_is_what_counting_gives_at_each_threshold():
    scores, truth = guesses()
    given = answer_by_scores((scores * 4).round(), SEEN)  # whole numbers: many ties
    curve = compute_trade_off(given, truth, SEEN, CLASSES)
    of_seen = torch.isin(truth, torch.tensor(SEEN))
    assert len(curve.threshold) == len(given.novelty.unique()) + 1
    for t, seen, unseen in zip(*(column.tolist() for column in curve), strict=True):
        final = torch.where(given.novelty > t, given.among_unseen, given.among_seen)
        right = final == truth
        assert seen == pytest.approx(right[of_seen].float().mean().item())
        assert unseen == pytest.approx(right[~of_seen].float().mean().item())
    assert curve.seen[0] == 0 and curve.unseen[-1] == 0


@pytest.mark.parametrize("bias", [-2.0, 0.0, 0.7])
def test_a_threshold_is_a_bias_on_seen_scores(bias):
    """Calibrated stacking: subtracting a bias from seen scores, then plain argmax."""
    scores, truth = guesses()
    stacked = scores.clone()
    stacked[:, list(SEEN)] -= bias
    right = stacked.argmax(1) == truth
    of_seen = torch.isin(truth, torch.tensor(SEEN))
    found = evaluate_answers(answer_by_scores(scores, SEEN), truth, SEEN, CLASSES, threshold=-bias)
    assert found.all_seen.value == pytest.approx(right[of_seen].float().mean().item())
    assert found.all_unseen.value == pytest.approx(right[~of_seen].float().mean().item())
    assert found.overall.value == pytest.approx(right.float().mean().item())


def test_detection_equals_scikit_learn():
    torch.manual_seed(0)
    novelty, is_seen = torch.randint(20, (500,)).float(), torch.rand(500) < 0.7
    novelty += 3 * ~is_seen
    wanted = roc_auc_score((~is_seen).numpy(), novelty.numpy())
    assert novelty_auc(novelty, is_seen) == pytest.approx(wanted)


def test_a_perfect_detector_loses_nothing_and_a_blind_one_half():
    torch.manual_seed(0)
    scores, truth = guesses(20_000)
    of_seen = torch.isin(truth, torch.tensor(SEEN))
    given = answer_by_scores(scores, SEEN)
    perfect = given._replace(novelty=(~of_seen).float())
    found = evaluate_answers(perfect, truth, SEEN, CLASSES, threshold=0.5)
    assert found.detection == 1.0
    assert (found.all_seen.value, found.all_unseen.value) == (found.seen.value, found.unseen.value)
    assert found.area == pytest.approx(found.seen.value * found.unseen.value)
    blind = given._replace(novelty=torch.rand(len(truth)))
    found = evaluate_answers(blind, truth, SEEN, CLASSES, threshold=0.5)
    assert found.area == pytest.approx(found.area_chance, rel=0.05)
    assert found.detection == pytest.approx(0.5, abs=0.02)


def test_area_is_under_the_curve():
    truth = torch.tensor([0, 0, 2, 2])
    given = Answers(torch.zeros(4).long(), torch.full((4,), 2), torch.tensor([0.0, 2.0, 1.0, 3.0]))
    curve = compute_trade_off(given, truth, (0, 1), 3)
    assert curve.seen.tolist() == [0, 0.5, 0.5, 1, 1]
    assert curve.unseen.tolist() == [1, 1, 0.5, 0.5, 0]
    assert area_under(curve) == pytest.approx(0.75)


def test_numbers_by_hand():
    truth = torch.tensor([0, 1, 3, 2, 4])
    among_seen, among_unseen = torch.tensor([0, 1, 0, 0, 0]), torch.tensor([2, 2, 2, 2, 2])
    given = Answers(among_seen, among_unseen, torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3]))
    found = evaluate_answers(given, truth, SEEN, CLASSES, threshold=0.5)
    assert found.seen.value == pytest.approx(2 / 3) and found.seen.chance == pytest.approx(1 / 3)
    assert found.unseen.value == 0.5 and found.unseen.chance == 0.5
    assert found.all_seen.value == pytest.approx(1 / 3) and found.all_seen.chance == 0.2
    assert found.all_unseen.value == 0.5
    assert found.harmonic == pytest.approx(2 * (1 / 3) * 0.5 / (1 / 3 + 0.5))
    assert found.overall.value == pytest.approx(2 / 5)
    assert evaluate_answers(given, truth, SEEN, CLASSES, threshold=1.0).harmonic == 0.0
    at = evaluate_answers(
        given, truth, SEEN, CLASSES, threshold=float(given.novelty[1])
    )  # not above itself
    assert at.all_seen.value == pytest.approx(2 / 3)


@pytest.mark.parametrize(("share", "kept"), [(0.9, 9), (0.7, 7), (0.71, 8), (1.0, 10), (0.01, 1)])
def test_the_threshold_keeps_at_least_the_share_and_no_more(share, kept):
    novelty = torch.randperm(10).float()
    assert int((novelty <= choose_threshold(novelty, share)).sum()) == kept


def test_what_cannot_be_judged_is_named():
    scores, truth = guesses(20)
    given = answer_by_scores(scores, SEEN)
    with pytest.raises(ValueError, match="some, not all"):
        answer_by_scores(scores, range(CLASSES))
    with pytest.raises(ValueError, match="of seen and of unseen"):
        evaluate_answers(given, torch.zeros(20).long(), SEEN, CLASSES, 0.0)
    with pytest.raises(ValueError, match="other way round"):
        evaluate_answers(given._replace(among_seen=given.among_unseen), truth, SEEN, CLASSES, 0.0)
    with pytest.raises(ValueError, match="each of 19 pictures"):
        compute_trade_off(given, truth[:19], SEEN, CLASSES)
    with pytest.raises(ValueError, match="finite"):
        compute_trade_off(given._replace(novelty=given.novelty / 0), truth, SEEN, CLASSES)
    with pytest.raises(ValueError, match="share"):
        choose_threshold(given.novelty, 0.0)

"""Numbers that are not finite, wherever they come from: skipped, counted, never saved."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.train.toy import CARD, batch, regression, two_players
from triptych.cli.main import report_error
from triptych.requests import Training
from triptych.train import checkpoint
from triptych.train.journal import rows
from triptych.train.loop import fit
from triptych.train.recipe import Batch, Recipe

BAD = (float("nan"), float("inf"), float("-inf"))
SETTINGS = Training(steps=9, save_every=3, log_every=1, ema_halflife=4)


def state(recipe: Recipe) -> dict[str, torch.Tensor]:
    """Weights, buffers and optimizer moments."""
    found = {name: tensor.clone() for name, tensor in recipe.model.state_dict().items()}
    for update in recipe.updates:
        packed = checkpoint.pack_optimizer(update.optimizer)
        found |= {f"{update.file}/{name}": tensor.clone() for name, tensor in packed.items()}
    return found


def bad_loss(recipe: Recipe, steps: set[int], value: float) -> Recipe:
    (update,) = recipe.updates

    def objective(data, step):
        loss = update.objective(data, step)
        return loss._replace(total=loss.total + value) if step in steps else loss

    return dataclasses.replace(recipe, updates=[update._replace(objective=objective)])


def bad_gradient(recipe: Recipe, steps: set[int], value: float) -> Recipe:
    """The loss itself is finite."""
    (update,) = recipe.updates

    def objective(data, step):
        loss = update.objective(data, step)
        if step in steps:
            loss.total.register_hook(lambda gradient: gradient * value)
        return loss

    return dataclasses.replace(recipe, updates=[update._replace(objective=objective)])


def bad_batch(recipe: Recipe, steps: set[int], value: float) -> Recipe:
    def batches(start: int) -> Iterator[Batch]:
        k = start
        while True:
            data = batch(k)
            if k + 1 in steps:
                data["image"][0, 0] = value
            yield data
            k += 1

    return dataclasses.replace(recipe, batches=batches)


SOURCES = [
    pytest.param(bad_loss, id="loss"),
    pytest.param(bad_gradient, id="gradient"),
    pytest.param(bad_batch, id="batch"),
]


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("inject", SOURCES)
def test_a_bad_step_is_skipped_whole_and_counted(tmp_path: Path, inject, value: float) -> None:
    recipe = inject(regression(), {4, 5}, value)
    before: dict[str, torch.Tensor] = {}
    counted = []
    for report in fit(recipe, SETTINGS, tmp_path):
        now = state(recipe)
        moved = [
            k for k in before if not torch.equal(now[k], before[k]) and "batches_tracked" not in k
        ]
        if report.step in (4, 5):
            assert not [k for k in moved if not k.startswith("1.running")], moved
        elif before:
            assert moved
        before = now
        counted.append(report.row["skipped"] if report.row else None)
    assert counted == [0, 0, 0, 1, 2, 2, 2, 2, 2]
    assert all(torch.isfinite(tensor).all() for tensor in state(recipe).values())
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == list(range(1, 10))


@pytest.mark.parametrize("value", BAD)
def test_one_bad_player_does_not_stop_the_other(tmp_path: Path, value: float) -> None:
    recipe = two_players()
    critic, generator = recipe.updates

    def objective(data, step):
        loss = generator.objective(data, step)
        return loss._replace(total=loss.total + value) if step == 2 else loss

    recipe = dataclasses.replace(recipe, updates=[critic, generator._replace(objective=objective)])
    steps = fit(recipe, Training(steps=3, log_every=1), tmp_path)
    next(steps)
    before = state(recipe)
    report = next(steps)
    now = state(recipe)
    assert not torch.equal(before["critic.weight"], now["critic.weight"])
    assert torch.equal(before["generator.weight"], now["generator.weight"])
    assert report.row is not None and report.row["skipped"] == 1
    assert report.row["skipped"] == 1


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("inject", [bad_loss, bad_gradient])
def test_five_bad_steps_exit_4_and_the_last_checkpoint_is_finite(
    tmp_path: Path, inject, value: float
) -> None:
    recipe = inject(regression(), set(range(5, 99)), value)
    with pytest.raises(FloatingPointError, match="up to step 9") as caught:
        for _ in fit(recipe, dataclasses.replace(SETTINGS, steps=99), tmp_path):
            pass
    assert report_error(caught.value) == 4
    path, faults = checkpoint.newest(tmp_path)
    assert path is not None and path.name == "step-000006" and not faults
    found = checkpoint.load(path)
    assert found.state["failed"] == 2 and found.state["skipped"] == 2
    for group in found.tensors.values():
        assert all(torch.isfinite(tensor).all() for tensor in group.values())


def test_four_bad_steps_are_forgiven(tmp_path: Path) -> None:
    bad = {2, 3, 4, 5, 7, 8, 9, 10}
    reports = list(
        fit(bad_loss(regression(), bad, BAD[0]), dataclasses.replace(SETTINGS, steps=12), tmp_path)
    )
    assert reports[-1].step == 12
    assert rows(tmp_path / "metrics.jsonl")[-1]["skipped"] == 8


def test_skipping_is_resumed_exactly(tmp_path: Path) -> None:
    for _ in fit(bad_loss(regression(), {4, 6}, BAD[0]), SETTINGS, tmp_path / "whole"):
        pass
    for stop in range(3, 7):
        steps = fit(bad_loss(regression(), {4, 6}, BAD[0]), SETTINGS, tmp_path / f"{stop}")
        next(report for report in steps if report.step == stop)
        steps.close()
        for _ in fit(bad_loss(regression(), {4, 6}, BAD[0]), SETTINGS, tmp_path / f"{stop}"):
            pass
        ours, theirs = (
            [
                {k: v for k, v in row.items() if k != "seconds"}
                for row in rows(run / "metrics.jsonl")
            ]
            for run in (tmp_path / f"{stop}", tmp_path / "whole")
        )
        assert ours == theirs


@pytest.mark.parametrize("value", BAD)
def test_weights_that_turn_bad_are_neither_saved_nor_exported(tmp_path: Path, value: float) -> None:
    recipe = regression()
    steps = fit(recipe, SETTINGS, tmp_path)
    next(report for report in steps if report.step == 4)
    exported = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        recipe.model[3].weight[0, 0] = value
    with pytest.raises(FloatingPointError, match="not finite") as caught:
        for _ in steps:
            pass
    assert report_error(caught.value) == 4
    path, faults = checkpoint.newest(tmp_path)
    assert path is not None and path.name == "step-000003" and not faults
    assert (tmp_path / "model.safetensors").read_bytes() == exported
    with pytest.raises(FloatingPointError, match=r"model: 3\.weight"):
        checkpoint.export(tmp_path, recipe.model, CARD)
    assert (tmp_path / "model.safetensors").read_bytes() == exported

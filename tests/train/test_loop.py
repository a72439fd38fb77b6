"""The loop against plain code, exact resumption, and what happens when numbers stop being
finite.
"""

import dataclasses
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.train.toy import batch, endless, regression, two_players
from triptych.nn.loss import Loss
from triptych.requests import Training
from triptych.runtime import key
from triptych.train import checkpoint
from triptych.train.distributed import World
from triptych.train.journal import rows
from triptych.train.loop import descend, fit
from triptych.train.optimizer import Ema, rate_factor
from triptych.train.recipe import Recipe, Update

SHORT = Training(steps=6, save_every=3, log_every=2, sample_every=3, ema_halflife=4)


def weights(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    path, faults = checkpoint.newest(run)
    assert path is not None and not faults
    return checkpoint.load(path).tensors


def journal(run: Path) -> list[dict[str, float]]:
    """The rows without the one thing that no two runs share."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(run / "metrics.jsonl")]


def same(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, group in ours.items():
        assert group.keys() == theirs[name].keys()
        for k, tensor in group.items():
            assert torch.equal(tensor, theirs[name][k]), f"{name}: {k}"
    assert journal(a) == journal(b)


def test_processes_are_compared_at_the_start_and_before_each_save(
    tmp_path: Path, monkeypatch
) -> None:
    compared = []
    monkeypatch.setattr(World, "require_same", lambda world, weights, step: compared.append(step))
    for _ in fit(regression(), SHORT, tmp_path):
        pass
    assert compared == [0, 3, 6]


@pytest.mark.parametrize("system", [regression, two_players])
@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_stopped_and_resumed_equals_unbroken(tmp_path: Path, system, stop: int) -> None:
    for _ in fit(system(), SHORT, tmp_path / "whole"):
        pass
    steps = fit(system(), SHORT, tmp_path / "broken")
    for report in steps:
        if report.step == stop:
            steps.close()  # what the first Ctrl-C does
            break
    resumed = [report.step for report in fit(system(), SHORT, tmp_path / "broken")]
    assert resumed == list(range(stop + 1, 7))
    same(tmp_path / "whole", tmp_path / "broken")


def test_a_killed_run_repeats_from_its_checkpoint(tmp_path: Path) -> None:
    for _ in fit(regression(), SHORT, tmp_path / "whole"):
        pass
    steps = fit(regression(), SHORT, tmp_path / "killed")
    next(report for report in steps if report.step == 5)
    # As after SIGKILL: only what is on the disk is left. Step 5 was journalled or not, but never
    # saved.
    shutil.copytree(tmp_path / "killed", tmp_path / "copy")
    assert [report.step for report in fit(regression(), SHORT, tmp_path / "copy")] == [4, 5, 6]
    same(tmp_path / "whole", tmp_path / "copy")


def test_one_step_is_plain_adamw(tmp_path: Path) -> None:
    """Against the same thing written without the loop."""
    recipe = regression()
    for _ in fit(recipe, Training(steps=3, log_every=1), tmp_path):
        pass
    plain = regression()
    model, update = plain.model, plain.updates[0]
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    losses = []
    for step in (1, 2, 3):
        torch.manual_seed(key(0, 0, step))
        optimizer.zero_grad()
        loss = update.objective(batch(step - 1), step)
        (loss.total / loss.count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.total.item() / 8)
    for ours, theirs in zip(recipe.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert [row["loss"] for row in journal(tmp_path)] == pytest.approx(losses, rel=1e-5)


def test_rows_of_the_journal_are_means_over_their_steps(tmp_path: Path) -> None:
    training = Training(steps=7, log_every=3)
    terms = [report.terms for report in fit(regression(), training, tmp_path)]
    rows = journal(tmp_path)
    assert [row["step"] for row in rows] == [3, 6, 7]
    for row, part in zip(rows, (terms[:3], terms[3:6], terms[6:]), strict=True):
        for name in ("loss", "mse", "norm"):
            mean = sum(each[name] for each in part) / len(part)
            assert row[name] == pytest.approx(mean, rel=1e-6)
            assert len(part) == 1 or row[name] != pytest.approx(part[-1][name], rel=1e-3)


def test_accumulation_of_unequal_batches_is_the_large_batch(tmp_path: Path) -> None:
    sizes = [3, 8, 5]

    def system(batches) -> Recipe:
        torch.manual_seed(0)
        model = nn.Linear(4, 1)

        def objective(data, step: int) -> Loss:
            error = (model(data["image"]) - data["y"]).square().sum()
            return Loss(error, len(data["y"]), {"mse": error.detach() / len(data["y"])})

        update = Update(
            "", model, torch.optim.SGD(model.parameters(), 0.1), objective, max_norm=None
        )
        return Recipe(
            model=model,
            exported=model,
            updates=[update],
            batches=batches,
            export=partial(checkpoint.export, card={"model": "toy"}),
        )

    parts = [batch(k, size) for k, size in enumerate(sizes)]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    small, large = system(lambda start: iter(parts)), system(lambda start: iter([whole]))
    for _ in fit(small, Training(steps=1, accumulate=3), tmp_path / "small"):
        pass
    for _ in fit(large, Training(steps=1), tmp_path / "large"):
        pass
    torch.testing.assert_close(small.model.weight, large.model.weight, rtol=1e-6, atol=1e-7)
    assert journal(tmp_path / "small")[0]["mse"] == pytest.approx(
        journal(tmp_path / "large")[0]["mse"]
    )


def test_every_update_gets_the_batches_it_asks_for(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    first = {endless_id(k): k for k in range(20)}

    def system(data: str) -> Recipe:
        recipe = two_players()
        spied = []
        for update in recipe.updates:

            def objective(values, step, inner=update.objective, name=update.name) -> Loss:
                seen.append((name, first[values["image"][0, 0].item()]))
                return inner(values, step)

            spied.append(update._replace(objective=objective))
        spied[0] = spied[0]._replace(data=data)
        return dataclasses.replace(recipe, updates=spied)

    for _ in fit(system("each"), Training(steps=2), tmp_path / "each"):
        pass
    assert seen == [("c", 0), ("c", 1), ("g", 1), ("c", 2), ("c", 3), ("g", 3)]
    seen.clear()
    for _ in fit(system("once"), Training(steps=2), tmp_path / "once"):  # the lecture's
        pass
    assert seen == [("c", 0), ("c", 0), ("g", 0), ("c", 1), ("c", 1), ("g", 1)]


def endless_id(k: int) -> float:
    return batch(k)["image"][0, 0].item()


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path: Path) -> None:
    recipe = regression(poison=frozenset({2, 3}))
    before = {}
    for report in fit(recipe, Training(steps=5, log_every=1), tmp_path):
        now = recipe.model[0].weight.detach().clone()
        if report.step in (2, 3):
            assert torch.equal(now, before["weight"])
        before["weight"] = now
    assert [row["skipped"] for row in journal(tmp_path)] == [0, 1, 2, 2, 2]
    assert all(torch.isfinite(p).all() for p in recipe.model.parameters())


def test_five_in_a_row_end_the_run_and_keep_the_last_checkpoint(tmp_path: Path) -> None:
    recipe = regression(poison=frozenset(range(4, 30)))
    settings = Training(steps=30, save_every=2, log_every=1)
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        for _ in fit(recipe, settings, tmp_path):
            pass
    path, faults = checkpoint.newest(tmp_path)
    assert path is not None and path.name == "step-000006" and not faults
    # and patience is not renewed by starting again
    with pytest.raises(FloatingPointError):
        for report in fit(regression(poison=frozenset(range(4, 30))), settings, tmp_path):
            assert report.step < 9


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    recipe = regression()
    steps = fit(recipe, Training(steps=8, save_every=2), tmp_path)
    for report in steps:
        if report.step == 3:
            recipe.model[1].running_mean.fill_(torch.nan)
            break
    with pytest.raises(FloatingPointError, match="running_mean"):
        for _ in steps:
            pass
    path, faults = checkpoint.newest(tmp_path)
    assert path is not None and path.name == "step-000002" and not faults


def test_averaged_weights_have_their_half_life() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    ema = Ema(module, halflife=10, ramp=1e9)
    module.weight.data.fill_(1.0)
    for step in range(1, 11):
        ema.update(step)
    assert ema.module.weight.item() == pytest.approx(0.5, rel=1e-5)


def test_averaged_weights_forget_the_start_during_the_warm_up() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.data.fill_(0.0)
    ema = Ema(module, halflife=1e6)
    module.weight.data.fill_(1.0)
    for step in range(1, 101):
        ema.update(step)
    assert ema.module.weight.item() > 0.999


@pytest.mark.parametrize(
    ("shape", "values"),
    [("constant", (1.0, 1.0)), ("linear", (0.55, 0.1)), ("cosine", (0.55, 0.1))],
)
def test_learning_rates_as_data(shape, values) -> None:
    training = Training(steps=110, warmup=10, schedule=shape, rate_floor=0.1)
    assert [rate_factor(training, s) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert rate_factor(training, 60) == pytest.approx(values[0])
    assert rate_factor(training, 110) == pytest.approx(values[1])


def test_bfloat16_is_autocast_and_weights_stay_float32(tmp_path: Path) -> None:
    seen = []
    recipe = regression()
    recipe.model[0].register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    for _ in fit(recipe, Training(steps=2, precision="bfloat16"), tmp_path):
        pass
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in recipe.model.parameters()} == {torch.float32}


def test_batches_are_asked_for_from_the_right_place(tmp_path: Path) -> None:
    asked = []
    recipe = two_players()

    def batches(start: int):
        asked.append(start)
        return endless(start)

    spied = dataclasses.replace(recipe, batches=batches)
    steps = fit(spied, Training(steps=4, accumulate=3), tmp_path)
    next(steps)
    steps.close()
    for _ in fit(
        dataclasses.replace(two_players(), batches=batches),
        Training(steps=4, accumulate=3),
        tmp_path,
    ):
        pass
    assert asked == [0, 6]  # one step: two critic updates of three batches each


@pytest.mark.parametrize("most", [0.01, 1e6, None])
def test_gradients_are_clipped_by_their_common_norm_as_torch_does(most) -> None:
    """With plain gradient descent, which unlike Adam sees every factor of a gradient."""
    results = []
    for ours in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
        optimizer = torch.optim.SGD(model.parameters(), 0.5)

        def objective(data, step: int, model=model) -> Loss:
            error = (model(data["image"]) - data["y"]).square().sum()
            return Loss(error, len(data["y"]), {})

        if ours:
            update = Update("", model, optimizer, objective, max_norm=most)
            told = descend(update, [batch(0)], 1, "float32")["norm"]
        else:
            loss = objective(batch(0), 1)
            (loss.total / loss.count).backward()
            limit = float("inf") if most is None else most
            told = float(nn.utils.clip_grad_norm_(model.parameters(), limit))
            optimizer.step()
        results.append((told, [p.detach() for p in model.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5) and results[0][0] > 0.1
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("halflife", [0.0, 4.0])
@pytest.mark.parametrize("shown", ["evaluate", "sample"])
def test_training_goes_on_in_training_mode_after_a_look_at_the_model(
    tmp_path: Path, shown: str, halflife: float
) -> None:
    """Whether the weights that train are looked at, or their average."""
    recipe, modes = regression(), []
    inner = recipe.updates[0].objective

    def objective(data, step: int) -> Loss:
        modes.append(recipe.model.training)
        return inner(data, step)

    def look(module: nn.Module):
        modes.append(("looked", module.training))
        return {"score": 0.0} if shown == "evaluate" else np.zeros((8, 8, 3), np.uint8)

    spied = dataclasses.replace(
        recipe, updates=[recipe.updates[0]._replace(objective=objective)],
        **{"sample": None} | {shown: look},
    )  # fmt: skip
    settings = Training(steps=3, sample_every=1, evaluate_every=1, ema_halflife=halflife)
    for _ in fit(spied, settings, tmp_path):
        pass
    assert modes == [True, ("looked", False)] * 3


def test_an_average_without_a_half_life_is_the_newest_weights() -> None:
    module = nn.Linear(1, 1, bias=False)
    ema = Ema(module, halflife=10, ramp=0.0)
    module.weight.data.fill_(3.0)
    ema.update(1)
    assert ema.module.weight.item() == 3
    with pytest.raises(ValueError, match="must be positive, not 0"):
        Ema(module, halflife=0)

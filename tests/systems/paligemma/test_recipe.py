"""Training a PaliGemma: what is asked, what is learned, and parts of trained models."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from tests.systems.gemma.tiny_gguf import write_gguf
from triptych.cli.main import run as command
from triptych.data.order.batches import take
from triptych.data.scene_source import SceneSource
from triptych.data.sources import open_train_and_test
from triptych.fields import to_json
from triptych.loading import load
from triptych.requests import Answers, Training, TrainPali, TrainSiglip, TrainVlm
from triptych.scenes.captions import parse
from triptych.scenes.descriptions import questions
from triptych.scenes.drawing import boxes
from triptych.scenes.judge import holds
from triptych.systems.mask_codes.model import MaskCodes, MaskCodesConfig
from triptych.systems.paligemma import examples, held_out, learning
from triptych.systems.paligemma.ask_all import ask_all
from triptych.systems.paligemma.examples import (
    AskedScenes,
    Example,
    draw_examples,
    encode,
    write_found,
)
from triptych.systems.paligemma.learning import group_by_length
from triptych.systems.paligemma.recipe import build
from triptych.text.language import train_language_tokenizer
from triptych.text.locations import parse_objects
from triptych.train import checkpoint
from triptych.train.distributed import World
from triptych.train.loop import fit
from triptych.training import build as start_any
from triptych.vision.images import save_picture
from triptych.weights.loaded import Card

SMALL = {"width": 32, "layers": 2, "heads": 2, "head_width": 16, "hidden": 64}
EYE = Answers(
    image_width=32, image_layers=1, image_heads=2, vocabulary=400, stem=(8, 16, 32), length=48,
    patch=8,
)  # fmt: skip


@pytest.fixture(autouse=True)
def few_texts(monkeypatch):
    """A vocabulary of the texts of few pictures, which is quick."""
    monkeypatch.setattr(examples, "LEARNED_FROM", 60)


def settings(data: str, steps: int, **more) -> Training:
    return Training(data=data, steps=steps, batch_size=8, sample_every=0, device="cpu", **more)


def start(request):
    return build(request, World(), load)


def test_examples_are_true_of_their_pictures():
    """Captions hold, answers are those of the scene, boxes are its boxes to half a pixel."""
    source = AskedScenes(SceneSource("scenes", size=32))
    batch = take(source, list(range(40)))
    scenes = source.scenes.scenes(range(40))
    torch.manual_seed(0)
    seen = set()
    for task in ("caption", "answer", "detect"):
        draw = draw_examples(source, (task,), ())
        for _ in range(3):
            for row, (prefix, suffix) in enumerate(draw(batch)):
                scene = scenes[row]
                seen.add((task, bool(suffix)))
                if task == "caption":
                    assert prefix == "caption en"
                    ground = scene.ground.colour, scene.ground.texture
                    assert holds(parse(suffix), scene.things, *ground).whole
                elif task == "answer":
                    assert (prefix.removeprefix("answer en "), suffix) in questions(scene)
                else:
                    label = prefix.removeprefix("detect ")
                    named = [f"{t.colour} {t.shape}" for t in scene.things]
                    parsed = parse_objects(suffix)
                    assert parsed.ignored == ()
                    assert [each.label for each in parsed.objects] == [label] * named.count(label)
                    own = np.clip(boxes(scene), 0, 1)
                    for each in parsed.objects:
                        assert np.abs(own - np.array(each.box)).max(1).min() <= 0.5 / 32 + 1e-3
                        pixels = np.array(each.box) * 32
                        assert np.abs(pixels - pixels.round()).max() <= 0.5 * 32 / 1023 + 1e-6
    assert ("detect", True) in seen and ("detect", False) in seen


def test_boxes_are_written_from_the_top_left_on():
    found = [
        (0.5, 0.5, 0.6, 0.6),
        (0.2, 0.1, 0.3, 0.3),
        (-0.1, 0.1, 0.1, 1.2),
        (0.4, 0.4, 0.4, 0.5),
    ]
    text = write_found(found, ["a", "a", "a", "a"], "a", 10)
    corners = [each.box[:2] for each in parse_objects(text).objects]
    np.testing.assert_allclose(corners, [(0.0, 0.1), (0.2, 0.1), (0.5, 0.5)], atol=1e-3)


def test_boxes_are_written_in_whole_pixels():
    """The nearest ones, at least one pixel, and never outside the picture."""
    near = [(0.14, 0.16, 0.34, 0.36), (0.52, 0.5, 0.53, 0.51), (0.97, 0.98, 1.2, 1.0)]
    text = write_found(near, ["a", "a", "a"], "a", 10)
    found = [each.box for each in parse_objects(text).objects]
    whole = [(0.1, 0.2, 0.3, 0.4), (0.5, 0.5, 0.6, 0.6), (0.9, 0.9, 1.0, 1.0)]
    np.testing.assert_allclose(found, whole, atol=1e-3)


@pytest.mark.parametrize("kind", [TrainVlm, TrainPali])
def test_a_new_model_knows_what_is_near(kind):
    """Neighbouring patches and locations have similar vectors, distant ones do not."""
    recipe = start_any(kind(settings("scenes", 1), EYE, **SMALL))
    model, config = recipe.model, recipe.model.config
    side = config.image.size // config.image.patch
    places = F.normalize(model.image.position.detach(), dim=1).view(side, side, -1)
    middle = (places[3, 3] * places).sum(2)
    near = torch.stack([middle[2, 3], middle[4, 3], middle[3, 2], middle[3, 4]])
    assert near.min() > middle[3, 6:].max() and near.min() > middle[6:, 3].max()
    assert middle.flatten().argmax() == 3 * side + 3  # no two places are alike
    words = Tokenizer.from_str(recipe.vocabulary)
    tokens = [words.token_to_id(f"<loc{number:04d}>") for number in range(1024)]
    table = model.text.token.weight.detach()
    cosines = (lambda unit: unit @ unit.T)(F.normalize(table[tokens], dim=1))
    assert cosines.diagonal(1).min() > 0.9
    assert cosines.diagonal(16).mean() < 0.8 and cosines.diagonal(500).abs().mean() < 0.4
    others = table[: min(tokens)]
    assert table[tokens].norm(dim=1).mean() == pytest.approx(
        float(others.norm(dim=1).mean()), rel=0.1
    )


def test_rows_are_prefix_and_suffix():
    """The end token is learned, and answers that are cut are counted."""
    tokenizer = train_language_tokenizer(["caption en a red circle"] * 3, 330, places=True)
    rows = [Example("caption en", "a red circle"), Example("detect x", "<loc0001>" * 4 + " x")]
    tokens, prefix, lengths, cut = encode(rows, tokenizer, 60)
    assert cut == 0 and tokens.shape == (2, int(lengths.max()))
    for row, (asked, answer) in enumerate(rows):
        own = tokens[row, : lengths[row]].tolist()
        assert own[: prefix[row]] == tokenizer.question(asked)
        assert own[-1] == tokenizer.end and tokenizer.decode(own[prefix[row] : -1]) == answer
        assert set(tokens[row, lengths[row] :].tolist()) <= {tokenizer.pad}
    *_, lengths, cut = encode(rows, tokenizer, 5)
    assert cut == 2 and lengths.tolist() == [5, 5]


def eight(folder: Path) -> str:
    """Eight pictures of noise, each with a caption of its own."""
    rng = np.random.default_rng(0)
    names = ["red", "green", "blue", "black", "white", "grey", "pink", "brown"]
    for number, name in enumerate(names):
        path = folder / "eight" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        save_picture(path, rng.integers(0, 256, (32, 32, 3), np.uint8))
        path.with_suffix(".txt").write_text(f"a picture in {name}")
    return f"{folder / 'eight'}"


def test_eight_pictures_are_learned_by_heart(tmp_path: Path, capsys):
    """Each of eight captions comes back from the run folder, by the command too; held-out captions
    are likelier with some picture than with none, since a model never saw one without.
    """
    training = settings(eight(tmp_path), 100, ema_halflife=3, save_every=100)
    request = TrainVlm(training, dataclasses.replace(EYE, learning_rate=3e-3), **SMALL)
    recipe = start(request)
    for _ in fit(recipe, training, tmp_path / "run"):
        pass
    loaded = load(f"{tmp_path / 'run'}", dtype="float32")
    batch = next(recipe.batches(0))
    answers = ask_all(
        loaded.model, loaded.language, batch["image"], ["caption en"] * len(batch["image"]), 20
    )
    right = [found.text == text for found, text in zip(answers, batch["caption"], strict=True)]
    assert sum(right) >= 7
    row = recipe.evaluate(loaded.model)
    assert set(row) == {"perplexity", "perplexity_shuffled", "perplexity_blind"}
    assert all(value > 1 for value in row.values())
    capsys.readouterr()
    picture = f"{tmp_path / 'eight' / '0.png'}"
    assert command(["caption", picture, "--model", f"{tmp_path / 'run'}"]) == 0
    assert capsys.readouterr().out.startswith("a picture in ")


@pytest.mark.parametrize("averaged", ["example", "token"])
def test_groups_of_similar_length_have_the_loss_of_all_rows_together(averaged):
    """The same sum, count and gradients as the rows at once, for questions of any length."""
    training = settings("scenes", 1, size=32)
    recipe = start(TrainVlm(training, dataclasses.replace(EYE, averaged=averaged), **SMALL))
    batch = next(recipe.batches(0))
    sums, gradients = [], []
    for group in (2, 3, 8):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(learning, "GROUP", group)
            torch.manual_seed(0)  # which draws the questions
            loss = recipe.updates[0].objective(batch, 0)
        recipe.model.zero_grad()
        loss.total.backward()
        sums.append(torch.stack([loss.total.detach(), torch.as_tensor(float(loss.count))]))
        gradients.append(recipe.model.projector.weight.grad.clone())
    for values in (sums, gradients):
        torch.testing.assert_close(values[:2], values[2:] * 2, rtol=1e-4, atol=1e-5)


def test_rows_of_similar_length_are_computed_together():
    lengths = torch.tensor([9, 2, 9, 3, 8, 2, 60, 3] * 4)
    groups = group_by_length(lengths, torch.device("cpu"))
    assert torch.equal(torch.cat(groups).sort().values, torch.arange(32))
    assert [int(lengths[rows].max()) for rows in groups] == [3, 60]
    assert len(group_by_length(lengths, torch.device("cuda"))) == 1


def test_three_steps_and_three_more_are_six_on_scenes(tmp_path: Path, monkeypatch):
    """All tasks, masks too; and the figures of held-out scenes are shares, with the floor. What is
    written of masks is not learned: it stays as it was given.
    """
    codes = MaskCodes(MaskCodesConfig((2, 2, 4, 4), 8, 4))
    (tmp_path / "codes").mkdir()
    checkpoint.export(tmp_path / "codes", codes, to_json(Card("mask-codes", to_json(codes.config))))
    monkeypatch.setattr(held_out, "HELD_OUT", 6)
    monkeypatch.setattr(held_out, "AT_ONCE", 3)
    training = settings("scenes-two", 6, save_every=3, size=32)
    request = TrainVlm(
        training,
        dataclasses.replace(EYE, length=24, mask_codes=f"{tmp_path / 'codes'}"),
        **SMALL,
    )
    for _ in fit(start(request), training, tmp_path / "whole"):
        pass
    steps = fit(start(request), training, tmp_path / "broken")
    next(report for report in steps if report.step == 3)
    steps.close()
    for _ in fit(start(request), training, tmp_path / "broken"):
        pass
    whole, broken = (
        load(f"{tmp_path / name}", dtype="float32").model.state_dict()
        for name in ("whole", "broken")
    )
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    kept = {name: x for name, x in whole.items() if name.startswith("masks.")}
    assert kept and all(torch.equal(codes.state_dict()[k[6:]], x) for k, x in kept.items())
    row = start(request).evaluate(load(f"{tmp_path / 'whole'}", dtype="float32").model)
    assert set(row) == {"captions_true", "questions_exact", "by_the_most_frequent_answer"}
    assert all(0 <= share <= 1 for share in row.values())


def test_parts_start_from_trained_models(tmp_path: Path):
    """The words of one run, frozen, in another; its sizes and vocabulary replace the others."""
    training = settings("scenes-two", 2, size=32)
    first = start(TrainVlm(training, EYE, **SMALL))
    for _ in fit(first, training, tmp_path / "first"):
        pass
    loaded = load(f"{tmp_path / 'first'}", dtype="float32")
    words = dataclasses.replace(loaded, model=loaded.model.text, config=loaded.config.text)

    def load_part(name, device="cpu", dtype="auto"):
        assert name == "words"
        return words

    request = TrainVlm(training, EYE, **SMALL | {"layers": 5}, language="words", freeze="text")
    model = build(request, World(), load_part).model
    before = loaded.model.text.state_dict()
    assert all(torch.equal(before[name], value) for name, value in model.text.state_dict().items())
    assert not any(p.requires_grad for p in model.text.parameters())
    assert all(p.requires_grad for p in model.image.parameters())


def test_a_whole_model_learns_more(tmp_path: Path):
    """Of other data, with other tasks: its weights, sizes and vocabulary are where it starts."""
    training = settings("scenes-one", 2, size=32)
    eye = dataclasses.replace(EYE, tasks=("answer", "detect"))
    for _ in fit(start(TrainVlm(training, eye, **SMALL)), training, tmp_path / "first"):
        pass
    first = load(f"{tmp_path / 'first'}", dtype="float32")
    codes = MaskCodes(MaskCodesConfig((2, 2, 4, 4), 8, 4))
    (tmp_path / "codes").mkdir()
    checkpoint.export(tmp_path / "codes", codes, to_json(Card("mask-codes", to_json(codes.config))))
    more = Answers(init=f"{tmp_path / 'first'}", mask_codes=f"{tmp_path / 'codes'}", length=48)
    second = settings("scenes-two", 1, size=32)
    recipe = start(TrainVlm(second, more))
    own, before = recipe.model.state_dict(), first.model.state_dict()
    assert all(torch.equal(before[name], own[name]) for name in before)
    assert {name for name in own if name not in before} == {
        f"masks.{name}" for name in codes.state_dict()
    }
    for _ in fit(recipe, second, tmp_path / "second"):
        pass
    after = load(f"{tmp_path / 'second'}", dtype="float32")
    assert after.language.vocabulary == first.language.vocabulary
    assert not torch.equal(after.model.projector.weight, first.model.projector.weight)
    frozen = start(TrainVlm(second, more, freeze="text", lora=0)).model
    assert not any(p.requires_grad for p in frozen.text.parameters())


def test_what_a_model_cannot_start_from_is_said(tmp_path: Path):
    training = settings("scenes-one", 1, size=32)
    without = dataclasses.replace(EYE, tasks=("answer",))
    for _ in fit(start(TrainVlm(training, without, **SMALL)), training, tmp_path / "run"):
        pass
    name = f"{tmp_path / 'run'}"
    with pytest.raises(ValueError, match="no tokens for boxes and masks"):
        start(TrainVlm(training, Answers(init=name)))
    with pytest.raises(ValueError, match="reads 32 pixels: add --size 32"):
        start(TrainVlm(settings("scenes-one", 1, size=64), Answers(("answer",), init=name)))
    with pytest.raises(ValueError, match="leave out language"):
        TrainVlm(training, Answers(init=name), language="other")
    with pytest.raises(ValueError, match="leave out vision"):
        Answers(init=name, vision="other")


def test_an_answer_about_a_scene_is_few_tokens():
    """The vocabulary knows answers as they stand alone, without a space before them."""
    data = learning.open_asked(settings("scenes", 1, size=32), EYE)
    tokenizer = learning.learn_words(dataclasses.replace(EYE, vocabulary=1024), data)
    scenes = data.train.scenes.scenes(range(40))
    answers = {answer for scene in scenes for _, answer in questions(scene)}
    assert len(answers) > 20
    split = {answer for answer in answers if len(tokenizer.encode(answer)) > 1}
    assert len(split) <= 0.1 * len(answers), split


def test_a_gguf_file_gets_an_eye(tmp_path: Path):
    """Low-rank updates of the words, merged in the run folder, and its vocabulary."""
    write_gguf(tmp_path / "small.gguf")
    training = settings(eight(tmp_path), 2)
    request = TrainVlm(training, EYE, **SMALL, language=f"{tmp_path / 'small.gguf'}", lora=2)
    recipe = start(request)
    trained = {name for name, p in recipe.model.text.named_parameters() if p.requires_grad}
    assert trained and all("lora" in name for name in trained)
    for _ in fit(recipe, training, tmp_path / "run"):
        pass
    words = load(f"{tmp_path / 'small.gguf'}", dtype="float32")
    run = load(f"{tmp_path / 'run'}", dtype="float32")
    assert run.language.encode("two red 🙂  circles") == words.language.encode(
        "two red 🙂  circles"
    )
    before, after = words.model.state_dict(), run.model.text.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(
        name.split(".")[-2] in ("q_proj", "v_proj", "up", "down") for name in changed
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora": 4}, "give language"),
        ({"tasks": ("draw",)}, "tasks are some of"),
        ({"tasks": ("segment",)}, "mask_codes go together"),
        ({"tasks": ("caption",), "mask_codes": "run"}, "mask_codes go together"),
        ({"freeze": "text"}, "give language"),
        ({"freeze": "image"}, "give vision"),
        ({"length": 2}, "length must be at least 8"),
        ({"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    own = {name: value for name, value in fields.items() if name in ("lora", "freeze")}
    with pytest.raises(ValueError, match=message):
        TrainVlm(answers=Answers(**{k: v for k, v in fields.items() if k not in own}), **own)


@pytest.mark.parametrize("answers", [Answers(("answer",)), Answers(mask_codes="run")])
def test_data_without_questions_is_refused(answers):
    with pytest.raises(ValueError, match="captions only, no questions, boxes or masks"):
        start(TrainVlm(settings("digits", 1), answers))


def pairs(folder: Path, lines) -> Path:
    eight(folder)
    path = folder / "pairs.jsonl"
    path.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return path


def test_pairs_of_ones_own_are_learned(tmp_path: Path, monkeypatch):
    """Each of several questions about a picture, a box among the answers."""
    box = "<loc0001><loc0002><loc0300><loc0400> thing"
    lines = [
        {"picture": f"eight/{n}.png", "prefix": prefix, "suffix": suffix}
        for n in range(8)
        for prefix, suffix in ((f"what {n}?", f"number {n}"), ("detect thing", box))
    ]
    path = pairs(tmp_path, lines)
    training = settings(f"{path}", 2)
    recipe = start(TrainVlm(training, EYE, **SMALL))
    source, _ = open_train_and_test(f"{path}")
    seen = set()
    draw = examples.draw_examples(source, (), ())
    for k in range(6):
        seen |= set(draw(next(recipe.batches(k))))
    assert seen <= {(line["prefix"], line["suffix"]) for line in lines} and len(seen) > 6
    for _ in fit(recipe, training, tmp_path / "run"):
        pass
    loaded = load(f"{tmp_path / 'run'}", dtype="float32")
    assert loaded.language.decode(loaded.language.answer(box)[:-1]) == box
    assert recipe.evaluate(loaded.model)["perplexity"] > 1
    with pytest.raises(ValueError, match="questions of its own"):
        start(TrainVlm(training, dataclasses.replace(EYE, tasks=("caption",)), **SMALL))
    with pytest.raises(ValueError, match=r"no captions: it is for"):
        start_any(TrainSiglip(dataclasses.replace(training, steps=1)))


def test_lines_that_cannot_be_used_are_told(tmp_path: Path):
    """And left out, unless they are more than a tenth."""
    good = [{"picture": f"eight/{n % 8}.png", "prefix": f"a {n}", "suffix": ""} for n in range(190)]
    bad = [
        "{", "[1]", {"picture": "eight/0.png", "prefix": "x"},
        {"picture": "../secret.png", "prefix": "x", "suffix": "y"},
        {"picture": "/etc/passwd.png", "prefix": "x", "suffix": "y"},
        {"picture": "eight/1.png", "prefix": "a\nb", "suffix": "y"},
        {"picture": "eight/1.png", "prefix": " ", "suffix": "y"},
    ]  # fmt: skip
    source, _ = open_train_and_test(f"{pairs(tmp_path, [*good, *bad])}", size=32)
    (said,) = source.info.notes
    assert said.startswith("7 of 197 lines") and "line 191 is no JSON" in said
    assert "line 194 names a picture outside its folder" in said and not source.info.skipped
    with pytest.raises(ValueError, match="cannot be used"):
        open_train_and_test(f"{pairs(tmp_path, [*good[:3], *bad])}", size=32)

"""Objects: boxes and masks in answers, the commands that draw them, and the figures of scenes."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from triptych.cli.main import run as command
from triptych.data.scene_source import SceneSource
from triptych.fields import to_json
from triptych.loading import load
from triptych.scenes.descriptions import caption, questions
from triptych.scenes.drawing import boxes, masks
from triptych.system import ModelKind
from triptych.systems.gemma.model import GemmaConfig
from triptych.systems.mask_codes.crops import draw_masks, overlap
from triptych.systems.mask_codes.model import MaskCodes, MaskCodesConfig
from triptych.systems.paligemma.ask_all import Written, find_objects, permit_objects
from triptych.systems.paligemma.examples import AskedScenes, write_found, write_masks
from triptych.systems.paligemma.model import KINDS, PaliGemma, PaliGemmaConfig
from triptych.systems.paligemma.scene_report import SceneJudge, kind_of, match
from triptych.systems.siglip.model import SiglipImageConfig
from triptych.text.language import train_language_tokenizer
from triptych.text.locations import parse_objects
from triptych.train import checkpoint
from triptych.vision.boxes import draw_masks as colour_masks
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.loaded import Card

CODES = MaskCodesConfig((4, 4, 6, 8), 8, 4)


@pytest.fixture(scope="module")
def tokenizer():
    return train_language_tokenizer(["segment red circle ; blue square"] * 3, 340, places=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer) -> Path:
    """A run folder of a model with mask codes, not trained."""
    path = tmp_path_factory.mktemp("vlm")
    torch.manual_seed(0)
    assert isinstance(KINDS["paligemma"], ModelKind)
    config = PaliGemmaConfig(
        SiglipImageConfig(32, 8, 16, 1, 2, 32, pooled=False),
        GemmaConfig(
            tokenizer.vocabulary, 24, 2, 2, 1, 12, 48, 256, post_norms=False, head_norms=False,
            window=None, pattern=1, base=10_000.0, query_scale=12.0,
        ),
        CODES,
    )  # fmt: skip
    transform = ImageTransform(32, HALF, HALF, "squash", "bicubic", crop=False)
    card = Card("paligemma", to_json(config), transform=transform, triptych="0")
    checkpoint.export(path, PaliGemma(config), to_json(card))
    tokenizer.save(path)
    return path


@pytest.fixture
def picture(tmp_path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    return f"{tmp_path / 'p.png'}"


def test_segment_draws_masks(capsys, folder: Path, picture: str, tmp_path: Path):
    """Those of the codes in the answer, in the picture's own size; what a transcript keeps is what
    training reads; a second call overwrites nothing.
    """
    out, log = tmp_path / "out", tmp_path / "log.jsonl"
    words = ["segment", picture, "red circle", "square", "--model", f"{folder}", "--json"]
    words += ["--temperature", "3", "--seed", "4", "--max-tokens", "90", "--transcript", f"{log}"]
    for _ in range(2):
        assert command([*words, "--out", f"{out}"]) == 0
        answer = json.loads(capsys.readouterr().out)
    assert answer["ignored"] == [] and answer["boxes"]
    located = parse_objects(answer["text"]).objects
    assert [list(each.codes) for each in located] == [row["codes"] for row in answer["boxes"]]
    model = MaskCodes(CODES)
    state = load(f"{folder}", dtype="float32")
    model.load_state_dict(state.model.masks.state_dict())
    drawn = draw_masks(model.eval(), located, 40, 30)
    pictures = sorted(out.glob("p-mask-*.png"))
    assert len(pictures) == 2 * len(located) and len(list(out.glob("p-masks*.png"))) == 2
    for number, (row, mask) in enumerate(zip(answer["boxes"], drawn, strict=True)):
        assert row["pixels"] == int(mask.sum()) and 0 < row["score"] <= 1
        with Image.open(next(out.glob(f"p-mask-{number:02d}-*-2.png"))) as image:
            assert np.array_equal(np.asarray(image) > 0, mask.numpy())
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(rows) == 2 and rows[0] == rows[1]
    assert rows[0] == {
        "picture": "p.png", "prefix": "segment red circle ; square", "suffix": answer["text"],
    }  # fmt: skip


def test_objects_are_printed_as_they_are_complete(capsys, folder: Path, picture: str):
    words = ["--model", f"{folder}", "--temperature", "3", "--seed", "4", "--max-tokens", "60"]
    assert command(["segment", picture, "red circle", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.endswith("  red circle") for line in lines)
    detect = ["ask", picture, "--task", "detect", "--labels", "square", *words]
    assert command([*detect, "--json"]) == 0
    boxes_of = json.loads(capsys.readouterr().out)["boxes"]
    assert command(detect) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [" ".join(f"{x:.3f}" for x in r["box"]) + "  square" for r in boxes_of]


def test_detect_takes_the_model_too(capsys, folder: Path, picture: str, tmp_path: Path):
    """The boxes of `ask`, best first, in pixels, as drawn pictures and in every format."""
    words = ["--labels", "square", "red circle", "--model", f"{folder}", "--json"]
    assert (
        command(["detect", picture, *words, "--out", f"{tmp_path / 'o'}", "--format", "coco"]) == 0
    )
    found = json.loads(capsys.readouterr().out)["boxes"]
    assert command(["ask", picture, "--task", "detect", *words]) == 0
    asked = sorted(json.loads(capsys.readouterr().out)["boxes"], key=lambda row: -row["score"])
    assert [row["label"] for row in found] == [row["label"] for row in asked]
    for ours, theirs in zip(found, asked, strict=True):
        expected = np.array(theirs["box"]) * [30, 40, 30, 40]
        np.testing.assert_allclose(ours["pixels"], expected, atol=0.01)
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
    names = sorted(path.name for path in (tmp_path / "o").iterdir())
    assert names == ["p-boxes.png", "p.coco.json"]
    assert command(["detect", picture, *words, "--method", "window"]) == 2
    assert "--method cannot be used" in capsys.readouterr().err
    many, out = tmp_path / "many", tmp_path / "pass"
    many.mkdir()
    shutil.copy(picture, many / "one.png")
    passing = ["detect", "--batch", f"{many}", "--out", f"{out}", *words]
    assert command([*passing, "--method", "window"]) == 3
    assert "--method cannot be used" in capsys.readouterr().err
    assert command(passing) == 0
    (row,) = pyarrow.parquet.read_table(out / "part-000000.parquet").to_pylist()
    assert (row["key"], row["width"], row["height"]) == ("one.png", 30, 40)
    assert [box["label"] for box in row["boxes"]] == [box["label"] for box in found]
    for ours, theirs in zip(row["boxes"], found, strict=True):
        assert ours["pixels"] == pytest.approx(theirs["pixels"], abs=0.01)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["P", "--model", "M"], 2, "labels and the tasks"),
        (["P", "a;b", "--model", "M"], 2, "semicolon"),
        (["P", "cat", "--model", "M", "--codes", "M"], 3, "is a paligemma, and no mask codes"),
        (["P", "cat", "--model", "M", "--max-tokens", "5"], 3, "no room for an object"),
        (["P", "cat", "--model", "M", "--transcript", "log.txt"], 2, "should end in .jsonl"),
        (["P", "cat", "--model", "M", "--out", "P"], 2, "is a file"),
        (["none.png", "cat", "--model", "M"], 3, "none.png"),
        (["P", "cat", "--model", "CODES"], 3, "does not answer about pictures"),
    ],
)
def test_what_cannot_be_segmented_is_said(capsys, tmp_path, folder, picture, words, code, said):
    codes = MaskCodes(CODES)
    checkpoint.export(tmp_path, codes, to_json(Card("mask-codes", to_json(codes.config))))
    places = {"M": f"{folder}", "P": picture, "CODES": f"{tmp_path}"}
    assert command(["segment", *[places.get(word, word) for word in words]]) == code
    out = capsys.readouterr()
    assert said in out.err and out.out == ""


def test_scores_are_those_of_the_locations(tokenizer):
    """Also of a text that was written without the grammar: four locations count, three do not."""
    text = "<loc0001><loc0002><loc0300> a <loc0001><loc0002><loc0300><loc0400> b"
    text += " ; <loc0300><loc0002><loc0001><loc0400> c ; <loc0000><loc0000><loc0001><loc0001> d"
    tokens = tokenizer.answer(text)[:-1]
    log_probs = [-0.01 * i for i in range(len(tokens))]
    found = find_objects(tokenizer, tokenizer.decode(tokens), tokens, log_probs, 1023)
    assert [each.label for each in found.located] == ["b", "d"]
    names = {tokenizer.require(f"<loc{place:04d}>") for place in range(1024)}
    at = [i for i, token in enumerate(tokens) if token in names]
    expected = [math.exp(sum(log_probs[i] for i in at[s : s + 4]) / 4) for s in (3, 11)]
    assert found.scores == pytest.approx(expected)


@pytest.mark.parametrize("greedy", [True, False])
def test_an_answer_is_empty_if_that_is_likelier_than_all_places_together(tokenizer, greedy):
    """Also where no single place is as likely; one that is drawn comes out so anyway."""
    permit = permit_objects(tokenizer, [["red star"]], 30, False, greedy)
    places = [tokenizer.require(f"<loc{number:04d}>") for number in range(1024)]
    scores = torch.full((tokenizer.vocabulary,), -30.0)
    scores[tokenizer.end] = math.log(0.4)
    scores[places[100:110]] = math.log(0.06)
    begins = permit(0, [], scores)
    assert begins[places[:1023]].all() and bool(begins[tokenizer.end]) is not greedy
    scores[places[100:110]] = math.log(0.03)
    empty = permit(0, [], scores)
    assert bool(empty[tokenizer.end]) and bool(empty[places[100]]) is not greedy
    made = [places[k] for k in (1, 2, 8, 9)] + tokenizer.encode(" red star")
    assert permit(0, made, scores)[tokenizer.end]  # an end that has one token is no such question


def test_true_masks_are_written_and_read_back():
    """By an autoencoder that was not trained: what is read is what its codes draw."""
    torch.manual_seed(0)
    codes = MaskCodes(CODES)
    scene = SceneSource("scenes", size=32).scenes([3])[0]
    thing = scene.things[0]
    label = f"{thing.colour} {thing.shape}"
    names = [f"{t.colour} {t.shape}" for t in scene.things]
    found = parse_objects(write_masks(scene, label, codes, 32))
    assert found.ignored == () and len(found.objects) == names.count(label)
    own = boxes(scene)[[name == label for name in names]]
    read = np.array([each.box for each in found.objects])
    apart = np.abs(read[np.argsort(read[:, 0])] - own[np.argsort(own[:, 0])]).max()
    assert apart <= 0.5 / 32 + 1e-3  # in whole pixels
    assert write_masks(scene, "red nothing", codes, 32) == ""


def test_pairs_of_masks_are_matched_best_first():
    overlaps = torch.tensor([[0.9, 0.8], [0.7, 0.0], [0.1, 0.0]])
    assert match(overlaps) == pytest.approx([0.9, 0.0, 0.0])
    assert match(torch.tensor([[0.5, 0.9], [0.6, 0.95]])) == pytest.approx([0.5, 0.95])
    assert match(torch.zeros(2, 0)) == [0.0, 0.0]


def test_a_mask_is_coloured_where_it_is():
    picture = np.full((4, 6, 3), 100, np.uint8)
    mask = torch.zeros(1, 4, 6, dtype=torch.bool)
    mask[0, 1, 2] = True
    drawn = colour_masks(picture, mask, ["a"])
    changed = (drawn != picture).any(-1)
    assert changed.sum() == 1 and changed[1, 2]
    with pytest.raises(ValueError, match="do not fit"):
        colour_masks(picture, mask[:, :3], ["a"])


class Oracle(SceneJudge):
    """Answers as somebody who knows the scene, or who sees the next one."""

    shift = 0

    def _ask(self, asked, limit, objects=False):
        answers = []
        for number, prefix in asked:
            scene = self.scenes[(number + self.shift) % len(self.scenes)]
            task, _, what = prefix.partition(" ")
            names = [f"{t.colour} {t.shape}" for t in scene.things]
            if task == "caption":
                text = caption(scene)
            elif task == "answer":
                text = dict(questions(scene)).get(what.removeprefix("en "), "one")
            elif task == "detect":
                text = write_found(boxes(scene), names, what, 32)
            else:
                text = write_masks(scene, what, self.codes, 32)
            tokens = self.tokenizer.answer(text)[:-1]
            answers.append(Written(text, tuple(tokens), (0.0,) * len(tokens)))
        return answers


def test_the_judge_knows_right_from_wrong(tokenizer):
    """True answers have full marks; those of the next scene are about the floor."""
    test = AskedScenes(SceneSource("scenes", size=32, split="test"))
    judge = Oracle(None, tokenizer, test, 20, torch.device("cpu"))
    judge.codes = MaskCodes(CODES)
    torch.nn.init.zeros_(judge.codes.decoder[-1].weight)  # any code fills its box
    torch.nn.init.ones_(judge.codes.decoder[-1].bias)
    right = judge.captions(9), judge.questions(), judge.boxes(), judge.masks(judge.codes)
    assert right[0]["share"] == 1 and all(each["share"] == 1 for each in right[1].values())
    assert {"all", "count", "colour", "shape", "relation"} <= set(right[1])
    assert right[2]["ap50"] == pytest.approx(1) and right[2]["absent"]["right"] == 0
    assert right[3]["miou"] == right[3]["by_true_codes"] == pytest.approx(right[3]["floor"])
    assert right[3]["missing"] == right[3]["more"] == right[2]["malformed"] == 0
    judge.shift = 1
    wrong = judge.captions(9), judge.questions(), judge.boxes(), judge.masks(judge.codes)
    assert right[0]["floor"] == wrong[0]["share"] < 0.2
    assert wrong[1]["all"]["share"] < right[1]["all"]["floor"] + 0.15
    assert wrong[2]["ap50"] < 0.2 and wrong[3]["miou"] < 0.2
    assert wrong[2]["absent"]["share"] > 0.9
    floor = right[3]["floor"]
    scenes = judge.scenes
    whole = []
    for scene in scenes:  # the floor again, by the boxes of the drawn masks
        for mask in torch.from_numpy(masks(scene, 32)):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            box = torch.zeros_like(mask)
            box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
            whole.append(float(overlap(box, mask)))
    assert floor == pytest.approx(sum(whole) / len(whole), abs=0.08)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("how many circles are there?", "count"),
        ("what color is the background?", "colour"),
        ("is the circle large or small?", "size"),
        ("is the red circle left of the blue star?", "relation"),
        ("is there a red circle?", "presence"),
        ("where is the red circle, seen from the blue star?", "relation"),
    ],
)
def test_questions_have_kinds(question, kind):
    assert kind_of(question) == kind

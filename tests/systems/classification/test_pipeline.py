"""Zero-shot classification: labels, templates, readings and sources, on small untrained models."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import triptych
from triptych.fields import to_json
from triptych.requests import Classify
from triptych.running import run
from triptych.systems.classification.pipeline import (
    read_labels,
    resolve_templates,
    to_probabilities,
)
from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, VitConfig
from triptych.systems.siglip.model import Siglip, SiglipConfig, SiglipImageConfig, SiglipTextConfig
from triptych.systems.two_towers.labels import embed_labels
from triptych.text.templates import TEMPLATES, prompts
from triptych.text.tokenizer import train_tokenizer
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.loaded import Card, Loaded

WORDS = ["a photo of a red bus", "a photo of a dog", "a drawing of the cat"]


def small(kind):
    torch.manual_seed(0)
    tokenizer = train_tokenizer(WORDS * 3, 600, 24)
    end = tokenizer.config.end
    if kind == "clip":
        vit = VitConfig(16, 8, 32, 2, 4, 64)
        text = TextConfig(tokenizer.vocabulary, 24, 32, 2, 4, 64, end=end)
        config = ClipConfig(16, vit, None, text)
        model, transform = Clip(config), ImageTransform(16)
    else:
        text = SiglipTextConfig(tokenizer.vocabulary, 24, 32, 2, 4, 64)
        config = SiglipConfig(SiglipImageConfig(16, 8, 32, 2, 4, 64), text)
        model = Siglip(config)
        transform = ImageTransform(16, HALF, HALF, "squash", crop=False)
    card = Card(kind, to_json(config), tokenizer=tokenizer.config, transform=transform)
    model.requires_grad_(False).eval()
    return Loaded(f"small-{kind}", card, config, model, tokenizer, transform)


@pytest.fixture(scope="module")
def clip():
    return small("clip")


@pytest.fixture(scope="module")
def siglip():
    return small("siglip")


def save(path, seed, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def last(request, loaded):
    *_, result = run(request, loaded)
    return result


def test_readings_are_their_closed_forms(clip, siglip, tmp_path):
    """By the exponential function alone, from the cosines that are shown."""
    files = tuple(str(tmp_path / f"{i}.png") for i in range(3))
    for number in range(3):
        save(tmp_path / f"{number}.png", number)
    for loaded in (clip, siglip):
        result = last(Classify(files, ("dog", "cat", "red bus")), loaded)
        scale = math.exp(float(loaded.model.logit_scale))
        bias = float(loaded.model.logit_bias) if loaded is siglip else 0.0
        for cosines, shares in zip(result.cosines(), result.probabilities(), strict=True):
            logits = [scale * c + bias for c in cosines.tolist()]
            if loaded is clip:
                total = sum(math.exp(x) for x in logits)
                expected = [math.exp(x) / total for x in logits]
            else:
                expected = [1 / (1 + math.exp(-x)) for x in logits]
            assert shares.tolist() == pytest.approx(expected, rel=1e-5)
        assert result.reads == ("softmax" if loaded is clip else "sigmoid")
        logits = loaded.model.logits(result.image, result.text)
        torch.testing.assert_close(result.logits(), logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="softmax or sigmoid"):
        to_probabilities(torch.zeros(1, 1), "argmax")


@pytest.mark.parametrize("names", [("photo",), ("simple", "a drawing of the {}")])
def test_prompts_are_averaged_in_the_shared_space(clip, names):
    templates = resolve_templates(names)
    text, _ = embed_labels(clip, ["dog", "red bus"], templates)
    for row, label in zip(text, ["dog", "red bus"], strict=True):
        mean = clip.embed_text(prompts(label, templates)).mean(0)
        torch.testing.assert_close(row, F.normalize(mean, dim=0), atol=1e-6, rtol=0)


def test_many_labels_are_embedded_in_parts(clip):
    labels = [f"dog {number}" for number in range(7)]
    whole, _ = embed_labels(clip, labels, TEMPLATES["simple"])
    parts, _ = embed_labels(clip, labels, TEMPLATES["simple"], at_once=15)  # two labels each
    torch.testing.assert_close(whole, parts, atol=1e-6, rtol=0)


def test_templates_by_name_and_of_ones_own():
    assert len(resolve_templates(["imagenet"])) == 80
    assert resolve_templates(["photo", "art: {}", "photo"]) == ("a photo of a {}.", "art: {}")
    with pytest.raises(ValueError, match="Did you mean 'imagenet'"):
        resolve_templates(["imagnet"])


def test_what_is_cut_from_a_prompt_is_said(clip):
    long = "dog " * 40
    _, cut = embed_labels(clip, ["cat", long.strip()], ("a photo of a {}",))
    assert list(cut) == [f"a photo of a {long.strip()}"]
    (lost,) = cut.values()
    assert lost and f"a photo of a {long}".strip().endswith(lost)


def test_labels_that_the_model_cannot_tell_apart_are_refused(clip):
    with pytest.raises(ValueError, match="'Dog' and 'dog' have the same tokens"):
        embed_labels(clip, ["Dog", "cat", "dog"], ("{}",))


def test_labels_from_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("dog\n  red   bus \ncat\n", encoding="utf-8")
    assert read_labels((str(path),)) == ("dog", "red bus", "cat")
    for text, words in (("dog\n\ncat\n", "label 2 of 3 is empty"), ("dog\ndog", "there twice")):
        path.write_text(text)
        with pytest.raises(ValueError, match=words) as raised:
            read_labels((str(path),))
        assert "names.txt" in str(raised.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_labels((str(path),))
    with pytest.raises(ValueError, match="cannot be read"):
        read_labels((str(tmp_path / "none.txt"),))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pictures": ()}, "no pictures"),
        ({"labels": "dog"}, "a list of texts"),
        ({"labels": ()}, "--labels cat dog"),
        ({"labels": ("dog", "cat", "dog ")}, "'dog' is there twice, as 1 and 3"),
        ({"labels": ("dog", " ")}, "label 2 of 2 is empty"),
        ({"templates": ()}, "no templates"),
        ({"batch_size": 0}, "batch_size 1 to"),
    ],
)
def test_requests_that_make_no_sense(changes, words):
    with pytest.raises(ValueError, match=words):
        Classify(**({"pictures": ("a.png",), "labels": ("dog",)} | changes))


def test_bad_pictures_are_named_and_left_out(clip, tmp_path):
    pixels = save(tmp_path / "good.png", 0)
    (tmp_path / "page.jpg").write_text("<html>")
    files = [str(tmp_path / name) for name in ("page.jpg", "good.png", "none.png")]
    result = last(Classify(tuple(files), ("dog", "cat")), clip)
    assert result.names == (files[1],) and set(result.skipped) == {files[0], files[2]}
    torch.testing.assert_close(result.image, clip.embed_image([pixels]), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"no picture could be read\n.*page.jpg: an HTML page"):
        last(Classify((files[0],), ("dog",)), clip)


def test_batches_change_nothing(clip, tmp_path):
    for number in range(7):
        save(tmp_path / f"{number}.png", number, (16 + number, 40))
    steps = list(run(Classify((str(tmp_path),), ("dog", "cat"), batch_size=2), clip))
    assert len(steps) > 2 and steps[-1].done == 1
    assert [len(step.names) for step in steps] == sorted({len(step.names) for step in steps})
    whole = last(Classify((str(tmp_path),), ("dog", "cat"), batch_size=64), clip)
    torch.testing.assert_close(steps[-1].image, whole.image, atol=1e-6, rtol=0)
    assert steps[-1].names == whole.names == tuple(str(tmp_path / f"{i}.png") for i in range(7))


def test_class_folders_are_the_truth(clip, tmp_path):
    for name, count in (("red_bus", 2), ("cat", 3)):
        for number in range(count):
            save(tmp_path / name / f"{number}.png", number)
    result = last(Classify((str(tmp_path),), ("auto",)), clip)
    assert result.labels == ("cat", "red bus")
    assert result.truth.tolist() == [0, 0, 0, 1, 1]
    assert result.names[0] == "cat/0.png"
    renamed = last(Classify((str(tmp_path),), ("dog", "drawing"), truth=True), clip)
    assert renamed.labels == ("dog", "drawing") and renamed.truth.tolist() == [0, 0, 0, 1, 1]
    assert last(Classify((str(tmp_path),), ("dog", "drawing")), clip).truth is None
    with pytest.raises(ValueError, match="3 labels cannot rename the 2 classes"):
        last(Classify((str(tmp_path),), ("a", "b", "c"), truth=True), clip)
    with pytest.raises(ValueError, match="one folder or source"):
        last(Classify((str(tmp_path), "digits"), ("auto",)), clip)


def test_a_model_that_reads_no_text_is_refused(clip, tmp_path):
    save(tmp_path / "a.png", 0)
    judge = Loaded("judge", Card("classifier", {}), None, SimpleNamespace())
    with pytest.raises(ValueError, match="judge is a classifier: it reads no text"):
        last(Classify((str(tmp_path),), ("dog",)), judge)


def test_any_request_runs_from_the_package(clip, tmp_path):
    save(tmp_path / "a.png", 0)
    *_, result = triptych.run(Classify((str(tmp_path),), ("dog", "cat")), clip)
    assert result.probabilities().sum().item() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"there are: ClassToImage, .*Embed, Classify"):
        triptych.run("dog.jpg")

"""Requests with pictures, latents and numbers that are in memory: their records, and replays."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import triptych
from tests.systems.class_to_image.test_pipeline import loaded as tiny_cvae
from tests.systems.clip.tiny_clip import pictures as photos
from tests.systems.clip.tiny_clip import tiny_clip
from tests.systems.stable_diffusion.tiny_stable_diffusion import loaded as tiny_text_to_image
from triptych.fields import from_json, to_json
from triptych.requests import Classify, ClassToImage, Detect, Embed, Search, TextToImage, TrainCvae
from triptych.running import run
from triptych.vision.images import open_picture, save_picture

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
OTHER = 255 - PIXELS
CLIP = tiny_clip()

REQUESTS = [
    TextToImage("a cat", image=PICTURE, mask=PIXELS[:, :, 0] > 99),
    TextToImage(["a cat", "a dog"], ["blur", ""], latents=torch.ones(2, 4, 8, 8)),
    ClassToImage(image=torch.from_numpy(PIXELS).permute(2, 0, 1)),
    Classify([PICTURE, "a.png"], ["cat", "dog"]),
    Detect(PIXELS, ["cat"]),
    Search("photos", image=[PICTURE, (PIXELS, 2)], minus_image=[(OTHER, 0.5)]),
    Embed(image=PIXELS[None]),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: type(one).__name__)
def test_requests_stay_equal_hashable_and_json(request_) -> None:
    same = replace(request_)
    assert same == request_ and hash(same) == hash(request_)
    text = json.dumps(to_json(request_))
    back = from_json(type(request_), json.loads(text))
    assert back == request_ and "memory:" in text
    with pytest.raises(ValueError, match=r"what was in memory, \d+x.*SHA-256"):
        run(back)  # before anything is loaded


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: type(one).__name__)
def test_a_request_from_json_takes_its_pictures_again(request_) -> None:
    back = from_json(type(request_), to_json(request_))
    given = {
        name: getattr(request_, name)
        for name in to_json(back)
        if "memory:" in str(getattr(request_, name))
    }
    again = triptych.recall(back, **given)
    assert again == request_
    for name, value in given.items():  # with the values, not only their names
        assert vars(getattr(again, name) if isinstance(value, str) else getattr(again, name)[0])
    with pytest.raises(ValueError, match=r"Give the same again: triptych\.recall\(request, "):
        triptych.recall(back)


def test_another_picture_is_refused_with_both_digests(tmp_path: Path) -> None:
    back = from_json(TextToImage, to_json(TextToImage("a cat", image=PICTURE)))
    with pytest.raises(ValueError, match=r"image is another .* has 24x20, SHA.*is 24x20, SHA"):
        triptych.recall(back, image=OTHER)
    save_picture(tmp_path / "same.png", PIXELS)
    save_picture(tmp_path / "other.png", OTHER)
    assert triptych.recall(back, image=tmp_path / "same.png").image == str(tmp_path / "same.png")
    with pytest.raises(ValueError, match="image is another"):
        triptych.recall(back, image=tmp_path / "other.png")
    two = from_json(Embed, to_json(Embed(image=[PIXELS, OTHER])))
    with pytest.raises(ValueError, match="the record has 2, not 1"):
        triptych.recall(two, image=[PIXELS])
    with pytest.raises(ValueError, match=r"no field 'imge'\. Did you mean 'image'"):
        triptych.recall(back, imge=PICTURE)
    assert triptych.recall(back, image=PICTURE, model="x").model == "x"


def test_what_carries_no_request_is_refused(tmp_path: Path) -> None:
    save_picture(tmp_path / "plain.png", PIXELS)
    with pytest.raises(ValueError, match="carries no request"):
        triptych.recall(tmp_path / "plain.png")
    with pytest.raises(FileNotFoundError):
        triptych.recall(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="no request None"):
        triptych.recall(None)


def test_a_saved_picture_of_a_class_is_drawn_again(tmp_path: Path) -> None:
    """Completed from a picture in memory: its record has the digest, and the replay asks for it."""
    model = tiny_cvae(condition="image")
    *_, first = triptych.run(ClassToImage(image=PICTURE, n=1, seed=5), model)
    assert first.names == ("memory:24x20",)
    file = tmp_path / "a.png"
    save_picture(file, first.pictures[0], {"request": to_json(first.request)})
    with pytest.raises(ValueError, match=r"image: .* in memory.*--image FILE"):
        triptych.recall(file)
    *_, again = triptych.run(triptych.recall(file, image=PIXELS), model)
    assert (again.pictures == first.pictures).all()


def test_labels_are_names_or_numbers() -> None:
    model = tiny_cvae()  # with the classes cat, dog, 7 and 3
    assert ClassToImage(label=7) == ClassToImage(label=np.int64(7)) == ClassToImage(label="7")
    for label, name in ((7, "7"), (0, "cat"), (1, "dog"), (torch.tensor(1), "dog")):
        *_, drawn = triptych.run(ClassToImage(label=label, n=2, seed=0), model)
        assert drawn.names == (name, name)
    assert ClassToImage(label=None).label == ""
    for wrong in (True, 1.5, ["cat"], b"cat"):
        with pytest.raises(ValueError, match="label is a text, not"):
            ClassToImage(label=wrong)
    with pytest.raises(ValueError, match="no class '-1'"):
        list(triptych.run(ClassToImage(label=-1), model))
    assert Classify(["a.png"], range(3)).labels == ("0", "1", "2")


def test_pictures_as_pil() -> None:
    *_, drawn = triptych.run(ClassToImage(n=3, seed=0), tiny_cvae())
    assert [image.mode for image in drawn.images] == ["L"] * 3
    for image, pixels in zip(drawn.images, drawn.pictures, strict=True):
        assert (np.asarray(image) == pixels[:, :, 0]).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return photos(tmp_path_factory.mktemp("photos"), 4)


def test_recognition_gives_the_same_for_every_form(folder: Path) -> None:
    """Files, PIL pictures, arrays and tensors give the same embeddings, labels, boxes, matches."""
    files = sorted(map(str, folder.rglob("*.png")))
    arrays = [open_picture(Path(file), channels=3) for file in files]
    forms = [
        files,
        [Image.open(file) for file in files],
        arrays,
        [torch.tensor(array).permute(2, 0, 1) for array in arrays],
    ]
    labels = ["two cats", "a red car"]
    for given in forms:
        *_, vectors = run(Embed(image=given), CLIP)
        rows = torch.stack([row.embedding for row in vectors.rows])
        assert torch.equal(rows, CLIP.embed_image(given))
        *_, found = run(Classify(given, labels), CLIP)
        *_, boxes = run(Detect(given[0], labels, contrast=False), CLIP)
        *_, near = run(Search(folder, image=[given[1]], index=folder.parent / "index"), CLIP)
        result = rows, found.probabilities(), boxes.heat, torch.tensor([m[1] for m in near.matches])
        if given is files:
            expected = result
            assert near.matches[0].name == Path(files[1]).name
        assert all(map(torch.equal, result, expected))


def test_a_request_may_name_the_device_and_precision_that_the_model_has() -> None:
    request = Classify([PIXELS], ["cat", "dog"], device="cpu", dtype="float32")
    *_, found = run(request, CLIP)
    assert len(found.names) == 1


def test_weights_of_pictures_in_memory_are_those_of_files(folder: Path) -> None:
    files = sorted(map(str, folder.rglob("*.png")))
    arrays = [open_picture(Path(file), channels=3) for file in files]
    place = {"folder": folder, "index": folder.parent / "index"}
    written = Search(
        **place, image=[f"({files[0]}:0.25)", files[1]], minus_image=[f"({files[2]}:.5)"]
    )
    paired = Search(**place, image=[(files[0], 0.25), files[1]], minus_image=[(files[2], 0.5)])
    given = Search(**place, image=[(arrays[0], 0.25), arrays[1]], minus_image=[(arrays[2], 0.5)])
    found = []
    for request in (written, paired, given):
        *_, last = run(request, CLIP)
        found.append([match.score for match in last.matches])
    assert found[0] == found[1] == found[2] and len(found[0]) == 4
    for weight in (-1, float("nan"), "2", True, [1]):
        with pytest.raises(ValueError, match="image: the weight of a picture is 0 to 1000000"):
            Search("photos", image=[(PIXELS, weight)])


def test_embeddings_of_one_text_are_not_those_of_its_letters() -> None:
    with pytest.raises(ValueError, match="texts is a list of texts, not the one text 'cats'"):
        CLIP.embed_text("cats")
    assert CLIP.embed_text([]).shape == (0, CLIP.config.dim)
    assert CLIP.embed_image([]).shape == (0, CLIP.config.dim)


def drawing():
    *_, last = run(TextToImage("a cat", seed=0, steps=1), tiny_text_to_image())
    return last


NONSENSE = [
    (lambda: run(Classify), r"Classify is a class: make a request, Classify\(\.\.\.\)"),
    (lambda: run(TrainCvae()), "TrainCvae is a request for training: give it to triptych.training"),
    (lambda: run("a cat"), "no request 'a cat'; there are"),
    (lambda: run(ClassToImage(), "runs/x"), r"model is what triptych\.load returns, not str"),
    (lambda: run(ClassToImage(), CLIP.model), r"what triptych\.load returns, not Clip"),
    (lambda: run(Classify([PIXELS], ["a"], device="meta"), CLIP), r"on cpu: leave it out, or move"),
    (lambda: run(Classify([PIXELS], ["a"], dtype="bfloat16"), CLIP), r"loaded\.to\(precision='bf"),
    (lambda: CLIP.embed_image(None), "pictures is a list of pictures, not None"),
    (lambda: CLIP.embed_image(["no.png"]), r"pictures\[0\] no\.png: No such file"),
    (lambda: CLIP.embed_image([PIXELS], batch=0), "batch is a number of pictures, at least 1"),
    (lambda: CLIP.embed_text(None), "texts is a list of texts, not None"),
    (lambda: drawing().request_of(1), "there is no picture 1: the request draws 1"),
    (lambda: drawing().request_of(-1), "there is no picture -1"),
    (lambda: list(run(TextToImage("a", image=PIXELS[:8]), tiny_text_to_image())), "image has 24x8"),
    (lambda: TextToImage(b"a cat"), "prompt is a list of texts, not bytes"),
    (lambda: TextToImage({"a": 1}), "prompt is a list of texts, not dict"),
    (lambda: Classify({"a": PIXELS}, ["a"]), r"pictures is a list of pictures \(paths, .*not dict"),
    (lambda: Classify([PIXELS], {"a", "b"}), "labels is a list of texts, not set"),
    (lambda: ClassToImage(vector=[float("nan")]), "vector has a number that is not finite"),
    (lambda: TextToImage(None), "prompt is a list of texts, not None"),
    (lambda: TextToImage([]), "prompt is empty: give at least 1"),
    (lambda: TextToImage(["a", None]), r"prompt\[1\] is a text, not None"),
    (lambda: TextToImage(3), "prompt is a list of texts, not int '3'"),
    (lambda: TextToImage(["a", "b"], ["c"]), "2 prompts and 1 negative ones"),
    (lambda: TextToImage("a", ["b", "c"]), "1 prompts and 2 negative ones"),
    (lambda: TextToImage(["a"] * 400, n=1000), "400,000 pictures in one request"),
    (lambda: TextToImage(["a", "b" * 50_000]), "prompt has 50,000 characters"),
    (lambda: TextToImage("a", n="4"), "n must be int, not '4'"),
    (lambda: TextToImage("a", n=2.5), "n must be int, not 2.5"),
    (lambda: TextToImage("a", seed=[1]), r"seed must be int, not \[1\]"),
    (lambda: TextToImage("a", guidance="7"), "guidance must be float, not '7'"),
    (lambda: TextToImage("a", size=(64, 64)), r"size must be str, not \(64, 64\)"),
    (lambda: TextToImage("a", sampler=None), "sampler must be str, not None"),
    (lambda: TextToImage("a", precision="half"), "precision must be one of 'auto', 'float32'"),
    (lambda: TextToImage("a", precision=np.ones(3)), "precision must be one of"),
    (lambda: TextToImage("a", loras="style"), "loras must be a list, not 'style'"),
    (lambda: TextToImage("a", mask=PICTURE), "give an image"),
    (lambda: TextToImage("a", latents=[1.0]), "latents are a numpy array, a tensor or an .npy"),
    (lambda: TextToImage("a", latents=np.ones((4, 8, 8), int)), "latents have values of int64"),
    (
        lambda: TextToImage("a", latents=torch.ones(1, 1, 1).to_sparse()),
        "latents .* cannot be read",
    ),
    (lambda: TextToImage("a", latents=np.ones((8, 8))), r"latents have the shape \(8, 8\)"),
    (lambda: TextToImage("a", latents=np.full((1, 4, 8, 8), np.nan)), "latents .* not finite"),
    (lambda: TextToImage("a", latents=np.ones((4, 8, 8)), variation_strength=0.5), "leave out one"),
    (lambda: ClassToImage(attributes="red"), "attributes is a list of texts, not the one text"),
    (lambda: ClassToImage(vector=["a"]), r"vector\[0\] must be float, not 'a'"),
    (lambda: ClassToImage(vector=np.ones((2, 2))), "vector must be a list"),
    (lambda: Classify([], ["a"]), "no pictures"),
    (lambda: Classify(None, ["a"]), "no pictures"),
    (lambda: Classify([PIXELS], None), "labels is a list of texts, not None"),
    (lambda: Classify([PIXELS], []), "no labels"),
    (lambda: Classify([PIXELS], ["a", None]), r"labels\[1\] is a text, not None"),
    (lambda: list(run(Detect(None, ["a"]), CLIP)), "picture: give one"),
    (lambda: Detect(PIXELS, "cat"), "labels is a list of texts, not the one text 'cat'"),
    (lambda: Detect(PIXELS, ["a"], threshold=None), "threshold must be float, not None"),
    (lambda: Embed(text="a cat"), "text is a list of texts, not the one text 'a cat'"),
    (lambda: Embed(image=[PIXELS, PIXELS[0, 0]]), r"image\[1\] has the shape \(3,\)"),
    (lambda: Search(None), "folder must be str, not None"),
    (lambda: Search("photos", ["cat"], k=None), "k must be int, not None"),
]


@pytest.mark.parametrize(("make", "words"), NONSENSE)
def test_nonsense_is_refused_in_our_words(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_numbers_of_numpy_and_torch_and_paths_are_taken() -> None:
    request = TextToImage(
        "a", n=np.int64(2), seed=torch.tensor(3), guidance=np.float32(2), model=Path("runs/x")
    )
    assert request == TextToImage("a", n=2, seed=3, guidance=2.0, model="runs/x")
    assert ClassToImage(vector=np.array([1.0, 2.0])) == ClassToImage(vector=[1, 2.0])
    assert isinstance(hash(request), int)
    assert TextToImage(np.array(["a", "b"])) == TextToImage(text for text in "ab")
    assert type(TextToImage(np.array(["a"])).prompt[0]) is str

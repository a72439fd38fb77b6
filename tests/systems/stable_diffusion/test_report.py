"""What is reported of pictures of the built-in world, where the truth is known."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from torch.nn import functional as F

from triptych.data.order.batches import take
from triptych.data.scene_source import SceneSource
from triptych.scenes.captions import OPPOSITE, RELATION_WORDS
from triptych.scenes.reader import apply_threshold, match_regions, read
from triptych.systems.stable_diffusion.report import (
    evaluate_text_to_image,
    judge,
    write_text_to_image,
)
from triptych.vision.images import to_pictures

COUNT = 24
TEST = SceneSource("scenes-one", "test", 64)


@pytest.fixture(scope="module")
def true():
    batch = take(TEST, range(COUNT))
    return to_pictures(batch["image"]), list(batch["caption"])


def test_true_pictures_are_near_and_as_said(true):
    pictures, prompts = true
    shares, near = judge(pictures, prompts)
    assert near.keys() == shares.keys() == {"all", "1 object"}
    nearest = near["all"]
    assert shares["all"]["whole"].value == 1
    assert (nearest.counted.right, nearest.counted.of) == (COUNT, COUNT)
    assert {name: s.value for name, s in nearest.shares.items()} == dict.fromkeys(
        ("whole", "colour", "shape", "size", "pattern", "ground"), 1
    )
    named = [any(shape in p for shape in ("circle", "ring", "heart")) for p in prompts]
    assert sum(named) <= nearest.shares["shape"].of <= COUNT
    assert nearest.shares["colour"].of < COUNT
    distances = [read(picture).distances[0] for picture in pictures]
    expected = np.quantile(distances, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(nearest.distances, expected)
    assert nearest.distances[2] < nearest.limit == 0.042


def test_blurred_pictures_are_too_far_off_and_still_the_nearest(true):
    """What the strict judge says nothing about: the right object, badly drawn."""
    pictures, prompts = true
    blurred = sum(np.roll(pictures.astype(float), i, 1 + i % 2) for i in range(-3, 4)) / 7
    blurred = blurred.round().astype(np.uint8)
    shares, near = judge(blurred, prompts)
    nearest = near["all"]
    assert shares["all"]["whole"].value < 0.2
    assert nearest.counted.value > 0.8 and nearest.shares["colour"].value > 0.9
    assert nearest.distances[0] > judge(pictures, prompts)[1]["all"].distances[2]


def test_pictures_of_two_regions_are_not_counted(true):
    """Which of the two was meant is not for the reader to choose."""
    pictures, prompts = true
    two = to_pictures(take(SceneSource("scenes-two", "test", 64), range(4))["image"])
    mixed = np.concatenate([two, pictures[4:]])
    mixed[4, -3:] = 255, 0, 0  # too wide for an object
    nearest = judge(mixed, prompts)[1]["all"]
    assert (nearest.counted.right, nearest.counted.of) == (COUNT - 5, COUNT)
    assert nearest.shares["shape"].value == nearest.shares["colour"].value == 1


def test_two_objects_are_dealt_out_as_the_prompt_says_whichever_is_read_first() -> None:
    two = take(SceneSource("scenes-two", "test", 64), range(80))
    pictures, prompts = to_pictures(two["image"]), list(two["caption"])
    shares, near = judge(pictures, prompts)
    assert {"2 objects", "relation", "number of alike objects"} < near.keys()
    assert near["all"].counted.right == near["all"].counted.of == 80
    for group in near:
        assert {s.value for s in near[group].shares.values()} == {1.0}
        named = {name: share.of for name, share in shares[group].items() if name != "count"}
        assert {name: share.of for name, share in near[group].shares.items()} == named
    turned = [said for said in map(_turned, prompts) if said]
    related = [i for i, said in enumerate(prompts) if _turned(said)]
    shares = judge(pictures[related], turned)[1]["relation"].shares
    assert shares["relation"].of == len(related) > 2
    assert shares["colour"].value == shares["shape"].value == 1
    assert shares["relation"].right == shares["whole"].right == 0


def _turned(prompt: str) -> str:
    """The same with the opposite relation; empty where there is none."""
    for name, phrases in RELATION_WORDS.items():
        for phrase in phrases:
            if phrase in prompt:
                return prompt.replace(phrase, RELATION_WORDS[OPPOSITE[name]][0])
    return ""


def test_other_prompts_are_other_objects(true):
    pictures, prompts = true
    nearest = judge(pictures, prompts[1:] + prompts[:1])[1]["all"]
    assert nearest.counted.value == 1
    assert nearest.shares["shape"].value < 0.5 and nearest.shares["colour"].value < 0.5


def test_where_there_is_nothing_there_is_no_distance(true):
    pictures, prompts = true
    empty = np.full_like(pictures, 128)
    nearest = judge(empty, prompts)[1]["all"]
    assert nearest.counted.right == 0 and nearest.shares == {}
    assert nearest.distances is None


def test_the_reading_is_what_is_near_enough_of_what_was_found(true):
    picture = true[0][0]
    found, *rest = match_regions(picture)
    (thing, distance), *_ = found
    assert apply_threshold(found, *rest) == read(picture)
    far = apply_threshold([(thing, 1.0), None, (thing, distance)], *rest)
    assert (far.things, far.unread) == ((thing,), 2)


class MeanColours:
    """Stands for a CLIP: a picture is its mean and spread of colour, a text its first word's."""

    def embed_image(self, pictures):
        pixels = torch.tensor(np.stack(pictures)).double().flatten(1, 2) / 255
        return F.normalize(torch.cat([pixels.mean(1), pixels.std(1)], 1).float(), dim=1)

    def embed_text(self, texts):
        rows = [[len(text) % 7, text.count("a"), text.count("e"), 1, 2, 3] for text in texts]
        return F.normalize(torch.tensor(rows).float(), dim=1)


def kid(a, b):
    """From its definition, kernels by scikit-learn; no picture is compared with itself."""
    within = [polynomial_kernel(x, degree=3, gamma=1 / x.shape[1], coef0=1) for x in (a, b)]
    mean = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in within]
    return sum(mean) - 2 * polynomial_kernel(a, b, degree=3, gamma=1 / a.shape[1], coef0=1).mean()


class Folder:
    """The world's captioned pictures as any folder's, which the exact judge does not know."""

    info = TEST.info
    read = staticmethod(TEST.read)


def test_a_clip_compares_drawn_pictures_and_the_floor_is_of_other_real_ones():
    """Drawn at two guidances, of the prompts, and of training: four different sets."""
    train, clip = SceneSource("scenes-two", "train", 64), MeanColours()
    first = range(100_000, 100_000 + COUNT)  # of endless data
    real, prompts = to_pictures(take(TEST, first)["image"]), take(TEST, first)["caption"]
    others = to_pictures(take(train, range(COUNT))["image"])
    drawn = {share: (real * (1, share, share)).astype(np.uint8) for share in (0.1, 0.6)}
    asked = []

    def draw(texts, guidance, seed):
        asked.append((list(texts), guidance, seed))
        return drawn[guidance]

    reports = finish(
        evaluate_text_to_image(
            draw, train, Folder(), count=COUNT, guidance=tuple(drawn), clip=clip, seed=5
        )
    )
    assert asked == [(prompts, 0.1, 5), (prompts, 0.6, 5)]
    text, sources = clip.embed_text(prompts), clip.embed_image(real)
    floor = kid(clip.embed_image(others), sources)
    for report in reports:
        mine, found = clip.embed_image(drawn[report.guidance]), report.likeness
        assert found.kernel.value == pytest.approx(kid(mine, sources), abs=1e-5)
        assert found.floor.value == pytest.approx(floor, abs=1e-5)
        for score, image in ((found.alignment, mine), (found.real, sources)):
            cosines = (image * text).sum(1)
            assert score.score == pytest.approx(2.5 * cosines.clamp(min=0).mean().item(), rel=1e-5)
        assert (report.judged, report.nearest) == ({}, {})
    kernels = [report.likeness.kernel.value for report in reports]
    assert kernels[0] > kernels[1] + 0.01  # redder is further off; and the sets can be told apart
    assert min(abs(kernel - floor) for kernel in kernels) > 0.01
    assert abs(floor - kid(sources, sources)) > 1e-3


def test_without_a_clip_nothing_is_compared():
    def draw(prompts, guidance, seed):
        return np.zeros((len(prompts), 64, 64, 3), np.uint8)

    (report,) = finish(evaluate_text_to_image(draw, TEST, Folder(), count=3, guidance=(1.0,)))
    assert report.likeness is None and report.prompts == 3


def finish(work):
    """What a generator returns."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value


def test_the_page_says_how_near(tmp_path):
    def draw(prompts, guidance, seed):
        held = prompts != take(TEST, range(100_000, 100_000 + COUNT))["caption"]
        source = SceneSource("scenes-one", "held-out", 64) if held else TEST
        return to_pictures(take(source, range(100_000, 100_000 + COUNT))["image"])

    reports = finish(evaluate_text_to_image(draw, TEST, TEST, count=COUNT, guidance=(1.0,)))
    numbers, page = write_text_to_image(reports, tmp_path, command="triptych evaluate")
    assert reports[0].nearest.keys() == {"all", "1 object", "held-out pairs"}
    heads = [line for line in page.read_text().splitlines() if "as many regions |" in line]
    assert len(heads) == 3 and all("| nearest quarter | half |" in line for line in heads)
    stored = json.loads(numbers.read_text())["settings"][0]["nearest"]
    for group, near in reports[0].nearest.items():
        assert f"| {near.distances[1]:.3f} |" in page.read_text()
        assert stored[group]["distances"] == list(near.distances)
        assert stored[group]["counted"] == {"right": COUNT, "of": COUNT}

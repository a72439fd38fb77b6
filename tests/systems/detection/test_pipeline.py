"""Detection with a model that is known exactly, and the two ways of sliding a window compared."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.systems.detection.colours import BACKGROUND, PAINT, PALETTE, Words, colour_model
from triptych.data.scene_source import SceneSource
from triptych.requests import Detect
from triptych.running import run
from triptych.systems.clip.model import Clip, ClipConfig, TextConfig, VitConfig
from triptych.systems.detection import dense
from triptych.systems.detection.annotations import Annotated
from triptych.systems.detection.pipeline import detect, embed_queries, heat_map_size, score_vectors
from triptych.systems.detection.report import evaluate
from triptych.systems.siglip.model import Siglip, SiglipConfig, SiglipImageConfig, SiglipTextConfig
from triptych.vision.images import save_picture
from triptych.vision.transforms import HALF, ImageTransform
from triptych.weights.loaded import Card, Loaded

METHODS = ("dense", "window", "window-batched")
DENSE = {"scales": (1.0,), "pool": 1, "extent": 0.5}
"""One pass, each patch by itself."""
SMALL = {"windows": (1,), "patch": 4, "extent": 0.5}
"""Windows within the objects, as a model of mean colours needs them."""


def request(*labels: str, **fields) -> Detect:
    fields = {"templates": ("name",), "background": BACKGROUND, **fields}
    return Detect("picture.png", labels, **fields)


def last(asked: Detect, loaded: Loaded, picture: np.ndarray):
    *_, result = detect(asked, loaded, picture)
    return result


def canvas(height: int, width: int, *things) -> np.ndarray:
    """A white ground with coloured rectangles (colour, left, top, right, bottom) in pixels."""
    picture = np.full((height, width, 3), 234, np.uint8)
    for colour, left, top, right, bottom in things:
        picture[top:bottom, left:right] = PAINT[colour][0]
    return picture


def pixels(result) -> list[tuple[str, list[float]]]:
    height, width = result.size
    boxes = result.boxes.corners * torch.tensor([width, height, width, height])
    return [(n, b) for n, b in zip(result.names, boxes.tolist(), strict=True)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(64, 64), (64, 128), (120, 48), (52, 100)])
def test_a_rectangle_is_found_where_it_is_at_any_shape(method, shape) -> None:
    thing = ("red", 12, 16, 36, 44)
    scales = DENSE if method == "dense" else SMALL
    loaded = colour_model(size=max(shape), patch=4)
    result = last(request("red", "blue", method=method, **scales), loaded, canvas(*shape, thing))
    assert result.size == shape
    ((name, box),) = pixels(result)
    assert name == "red"
    assert box == pytest.approx(thing[1:], abs=1.01)  # half of the linear fall between two cells


@pytest.mark.parametrize("method", METHODS)
def test_two_things_of_one_label_are_two_boxes_and_an_absent_label_is_none(method) -> None:
    picture = canvas(64, 128, ("red", 8, 8, 32, 32), ("red", 72, 24, 104, 56),
                     ("blue", 40, 32, 64, 60))  # fmt: skip
    fields = DENSE if method == "dense" else SMALL
    loaded = colour_model(size=128, patch=4)
    result = last(request("red", "green", "blue", method=method, **fields), loaded, picture)
    assert sorted(result.names) == ["blue", "red", "red"]
    assert sorted(round(b[0] / 4) * 4 for n, b in pixels(result) if n == "red") == [8, 72]
    assert float(result.heat[1].max()) < 0.3  # green is cold everywhere


def test_dense_resizes_without_squashing_and_pads_by_repeating() -> None:
    """A picture of 52 x 100 for patches of 8 at scale 1 of 64: 33 x 64 pixels, 5 x 8 patches."""
    (size,) = dense.plan_passes(52, 100, 64, 8, (1.0,))
    assert (size.height, size.width, size.grid) == (33, 64, (5, 8))
    down, across = size.edges(52, 100)
    assert across[-1] == 100 and down[-1] == pytest.approx(40 * 52 / 33)
    ready = dense.prepare_pixels(
        canvas(52, 100, ("red", 0, 40, 100, 52)), size, ImageTransform(64, HALF, HALF)
    )
    assert ready.shape == (1, 3, 40, 64)
    assert torch.equal(ready[:, :, 33:], ready[:, :, 32:33].expand(-1, -1, 7, -1))
    with pytest.raises(ValueError, match="choose a smaller scale"):
        dense.plan_passes(52, 100, 512, 4, (2.0,))


def test_the_dense_heat_map_is_the_softmax_of_mean_colours() -> None:
    draw = np.random.default_rng(0)
    picture = draw.integers(0, 256, (8, 16, 3), dtype=np.uint8)
    loaded = colour_model(size=16, patch=1)
    asked = request("red", "blue", scales=(1.0,), pool=1)
    heat = last(asked, loaded, picture).heat
    queries = embed_queries(asked, loaded)
    texts = torch.cat([queries.labels, queries.background])
    colour = torch.tensor(picture).float().reshape(-1, 3) / 127.5 - 1
    vectors = torch.cat([colour, (4 - colour.square().sum(1, keepdim=True)).sqrt()], 1) / 2
    wanted = (100 * vectors.double() @ texts.double().T).softmax(1)[:, :2].T.reshape(2, 8, 16)
    assert torch.allclose(heat.double(), wanted, atol=1e-4)


def test_patches_are_pooled_over_their_neighbours() -> None:
    vectors = F.normalize(torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    ours = dense.pool_neighbours(vectors, 3)
    inner, corner = vectors[0:3, 1:4].mean((0, 1)), vectors[2:, 3:].mean((0, 1))
    assert torch.allclose(ours[1, 2], inner / inner.norm(), atol=1e-6)
    assert torch.allclose(ours[3, 4], corner / corner.norm(), atol=1e-6)
    assert torch.equal(dense.pool_neighbours(vectors, 1), vectors)


def test_the_tower_is_told_how_far_patches_reach() -> None:
    loaded = colour_model(size=64, patch=4)
    for asked, told in ((-1, None), (0, 0), (2, 2)):
        last(request("red", reach=asked, **DENSE), loaded, canvas(64, 64))
        assert loaded.model.reach == told


def test_without_scales_the_longer_side_has_24_patches() -> None:
    assert [p.grid for p in dense.plan_passes(480, 640, 224, 16)] == [(18, 24)]
    assert [p.grid for p in dense.plan_passes(64, 64, 336, 14)] == [(24, 24)]
    assert [p.grid for p in dense.plan_passes(64, 64, 32, 16)] == [
        (8, 8)
    ]  # four times its own side
    assert [p.grid for p in dense.plan_passes(64, 64, 448, 14)] == [(32, 32)]  # never below its own


def tiny_clip(seed: int = 0) -> Loaded:
    torch.manual_seed(seed)
    config = ClipConfig(
        dim=16,
        vit=VitConfig(size=16, patch=4, width=32, layers=2, heads=2, hidden=64),
        text=TextConfig(vocabulary=64, length=1, width=32, layers=1, heads=2, hidden=64, end=1,
                        pool="last"),
    )  # fmt: skip
    transform = ImageTransform(16, HALF, HALF)
    model = Clip(config).eval().requires_grad_(False)
    return Loaded("tiny", Card("clip", {}), config, model, Words(), transform)  # type: ignore


@pytest.mark.parametrize("contrast", [True, False])
def test_windows_one_by_one_and_in_batches_give_the_same(contrast) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    asked = request("red", "blue", contrast=contrast, threshold=0.01, windows=(4, 7), background=())
    one = last(replace(asked, method="window"), tiny_clip(), picture)
    many = last(replace(asked, method="window-batched"), tiny_clip(), picture)
    # plain cosines are stretched from their mean to their largest, and rounding with them
    assert torch.allclose(one.heat, many.heat, atol=1e-5 if contrast else 1e-3)
    assert torch.allclose(one.boxes.corners, many.boxes.corners) and len(one.boxes.corners)
    assert one.names == many.names
    assert float(one.heat.std()) > 1e-5


def test_each_way_asks_the_tower_as_often_as_it_says() -> None:
    picture = canvas(32, 48, ("red", 8, 8, 24, 24))
    looks = {}
    for method in METHODS:
        loaded = colour_model(size=32, patch=4)
        last(request("red", method=method, windows=(4,), patch=4), loaded, picture)
        looks[method] = loaded.model.looks
    assert looks["window"] == 5 * 9
    assert looks["window-batched"] == 1
    assert looks["dense"] == 1


def tiny_siglip(size: int, patch: int) -> Loaded:
    torch.manual_seed(0)
    config = SiglipConfig(
        SiglipImageConfig(size=size, patch=patch, width=32, layers=1, heads=2, hidden=64),
        SiglipTextConfig(vocabulary=64, length=1, width=32, layers=1, heads=2, hidden=64),
    )
    model = Siglip(config).eval().requires_grad_(False)
    transform = ImageTransform(size, HALF, HALF, "squash", crop=False)
    return Loaded("s", Card("siglip", {}), config, model, Words(), transform)  # type: ignore


def siglip_shares(loaded: Loaded, pixels: torch.Tensor, asked: Detect) -> torch.Tensor:
    """By the exponential function from the cosines of whole pictures: the labels' shares."""
    texts = loaded.embed_text([*asked.labels, *asked.background])
    cosines = loaded.model.embed_image(pixels).double() @ texts.double().T
    odds = (cosines * float(loaded.model.logit_scale.exp())).exp()
    return (odds / odds.sum(1, keepdim=True))[:, : len(asked.labels)]


def test_siglip_s_patches_are_scored_as_pictures_of_one_patch() -> None:
    """A patch that sees itself alone, without positions, is a picture of one patch."""
    loaded = tiny_siglip(size=16, patch=1)
    loaded.model.image.position.zero_()
    loaded.model.logit_scale.fill_(math.log(40))  # an untrained one scores nearly alike
    picture = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    asked = request("red", "blue", method="dense", scales=(1.0,), pool=1, reach=0)
    result = last(asked, loaded, picture)
    pixels = torch.tensor(picture).float().reshape(-1, 3, 1, 1) / 127.5 - 1
    wanted = siglip_shares(loaded, pixels, asked).T.reshape(2, 12, 16)
    assert torch.allclose(result.heat.double(), wanted, atol=1e-5)
    assert float(wanted.std()) > 0.01


@pytest.mark.parametrize("method", ["window", "window-batched"])
def test_siglip_s_windows_are_scored_as_pictures(method) -> None:
    """Two windows side by side, squashed to the model's size as its transform says."""
    loaded = tiny_siglip(size=16, patch=4)
    loaded.model.logit_scale.fill_(math.log(40))
    picture = np.random.default_rng(0).integers(0, 256, (16, 32, 3), dtype=np.uint8)
    asked = request("red", "blue", method=method, patch=16, windows=(1,))
    heat = last(asked, loaded, picture).heat
    halves = torch.tensor(np.stack([picture[:, :16], picture[:, 16:]])).permute(0, 3, 1, 2)
    wanted = siglip_shares(loaded, halves.float() / 127.5 - 1, asked)
    assert torch.allclose(heat[:, :, 0].double(), wanted[0, :, None].expand(2, 16), atol=1e-5)
    assert torch.allclose(heat[:, :, -1].double(), wanted[1, :, None].expand(2, 16), atol=1e-5)
    assert float((wanted[0] - wanted[1]).abs().max()) > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_siglip_finds_what_its_text_tower_was_taught(method) -> None:
    """The text of a label set to what the image tower makes of that colour: the box is there."""
    thing, loaded = ("red", 4, 4, 12, 16), tiny_siglip(size=8, patch=4)
    loaded.model.image.position.zero_()
    loaded.model.logit_scale.fill_(math.log(1000))
    words = ("red", "white")
    colours = torch.tensor([[PAINT["red"][0]], [[234] * 3]]).reshape(2, 3, 1, 1) / 127.5 - 1
    vectors = loaded.model.embed_image(colours.expand(-1, -1, 8, 8))

    class Taught(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            names = list(PALETTE)
            places = [words.index(names[row]) for row in tokens[:, 0].tolist()]
            return vectors[places]

    loaded.model.text = Taught()
    asked = request(*words, method=method, background=(), patch=4, windows=(1,), stride=1, pool=1,
                    reach=0, scales=(4.0,), extent=0.5)  # fmt: skip
    found = last(asked, loaded, canvas(20, 32, thing))
    boxes = [box for name, box in pixels(found) if name == "red"]
    assert len(boxes) == 1 and boxes[0] == pytest.approx(thing[1:], abs=1.01)


def test_an_absent_label_is_found_without_contrast_and_not_with_it() -> None:
    """What plain cosines cannot tell: that nothing in the picture is green."""
    picture = canvas(64, 64, ("red", 16, 16, 40, 40))
    loaded = colour_model(size=64, patch=4)
    assert "green" in last(request("green", contrast=False), loaded, picture).names
    assert last(request("green", "red"), loaded, picture).names == ("red",)


def test_scores_are_shares_among_labels_and_background() -> None:
    loaded = colour_model()
    asked = request("red", "blue")
    queries = embed_queries(asked, loaded)
    everything = request("red", "blue", *BACKGROUND, background=())
    whole = score_vectors(everything, loaded, queries.labels, embed_queries(everything, loaded))
    assert torch.allclose(whole.sum(1), torch.ones(2), atol=1e-5)
    assert torch.allclose(
        score_vectors(asked, loaded, queries.labels, queries), whole[:, :2], atol=1e-6
    )


def test_templates_are_averaged_to_unit_length() -> None:
    loaded = colour_model()
    mixed = embed_queries(request("red", templates=("{}", "blue {}")), loaded)
    red, blue = embed_queries(request("red", "blue", templates=("{}",)), loaded).labels
    assert torch.allclose(mixed.labels[0], (red + blue) / (red + blue).norm(), atol=1e-6)


def test_the_world_s_objects_are_found_by_their_colour() -> None:
    """The geometry on real pictures: plain objects, all eight colours asked for in each."""
    source = SceneSource("scenes-two", split="test", size=128)
    plain = [i for i, s in enumerate(source.scenes(range(240)))
             if all(t.pattern == "plain" and t.shape != "star" for t in s.things)]  # fmt: skip
    world = source.read(plain[:16])
    truths = [
        Annotated(f"{n}.png", 128, 128, torch.as_tensor(np.array(boxes)).float(),
                  tuple(label.split()[0] for label in labels))
        for n, (boxes, labels) in enumerate(zip(world["boxes"], world["box_labels"], strict=True))
    ]  # fmt: skip
    loaded = colour_model(size=128, patch=4)
    asked = request(*PAINT, threshold=0.5, **DENSE)
    queries = embed_queries(asked, loaded)

    def find(picture):
        *_, result = detect(asked, loaded, picture, queries)
        return result.boxes.corners, result.names, result.boxes.scores.tolist()

    report = evaluate(find, list(world["image"]), truths, tuple(PAINT), threshold=0.5)
    assert report.precision.ap50 >= 0.8
    assert report.floor < 0.1


def test_a_picture_file_is_read_and_progress_is_told(tmp_path) -> None:
    save_picture(tmp_path / "p.png", canvas(48, 64, ("red", 16, 16, 32, 40)))
    asked = replace(request("red", method="window", windows=(4,)), picture=str(tmp_path / "p.png"))
    steps = list(run(asked, colour_model(size=64)))
    shares = [step.done for step in steps]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert all(not step.names for step in steps[:-1]) and steps[-1].size == (48, 64)
    with pytest.raises(ValueError, match=r"gone\.png: No such file"):
        list(run(replace(asked, picture=str(tmp_path / "gone.png")), colour_model()))


def test_only_two_towers_detect() -> None:
    loaded = replace(colour_model(), card=Card("cvae", {}))
    with pytest.raises(ValueError, match="colours is a cvae: detection needs a CLIP or SigLIP"):
        last(request("red"), loaded, canvas(16, 16))


@pytest.mark.parametrize(
    ("labels", "fields", "says"),
    [
        ((), {}, "at least one"),
        (("a", " "), {}, "no empty ones"),
        (("a", "b", "a"), {}, "'a' is given twice"),
        (("a",), {"threshold": 1.5}, "threshold must be in"),
        (("a",), {"nms": -0.1}, "nms must be in"),
        (("a",), {"stride": 0}, "stride must be at least 1"),
        (("a",), {"windows": (0,)}, "sides in patches"),
        (("a",), {"scales": (0.0,)}, "above 0"),
        (("a",), {"templates": ()}, "templates"),
        (("a",), {"pool": 2}, "must be odd"),
        (("a",), {"reach": -2}, "reach must be at least -1"),
    ],
)
def test_a_request_says_what_is_wrong_with_it(labels, fields, says) -> None:
    with pytest.raises(ValueError, match=says):
        Detect("p.png", labels, **fields)


def test_large_pictures_get_small_maps() -> None:
    assert heat_map_size(3000, 4000) == (120, 160)
    assert heat_map_size(64, 64) == (64, 64)
    assert heat_map_size(2, 4000) == (1, 160)

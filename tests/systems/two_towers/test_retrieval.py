"""Recall against a sort, against chance where everything ties, and on real embeddings of CLIP."""

import json
import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from triptych.data.sources import open_index
from triptych.requests import Classify
from triptych.systems.classification.pipeline import Classified
from triptych.systems.two_towers.retrieval import recall


def units(rows, seed, dim=16):
    return F.normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def sorted_ranks(image, text, owner):
    """By sorting every row of the whole matrix: no chunks, no counting."""
    scores = image @ text.T
    to_image = [
        1 + int((column.argsort(descending=True) == own).nonzero()[0])
        for column, own in zip(scores.T, owner, strict=True)
    ]
    to_text = []
    for number, row in enumerate(scores):
        found = (owner[row.argsort(descending=True)] == number).nonzero()
        if len(found):
            to_text.append(1 + int(found[0]))
    return np.array(to_image), np.array(to_text)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_recall_is_what_sorting_gives(chunk):
    """Five texts of most pictures, none of the last three; noise so that not all is found."""
    owner = torch.arange(37).repeat_interleave(5)[torch.randperm(185)]
    image = units(40, 0)
    text = F.normalize(image[owner] + 1.1 * units(185, 1), dim=1)
    found = recall(image, text, owner, ks=(1, 3, 10), chunk=chunk)
    to_image, to_text = sorted_ranks(image, text, owner)
    for one, ranks in ((found.text_to_image, to_image), (found.image_to_text, to_text)):
        assert one.queries == len(ranks)
        assert one.median_rank == pytest.approx(np.median(ranks))
        for k in (1, 3, 10):
            assert one.at[k] == pytest.approx((ranks <= k).mean())
    assert 0.1 < found.text_to_image.at[1] < 0.95  # neither nothing nor all


def test_a_constant_model_gets_exactly_chance():
    """Pessimistic ranks would give it nothing, optimistic ones everything."""
    owner = torch.tensor([0, 0, 0, 1, 2, 2, 3])
    image, text = torch.ones(5, 3) / math.sqrt(3), torch.ones(7, 3) / math.sqrt(3)
    found = recall(image, text, owner, ks=(1, 2, 5, 7))
    for one in (found.text_to_image, found.image_to_text):
        assert one.at == pytest.approx(one.chance)
    assert found.text_to_image.at == pytest.approx({1: 1 / 5, 2: 2 / 5, 5: 1, 7: 1})
    # pictures with 3, 1, 2 and 1 of 7 texts: 1 - C(7 - m, 2) / C(7, 2)
    by_hand = [1 - math.comb(7 - m, 2) / math.comb(7, 2) for m in (3, 1, 2, 1)]
    assert found.image_to_text.at[2] == pytest.approx(sum(by_hand) / 4)
    assert found.text_to_image.median_rank == 3  # in the middle of five


def test_ties_of_some_are_shared():
    """Two texts score alike for picture 0, one of them its own: half of recall at 1."""
    image = torch.eye(3)[:2]
    text = torch.tensor([[0.6, 0.0, 0.8], [0.6, 0.8, 0.0]])
    found = recall(image, text, torch.tensor([0, 1]), ks=(1, 2))
    assert found.image_to_text.at == {1: (0.5 + 1) / 2, 2: 1.0}


@pytest.mark.parametrize(
    ("shapes", "owner", "words"),
    [
        (((4, 8), (4, 7)), [0, 1, 2, 3], "one width"),
        (((4, 8), (4, 8)), [0, 1, 2], "one owner"),
        (((4, 8), (4, 8)), [0, 1, 2, 4], "0 to 3, not 0 to 4"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, owner, words):
    with pytest.raises(ValueError, match=words):
        recall(torch.ones(shapes[0]), torch.ones(shapes[1]), torch.tensor(owner))
    with pytest.raises(ValueError, match="not finite"):
        recall(torch.full((2, 3), torch.nan), torch.ones(2, 3), torch.tensor([0, 1]))


MENTIONED = {  # a COCO name: how captions mention it, and the ROC AUC of the embeddings' own page
    "dog": (r"\bdogs?\b", 0.988),
    "snowboard": (r"snowboard", 0.996),
    "boat": (r"boat|canoe|kayak", 0.976),
    "skateboard": (r"skateboard", 0.962),
    "car": (r"\bcars?\b", 0.953),
    "bicycle": (r"bike|bicycl", 0.939),
    "horse": (r"\bhorses?\b", 0.939),
    "surfboard": (r"surf", 0.856),
}


def test_real_embeddings_reach_their_published_figures(real_data):
    """OpenAI's CLIP ViT-B/32 on 1,000 photos, named by 80 bare prompts, "a {name}"."""
    folder = real_data / "clip_embeddings"
    image = torch.from_numpy(np.load(folder / "flickr8k_train1000_vitb32_image.npy")).float()
    text = torch.from_numpy(np.load(folder / "coco80_vitb32_text.npy")).float()
    names = tuple(json.loads((folder / "coco80_names.json").read_text()))
    index = open_index(f"{real_data}/flickr8k_128/flickr8k-train-{{00..05}}.tar")
    keys = [name.rpartition("/")[2].split(".")[0] for name in index.names]
    captions = dict(zip(keys, index.annotations.captions, strict=True))
    rows = json.loads((folder / "flickr8k_train1000_rows.json").read_text())
    said = [" ".join(captions[row["image_id"]]).lower() for row in rows]
    text = F.normalize(text, dim=1)
    request = Classify(("photos",), labels=names)
    result = Classified(
        request, names, ("a {}",), tuple(keys[:1000]), image, text, "softmax", 100.0, 0.0, None
    )
    cosines = result.cosines().double()
    for name, (pattern, expected) in MENTIONED.items():
        shows = torch.tensor([bool(re.search(pattern, caption)) for caption in said])
        score = cosines[:, names.index(name)]
        higher = score[shows][:, None] - score[~shows]
        area = float(((higher > 0).double() + (higher == 0).double() / 2).mean())
        assert area == pytest.approx(expected, abs=6e-4), name
    dogs = torch.tensor([bool(re.search(MENTIONED["dog"][0], caption)) for caption in said])
    assert int(dogs.sum()) == 246
    # each photo of a dog asks for its name among 80: recall is top-k accuracy
    owner = torch.full((246,), names.index("dog"))
    found = recall(text, image[dogs], owner, ks=(1, 5)).text_to_image
    assert found.at[5] == pytest.approx(0.94, abs=0.005)
    assert found.at[1] == pytest.approx(0.25, abs=0.01)
    assert found.chance[5] == pytest.approx(5 / 80)
    best = result.probabilities()[dogs].topk(5).indices
    assert float((best == names.index("dog")).any(1).double().mean()) == pytest.approx(found.at[5])

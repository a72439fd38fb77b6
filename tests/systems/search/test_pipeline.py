"""Searching a folder: sums and differences, near duplicates, and what nonsense gets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import triptych
from tests.systems.clip.tiny_clip import picture, pictures, tiny_clip
from triptych.requests import Search
from triptych.running import run
from triptych.systems.search import pipeline as search
from triptych.systems.search.pipeline import SearchResults, Term, format_query, parse_terms
from triptych.vision.images import open_picture, save_picture
from triptych.weights.loaded import Loaded

CLIP = tiny_clip()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures(tmp_path / "photos", 9)


def found(folder: Path, **fields) -> SearchResults:
    *_, last = triptych.run(Search(str(folder), **fields), CLIP)
    assert isinstance(last, SearchResults) and last.done == 1
    return last


def test_a_text_finds_what_its_vector_is_nearest_to(folder: Path) -> None:
    result = found(folder, text=("two cats",), k=4)
    paths = sorted(folder.rglob("*.png"))
    rows = CLIP.embed_image([open_picture(path) for path in paths])
    cosines = (rows @ CLIP.embed_text(["two cats"])[0]).numpy()
    order = np.argsort(-cosines)[:4]
    assert [m.name for m in result.matches] == [str(paths[i].relative_to(folder)) for i in order]
    assert np.allclose([m.score for m in result.matches], cosines[order], atol=1e-6)
    assert result.new == 9 and found(folder, text=("two cats",)).new == 0


def test_a_picture_finds_itself_first(folder: Path) -> None:
    match, *_ = found(folder, image=(str(folder / "004.png"),)).matches
    assert match.name == "004.png" and match.score == pytest.approx(1, abs=1e-6)


def test_sums_and_differences_are_those_of_the_vectors(folder: Path) -> None:
    image = str(folder / "004.png")
    result = found(
        folder,
        image=(image, f"({folder / '001.png'}:0.25)"),
        text=("at night",),
        minus=("(by day:0.5)",),
        minus_image=(str(folder / "002.png"),),
        k=9,
    )
    pictured = CLIP.embed_image([open_picture(folder / f"{n}.png") for n in ("004", "001", "002")])
    night, day = CLIP.embed_text(["at night", "by day"])
    query = F.normalize(pictured[0] + 0.25 * pictured[1] - pictured[2] + night - 0.5 * day, dim=0)
    for match in result.matches:
        row = CLIP.embed_image([open_picture(folder / match.name)])[0]
        assert match.score == pytest.approx(float(row @ query), abs=1e-6)


def test_a_difference_leads_away(folder: Path) -> None:
    towards, away = str(folder / "004.png"), str(folder / "005.png")
    plain = {m.name: m.score for m in found(folder, image=(towards,)).matches}
    minus = {m.name: m.score for m in found(folder, image=(towards,), minus_image=(away,)).matches}
    assert minus["005.png"] < plain["005.png"]


@pytest.mark.parametrize(
    ("text", "term"),
    [
        ("at night", Term("at night", False, 1.0)),
        ("(at night:0.5)", Term("at night", False, 0.5)),
        ("(at 8:30: .5)", Term("at 8:30", False, 0.5)),
        ("at 8:30", Term("at 8:30", False, 1.0)),
        ("(at night)", Term("(at night)", False, 1.0)),
        ("(at night:half)", Term("(at night:half)", False, 1.0)),
    ],
)
def test_a_weight_stands_in_brackets_behind_a_colon(text: str, term: Term) -> None:
    assert parse_terms(Search("x", text=(text,))) == [term]


def test_a_query_is_spelled_as_people_read_it() -> None:
    request = Search(
        "x", text=("(at night:0.5)",), image=("deep/a.jpg",), minus=("day",), minus_image=("b.jpg",)
    )
    assert format_query(request) == "0.5 at night + a.jpg - day - b.jpg"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": ("cat",), "minus": ("cat",)}, "cancel each other out: cat - cat"),
        ({"image": ("nowhere.png",)}, "nowhere.png: No such file"),
        ({"text": ("(cat:0)",)}, "cancel each other out"),
        ({"text": ("cat",), "index": "."}, "has other files in it"),
    ],
)
def test_nonsense_is_said_before_anything_is_computed(folder, monkeypatch, fields, words) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=words):
        found(folder, **fields)
    assert not (folder.parent / "cache").exists()


@pytest.mark.parametrize(
    ("angle", "weight", "cancels"),
    [
        (2.2e-4, 1, False),
        (1.8e-4, 1, True),
        (2.2e-4, 0.01, False),
        (1.8e-4, 0.01, True),
        (1, 1, False),
    ],
)
def test_terms_cancel_each_other_out_below_a_ten_thousandth_of_their_weights(
    folder: Path, monkeypatch, angle, weight, cancels
) -> None:
    """Two unit vectors at a small angle: their difference is as long as the angle, and its weights
    sum to 2.
    """
    turned = {"cat": 0.0, "dog": angle}
    vectors = {
        text: F.pad(torch.tensor([np.cos(a), np.sin(a)], dtype=torch.float32), (0, 14))
        for text, a in turned.items()
    }
    rows = lambda loaded, texts: torch.stack([vectors[text] for text in texts])  # noqa: E731
    monkeypatch.setattr(Loaded, "embed_text", rows)
    fields = {"text": (f"(cat:{weight})",), "minus": (f"(dog:{weight})",)}
    if cancels:
        with pytest.raises(ValueError, match="cancel each other out"):
            found(folder, **fields)
    else:
        assert found(folder, **fields).matches


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"k": 0}, "k must be"),
        ({"duplicates": 1.5}, "duplicates must be a cosine"),
        ({"duplicates": 0.9, "text": ("cat",)}, "exclude each other"),
        ({"minus": ("cat",)}, "only subtracts"),
    ],
)
def test_requests_check_themselves(fields, words) -> None:
    with pytest.raises(ValueError, match=words):
        Search("x", **fields)


def test_a_model_that_is_no_clip_is_refused(folder: Path) -> None:
    from tests.systems.class_to_image.test_pipeline import loaded

    for fields in ({}, {"text": ("cat",)}):
        with pytest.raises(ValueError, match="is a cvae"):
            list(run(Search(str(folder), **fields), loaded()))


def test_a_text_that_is_cut_is_said(folder: Path) -> None:
    (note,) = found(folder, text=("two cats " * 20,)).notes
    assert "too long" in note and "cats" in note


def test_copies_are_found_as_duplicates(folder: Path) -> None:
    save_picture(folder / "copy.png", picture(4))
    save_picture(folder / "sub" / "again.png", picture(4))
    shade = np.clip(picture(5).astype(int) + 2, 0, 255).astype(np.uint8)
    save_picture(folder / "brighter.png", shade)
    groups = found(folder, duplicates=0.999).groups
    named = [[m.name for m in group] for group in groups]
    assert named == [["004.png", "copy.png", "sub/again.png"], ["005.png", "brighter.png"]]
    assert [m.score for m in groups[0]] == pytest.approx([1, 1, 1], abs=1e-6)
    assert 0.999 <= groups[1][1].score < 1
    assert found(folder, duplicates=0.999, k=1).groups == groups


def test_faiss_is_used_where_it_is_asked_for(folder: Path) -> None:
    pytest.importorskip("faiss")
    exact = found(folder, text=("two cats",), backend="exact").matches
    assert found(folder, text=("two cats",), backend="faiss").matches == exact


def test_many_pictures_without_faiss_are_searched_exactly_and_that_is_said(folder, monkeypatch):
    import sys

    exact = found(folder, text=("two cats",)).matches
    monkeypatch.setattr(search, "LARGE", 5)
    monkeypatch.setitem(sys.modules, "faiss", None)
    result = found(folder, text=("two cats",))
    assert result.matches == exact and "triptych[search]" in result.notes[0]
    with pytest.raises(ValueError, match=r"triptych\[search\]"):
        found(folder, text=("two cats",), backend="faiss")


def test_progress_is_reported_before_the_result(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "more", 70)
    reports = list(run(Search(str(folder)), CLIP))
    shares = [report.done for report in reports]
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) > 3
    assert reports[0].index is None and reports[-1].index is not None


def test_grad_mode_is_the_callers_while_it_works(folder: Path) -> None:
    for _ in run(Search(str(folder), text=("cat",)), CLIP):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()

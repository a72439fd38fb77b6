"""Vectors of texts and pictures: the model's own, in the order given."""

from pathlib import Path

import pytest
import torch

from tests.systems.clip.tiny_clip import pictures, tiny_clip
from triptych.requests import Embed
from triptych.running import run
from triptych.systems.two_towers.pipeline import Vectors
from triptych.vision.images import open_picture

CLIP = tiny_clip()


def vectors(**fields) -> Vectors:
    *_, last = run(Embed(**fields), CLIP)
    return last


def test_rows_are_the_models_in_the_order_given(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos", 40)
    names = tuple(str(p) for p in sorted(folder.rglob("*.png"), reverse=True))
    texts = ("two cats", "", "a red car at night", "two cats")
    rows = vectors(text=texts, image=names).rows
    assert [(r.kind, r.input) for r in rows] == [
        *(("text", t) for t in texts),
        *(("image", n) for n in names),
    ]
    for row in rows:
        one = CLIP.embed_text([row.input]) if row.kind == "text" else CLIP.embed_image(
            [open_picture(Path(row.input))]
        )  # fmt: skip
        assert row.embedding is not None and row.embedding.dtype == torch.float32
        assert torch.allclose(row.embedding, one[0], atol=1e-6)
        assert float(row.embedding.norm()) == pytest.approx(1, abs=1e-6)


def test_a_bad_picture_keeps_its_place_and_says_why(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos", 2)
    (folder / "page.png").write_text("<html>")
    names = (str(folder / "001.png"), str(folder / "page.png"), "nowhere.png", str(folder))
    rows = vectors(image=names).rows
    assert [bool(row.error) for row in rows] == [False, True, True, True]
    assert [row.embedding is None for row in rows] == [False, True, True, True]
    assert "HTML" in rows[1].error and "No such file" in rows[2].error
    assert all("/" not in row.error for row in rows)


def test_what_a_text_loses_is_said() -> None:
    short, long = vectors(text=("two cats", "two cats " * 20)).rows
    assert short.cut == "" and long.cut.endswith("cats") and not long.error


def test_progress_rises_and_nothing_is_an_error(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "photos", 40)
    names = tuple(str(p) for p in folder.rglob("*.png"))
    shares = [known.done for known in run(Embed(text=("a",), image=names), CLIP)]
    assert shares == sorted(shares) and shares[-1] == 1 and len(shares) == 3
    with pytest.raises(ValueError, match="nothing to embed"):
        Embed()


def test_a_model_that_is_no_clip_is_refused(tmp_path: Path) -> None:
    from tests.systems.class_to_image.test_pipeline import loaded

    with pytest.raises(ValueError, match="reads no text"):
        list(run(Embed(text=("cat",)), loaded()))
    with pytest.raises(ValueError, match="embeds no pictures"):
        list(run(Embed(image=("x.png",)), loaded()))

"""Box formats, each read back by its own reader or by hand."""

import contextlib
import io
import json
from xml.etree import ElementTree

import pytest
import torch
from pycocotools.coco import COCO

from triptych.systems.detection.annotations import (
    FORMATS,
    Annotated,
    format_boxes,
    to_coco,
    to_plain_json,
    to_voc,
    to_yolo,
)
from triptych.vision.boxes import relative, to_xyxy

LABELS = ("blue star", "red circle", "a & <b>")
BOXES = torch.tensor([[0.1, 0.25, 0.5, 0.75], [0.0, 0.0, 1.0, 1.0]])


def annotated() -> Annotated:
    return Annotated("some/where/p.png", 40, 200, BOXES, ("red circle", "a & <b>"), (0.9, 0.25))


def test_coco_loads_in_its_own_library(tmp_path) -> None:
    other = Annotated("q.png", 10, 10, torch.zeros(0, 4), ())
    (tmp_path / "boxes.json").write_text(json.dumps(to_coco([other, annotated()], LABELS)))
    with contextlib.redirect_stdout(io.StringIO()):
        read = COCO(str(tmp_path / "boxes.json"))
    (image,) = read.loadImgs(read.getImgIds(imgIds=[2]))
    assert (image["file_name"], image["width"], image["height"]) == ("p.png", 200, 40)
    first, second = read.loadAnns(read.getAnnIds(imgIds=[2]))
    assert first["bbox"] == pytest.approx([20, 10, 80, 20])
    assert first["area"] == pytest.approx(1600)
    assert first["score"] == 0.9 and second["bbox"] == [0, 0, 200, 40]
    assert read.loadCats(first["category_id"])[0]["name"] == "red circle"
    assert read.getAnnIds(imgIds=[1]) == []
    back = relative(to_xyxy(torch.tensor([first["bbox"]]), "xywh"), 40, 200)
    assert torch.allclose(back, BOXES[:1])


def test_voc_counts_pixels_from_one_and_includes_the_last() -> None:
    root = ElementTree.fromstring(to_voc(annotated()))
    assert root.findtext("filename") == "p.png"
    assert [root.findtext(f"size/{n}") for n in ("width", "height", "depth")] == ["200", "40", "3"]
    first, second = root.findall("object")
    ends = [int(first.findtext(f"bndbox/{n}")) for n in ("xmin", "ymin", "xmax", "ymax")]
    assert ends == [21, 11, 100, 30]  # 80 x 20 pixels
    assert second.findtext("name") == "a & <b>"
    assert [int(e.text) for e in second.find("bndbox")] == [1, 1, 200, 40]
    thin = Annotated("p.png", 40, 200, torch.tensor([[1.0, 1.0, 1.0, 1.0]]), ("x",))
    box = ElementTree.fromstring(to_voc(thin)).find("object/bndbox")
    assert [int(e.text) for e in box] == [200, 40, 200, 40]  # never without a pixel


def test_yolo_is_centre_and_size_and_the_label_s_place() -> None:
    lines = to_yolo(annotated(), LABELS).splitlines()
    assert lines[0] == "1 0.300000 0.500000 0.400000 0.500000 0.900000"
    assert lines[1].startswith("2 0.500000 0.500000 1.000000 1.000000")
    drawn = Annotated("p.png", 40, 200, BOXES, ("red circle", "a & <b>"))
    assert [len(line.split()) for line in to_yolo(drawn, LABELS).splitlines()] == [5, 5]
    assert to_yolo(Annotated("p.png", 4, 4, torch.zeros(0, 4), ()), LABELS) == ""


def test_our_json_has_both_units_and_no_folder() -> None:
    data = to_plain_json(annotated())
    assert data["picture"] == "p.png" and "some" not in json.dumps(data)
    assert data["boxes"][0]["box"] == pytest.approx([0.1, 0.25, 0.5, 0.75])
    assert data["boxes"][0]["pixels"] == pytest.approx([20, 10, 100, 30])


@pytest.mark.parametrize("form", FORMATS)
def test_every_form_is_text_with_a_box_for_a_box(form) -> None:
    text = format_boxes(annotated(), LABELS, form)
    assert text.endswith("\n")
    count = {"coco": '"bbox"', "voc": "<object>", "yolo": "\n", "json": '"pixels"'}[form]
    assert text.count(count) == 2


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match="'red circle', which is not one of"):
        to_yolo(annotated(), ("blue",))
    with pytest.raises(ValueError, match="2 boxes, 1 labels"):
        Annotated("p.png", 4, 4, BOXES, ("x",))
    with pytest.raises(ValueError, match="not a finite number"):
        to_plain_json(Annotated("p.png", 4, 4, BOXES[:1], ("x",), (float("nan"),)))
    with pytest.raises(ValueError, match="coco, voc, yolo, json"):
        format_boxes(annotated(), LABELS, "kitti")  # type: ignore[arg-type]

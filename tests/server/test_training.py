"""A training as a job: in a process of its own, followed, stopped, gone on with, and used."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.server.running import run_service
from triptych import fields
from triptych.requests import TrainCvae
from triptych.server.jobs.train_process import _train
from triptych.train.loop import Report

SMALL = {
    "training": {
        "data": "digits", "steps": 6, "batch_size": 8, "log_every": 2, "save_every": 2,
        "sample_every": 4, "device": "cpu",
    },
    "widths": [4], "latent": 2, "network": "mlp",
}  # fmt: skip

KINDS = ("notes", "progress", "row", "sample")


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_the_process_of_a_training_says_what_happens(tmp_path, capsys) -> None:
    large = fields.to_json(TrainCvae()) | SMALL
    large["training"] = fields.to_json(TrainCvae().training) | SMALL["training"]
    large["training"]["batch_size"] = 2000
    work = {"recipe": "cvae", "request": large, "run": str(tmp_path / "run")}
    assert _train(work, []) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = {kind: [one["data"] for one in said if one["kind"] == kind] for kind in KINDS}
    assert len(told["notes"]) == 1 and "--batch-size of" in told["notes"][0]["notes"][0]
    assert [row["step"] for row in told["row"]] == [2, 4, 6] and told["sample"]
    assert told["progress"][-1]["done"] == 1


def test_notes_of_a_training_are_told_together(monkeypatch, tmp_path, capsys) -> None:
    reports = [Report(step, {}, None, None, note) for step, note in enumerate(("a\nb", "", "c"))]
    monkeypatch.setattr("triptych.training.train", lambda request, run: iter(reports))
    work = {"recipe": "cvae", "request": fields.to_json(TrainCvae()), "run": str(tmp_path)}
    assert _train(work, []) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    notes = [one["data"]["notes"] for one in said if one["kind"] == "notes"]
    assert notes == [["a", "b"], ["a", "b", "c"]]


@pytest.mark.slow
def test_a_training_is_followed_and_its_model_used(tmp_path) -> None:
    with run_service(tmp_path, models=()) as running:
        large = SMALL | {"training": SMALL["training"] | {"batch_size": 2000}}
        answer = running.http.post("/api/train-cvae", params={"run": "mine"}, json=large)
        job = answer.json()
        assert job["run"] == "mine"
        events = list(running.events(job["id"]))
        kinds = [event["event"] for event in events]
        assert kinds[-1] == "done", events[-1]
        rows = [event for event in events if event["event"] == "row"]
        assert [row["step"] for row in rows] == [2, 4, 6] and "loss" in str(rows[0])
        (notes,) = [event["notes"] for event in events if event["event"] == "notes"]
        assert "a batch of 2,000 is larger" in notes[0] and "a `batch_size` of" in notes[0]
        samples = [event for event in events if event["event"] == "sample"]
        assert samples and running.http.get(samples[0]["url"]).content.startswith(b"\x89PNG")
        models = {model["name"]: model["kind"] for model in running.http.get("/api/models").json()}
        assert models["mine"] == "cvae"
        drawn = running.made("class-to-image", model="mine", label="3", n=1)
        assert drawn["result"]["pictures"][0]["facts"]["shows"] == "3"
        again = running.http.post("/api/train-cvae", params={"run": "mine"}, json=SMALL)
        assert again.status_code == 409


@pytest.mark.slow
def test_a_stopped_training_goes_on_where_it_stopped(tmp_path) -> None:
    long = SMALL | {"training": SMALL["training"] | {"steps": 100_000, "log_every": 1}}
    with run_service(tmp_path, models=()) as running:
        job = running.submit("train-cvae", **long)
        for event in running.events(job["id"]):
            if event["event"] == "row":
                break
        running.http.delete(f"/api/jobs/{job['id']}")
        stopped = running.finish(job["id"])
        assert stopped["state"] == "cancelled"
        last = stopped["result"]["values"]["row"]["step"]
        again = running.http.post(f"/api/jobs/{job['id']}/again").json()
        for event in running.events(again["id"]):
            if event["event"] == "row":
                assert event["step"] >= last
                break
        running.http.delete(f"/api/jobs/{again['id']}")
        assert running.finish(again["id"])["state"] == "cancelled"


def test_pictures_dropped_in_a_page_are_checked_as_a_source(tmp_path) -> None:
    files = [
        ("files", (f"photos/{label}/{number}.png", picture(number)))
        for number, label in enumerate(["cat", "dog"] * 6)
    ]
    files += [("files", ("photos/cat/0.txt", b"a cat")), ("files", ("x/../../y.png", picture(99)))]
    files += [("files", ("broken.png", b"none"))]
    with run_service(tmp_path / "home", models=()) as running:
        answer = running.http.post("/api/data-sets", data={"title": "pets"}, files=files)
        assert answer.status_code == 201, answer.text
        found = answer.json()
        assert found["pictures"] == 13 and list(found["skipped"]) == ["broken.png"]
        assert not (tmp_path / "y.png").exists()
        values = running.made("check-data", source=found["name"])["result"]["values"]
        assert values["pictures"] == 13 and values["classes"].keys() >= {"cat", "dog"}
        assert values["source"] == found["name"]
        assert found["name"] in [one["name"] for one in running.http.get("/api/data").json()]
        assert running.http.delete(f"/api/data-sets/{found['name']}").status_code == 204
        assert (
            running.http.post("/api/check-data", json={"source": found["name"]}).status_code == 400
        )

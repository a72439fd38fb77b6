"""A request as a job: started on a real port, followed, cancelled, found again after a restart."""

import base64
import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import triptych
from tests.server.running import EVERY_STEP, LONG, Running, run_service, wait_until, with_limits
from triptych.fields import from_json, to_json
from triptych.requests import TextToImage
from triptych.server.jobs.carry_out import Outcome, Stop, Tools
from triptych.server.jobs.store import Job, Store
from triptych.server.jobs.workers import Lane
from triptych.vision.images import open_picture, read_parameters, read_request

CAT = {"prompt": "a red cat", "steps": 3, "seed": 7, "precision": "float32"}


def read_png(running: Running, url: str) -> np.ndarray:
    answer = running.http.get(url)
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    return open_picture(answer.content)


def test_a_picture_is_the_one_that_the_library_draws(served, models) -> None:
    job = served.made("text-to-image", **CAT, n=2)
    request = TextToImage(model=str(models / "runs" / "painter"), n=2, **CAT)
    *_, drawn = triptych.run(request)
    pictures = job["result"]["pictures"]
    assert [one["facts"]["seed"] for one in pictures] == [7, 8]
    for picture, expected in zip(pictures, drawn.pictures, strict=True):
        assert (read_png(served, picture["url"]) == expected).all()


def test_the_file_has_its_request_and_no_path(served) -> None:
    job = served.made("text-to-image", **CAT, negative="blur")
    data = served.http.get(job["result"]["pictures"][0]["url"]).content
    record = read_request(data)["request"]
    assert record["model"] == "painter" and record["seed"] == 7
    assert "Negative prompt: blur" in read_parameters(data)
    again = from_json(TextToImage, record)
    same = served.made("text-to-image", **to_json(again))
    assert served.http.get(same["result"]["pictures"][0]["url"]).content == data


@pytest.fixture
def told(monkeypatch) -> list[tuple[str, dict]]:
    """Every event that a worker tells: those that are forgotten when a job ends, too."""
    found: list[tuple[str, dict]] = []
    append = Store.append

    def note(store: Store, key: str, kind: str, data: dict) -> int:
        found.append((kind, data))
        return append(store, key, kind, data)

    monkeypatch.setattr(Store, "append", note)
    return found


def test_events_are_numbered_replayed_and_followed(served, told) -> None:
    job = served.submit("text-to-image", **CAT)
    seen = list(served.events(job["id"]))
    kinds = [event["event"] for event in seen]
    assert kinds[:3] == ["waiting", "running", "loading"] and kinds[-2:] == ["picture", "done"]
    numbers = [event["number"] for event in seen]
    assert numbers == sorted(set(numbers))
    progress = [data["done"] for kind, data in told if kind == "progress"]
    assert progress == sorted(progress) and len(progress) >= CAT["steps"]
    kept = [event for event in seen if event["event"] not in ("progress", "preview")]
    assert list(served.events(job["id"])) == kept
    assert list(served.events(job["id"], after=kept[-2]["number"])) == kept[-1:]


def test_previews_are_small_pictures_of_what_is_expected(served, told) -> None:
    served.made("text-to-image", **CAT | {"steps": 5})
    previews = [data for kind, data in told if kind == "preview"]
    assert previews
    kind, _, encoded = previews[0]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        assert max(image.size) <= EVERY_STEP.preview_side


def test_progress_and_previews_are_told_to_those_who_look(served, told, monkeypatch) -> None:
    """A picture that its client only waits for costs neither, unless it takes long."""
    limits = vars(served.service.limits)
    monkeypatch.setitem(limits, "unseen_seconds", 3600.0)
    body = {"prompt": "a red cat", "num_inference_steps": 5, "seed": 7}

    def drawn() -> int:
        told.clear()
        assert served.http.post("/v1/images/generations", json=body).status_code == 200
        kinds = [kind for kind, _ in told]
        assert (kinds.count("progress") >= 5) == (kinds.count("preview") > 0)
        assert kinds.count("picture") == 1
        return kinds.count("preview")

    feed = served.service.feed
    monkeypatch.setattr(feed, "looked", float("-inf"))
    assert drawn() == 0
    with served.http.stream("GET", "/api/events"):
        wait_until(lambda: feed.is_followed("any"))
        assert drawn() >= 4
    wait_until(lambda: not feed.is_followed("any"))
    assert drawn() == 0
    assert served.http.get("/sdapi/v1/progress").json()["current_image"] is None
    assert drawn() >= 4  # who asks for the progress asks again
    feed.looked = float("-inf")
    monkeypatch.setitem(limits, "unseen_seconds", 0.0)
    assert drawn() >= 4


def test_a_sentence_about_a_setting_names_its_field(served) -> None:
    job = served.submit("class-to-image", model="digits-vae", label="7", steps=3)
    message = "`steps` cannot be used: digits-vae is a cvae"
    assert served.finish(job["id"])["error"] == {"type": "request", "message": message}
    answer = served.http.post("/api/classify", json={"model": "seer", "pictures": ["x"]})
    assert "as in `labels` cat dog" in answer.json()["error"]["message"]


def test_the_steps_of_a_job_wake_no_other_worker(served, monkeypatch) -> None:
    takes: list[str] = []
    take = Store.take

    def count(store: Store, lane: str) -> Job | None:
        takes.append(lane)
        return take(store, lane)

    monkeypatch.setattr(Store, "take", count)
    served.made("text-to-image", **CAT | {"steps": 20})
    assert takes.count("train") <= 2 and takes.count("draw") <= 3


@pytest.mark.parametrize(
    ("body", "sentence", "param"),
    [
        ({"promt": "a"}, "TextToImage has no field 'promt'. Did you mean 'prompt'?", "promt"),
        ({}, "TextToImage lacks the field 'prompt'", "prompt"),
        ({"prompt": "a", "steps": "many"}, "steps must be int, not 'many'", "steps"),
        ({"prompt": "a", "steps": 1001}, "steps must be 1 to 1000", "steps"),
        ({"prompt": "a", "sampler": "eulr"}, "Did you mean 'euler'?", "sampler"),
        ([1], "TextToImage must be an object, not [1]", None),
        ({"prompt": "a", "model": "paintr"}, "no model 'paintr'. Did you mean 'painter'?", "model"),
        ({"prompt": "a", "n": 65}, "n: at most 64 here, not 65", "n"),
        ({"prompt": "a", "size": "4096x64"}, "at most 2048 pixels a side here", "size"),
        ({"prompt": "a", "n": 64, "steps": 150, "size": "2048x2048"}, "times what one", "size"),
    ],
)
def test_what_is_wrong_is_said_as_on_the_command_line(served, body, sentence, param) -> None:
    answer = served.http.post("/api/text-to-image", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and sentence in error["message"], error
    assert error["param"] == param


def test_every_system_answers(served) -> None:
    """Each request of each system, with the model that fits chosen where none is named."""
    photo = served.made("text-to-image", **CAT)["result"]["pictures"][0]["id"]
    found = served.made("class-to-image", label="3", n=2, seed=1)
    assert [one["facts"]["shows"] for one in found["result"]["pictures"]] == ["3", "3"]
    found = served.made("classify", pictures=[photo], labels=["cat", "dog"])
    (row,) = found["result"]["values"]["pictures"]
    assert abs(sum(label["probability"] for label in row["labels"]) - 1) < 1e-5
    found = served.made("detect", picture=photo, labels=["cat"], threshold=0.0)
    values = found["result"]["values"]
    assert (values["width"], values["height"]) == (64, 64) and "boxes" in values
    assert {one["facts"]["shows"] for one in found["result"]["pictures"]} == {"boxes", "heat map"}
    found = served.made("embed", text=["a cat"], image=[photo])
    vectors = [np.array(row["embedding"]) for row in found["result"]["values"]["rows"]]
    assert [round(float(np.linalg.norm(vector)), 4) for vector in vectors] == [1, 1]


def test_search_among_the_results(served, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = [served.made("text-to-image", **CAT | {"seed": seed}) for seed in (1, 2)]
    first = made[0]["result"]["pictures"][0]["id"]
    found = served.made("search", folder="results", image=[first], k=1)["result"]
    (match,) = found["values"]["matches"]
    assert match["file"] == first and found["values"]["folder"] == "results"
    assert found["pictures"][0]["kind"] == "shown"
    again = served.made("search", folder="results", image=[first], k=2)["result"]["values"]
    assert again["matches"][1]["score"] < 1  # another picture, not what the first search has shown
    found = served.made("search", folder="photos", text=["(a dog:0.5)"], k=3)["result"]
    assert len(found["values"]["matches"]) == 3


def test_a_cancelled_job_stops_at_its_step_and_keeps_what_it_drew(
    tmp_path, offered, monkeypatch
) -> None:
    """Counted in items of the pipeline: after the request to cancel at most one more is drawn."""
    drawn, cancelled = threading.Event(), threading.Event()
    kinds: list[str] = []
    append = Store.append

    def pause(store: Store, key: str, kind: str, data: dict) -> int:
        """The worker waits after its first picture until it is cancelled."""
        number = append(store, key, kind, data)
        kinds.append(kind)
        if kind == "picture" and not drawn.is_set():
            drawn.set()
            assert cancelled.wait(LONG)
        return number

    monkeypatch.setattr(Store, "append", pause)
    with run_service(tmp_path, models=offered) as running:
        job = running.submit("text-to-image", **CAT | {"steps": 30}, n=3, deterministic=True)
        assert drawn.wait(LONG)
        assert running.http.delete(f"/api/jobs/{job['id']}").status_code == 200
        before = len(kinds)
        cancelled.set()
        found = running.finish(job["id"])
        assert found["state"] == "cancelled" and kinds[before:].count("progress") <= 1
        assert len(found["result"]["pictures"]) == 1
        assert running.http.delete(f"/api/jobs/{job['id']}").status_code == 200  # again: the same


def test_waiting_jobs_are_cancelled_at_once_and_moved(tmp_path) -> None:
    with run_service(tmp_path, lanes=[]) as running:  # nobody works
        keys = [running.submit("check-data", source="digits")["id"] for _ in range(3)]
        order = lambda: [job["id"] for job in running.http.get("/api/queue").json()]  # noqa: E731
        assert order() == keys
        moved = running.http.put(f"/api/jobs/{keys[2]}/place", params={"place": 0}).json()
        assert moved["place"] == 0 and order() == [keys[2], keys[0], keys[1]]
        answer = running.http.delete(f"/api/jobs/{keys[0]}").json()
        assert answer["state"] == "cancelled" and order() == [keys[2], keys[1]]
        assert running.http.delete("/api/jobs/unknown").status_code == 404
        assert running.http.put(f"/api/jobs/{keys[0]}/place?place=0").status_code == 409


def test_an_ended_job_cannot_be_cancelled(served) -> None:
    job = served.made("text-to-image", **CAT)
    answer = served.http.delete(f"/api/jobs/{job['id']}")
    assert answer.status_code == 409 and answer.json()["error"]["code"] == "ended"


def hold(job: Job, tools: Tools, stop: Stop) -> Outcome:
    """Works until it is stopped."""
    tools.tell(job, "progress", {"done": 0.5})
    stop.event.wait()
    return Outcome(stop.state)


def test_a_restart_keeps_the_queue_and_interrupts_what_ran(tmp_path) -> None:
    with run_service(tmp_path, lanes=[Lane("data", hold)]) as running:
        first, second = (running.submit("check-data", source="digits")["id"] for _ in range(2))
        for event in running.events(first):
            if event["event"] == "progress":
                break
    with run_service(tmp_path) as running:
        assert running.http.get(f"/api/jobs/{first}").json()["state"] == "interrupted"
        done = running.finish(second)
        assert done["state"] == "done" and done["result"]["values"]["pictures"] == 1797
        again = running.http.post(f"/api/jobs/{first}/again").json()
        assert running.finish(again["id"])["state"] == "done"


def test_results_are_found_again_by_id_and_words_and_deleted(tmp_path, offered) -> None:
    with run_service(tmp_path, models=offered) as running:
        job = running.made("text-to-image", **CAT)
        running.made("text-to-image", **CAT | {"prompt": "a blue 100% dog"})
    with run_service(tmp_path, models=offered) as running:
        http = running.http
        assert http.get(f"/api/jobs/{job['id']}").json()["result"] == job["result"]
        found = http.get("/api/results", params={"words": "RED cat"}).json()
        assert [one["id"] for one in found] == [job["result"]["pictures"][0]["id"]]
        assert len(http.get("/api/results", params={"words": "100%"}).json()) == 1
        assert len(http.get("/api/results").json()) == 2
        beside = json.loads((tmp_path / "results" / job["id"] / "job.json").read_text())
        assert beside["request"] == job["request"]
        assert http.delete(f"/api/results/{job['id']}").status_code == 204
        assert not (tmp_path / "results" / job["id"]).exists()
        assert http.get(job["result"]["pictures"][0]["url"]).status_code == 404


def test_the_same_idempotency_key_is_the_same_job(tmp_path) -> None:
    with run_service(tmp_path, lanes=[]) as running:
        keys = {"idempotency-key": "one"}
        answers = [
            running.http.post("/api/check-data", json={"source": "digits"}, headers=keys)
            for _ in range(2)
        ]
        assert answers[0].json()["id"] == answers[1].json()["id"]
        assert len(running.http.get("/api/queue").json()) == 1


def test_the_queue_is_bounded(tmp_path) -> None:
    with run_service(tmp_path, lanes=[], limits=with_limits(waiting=3)) as running:
        answers = [
            running.http.post("/api/check-data", json={"source": "digits"}) for _ in range(5)
        ]
        assert [answer.status_code for answer in answers] == [202, 202, 202, 503, 503]
        assert answers[-1].headers["retry-after"]
        assert answers[-1].json()["error"]["code"] == "queue_full"
    with run_service(tmp_path, lanes=[], limits=with_limits(waiting_per_client=3)) as running:
        answer = running.http.post("/api/check-data", json={"source": "digits"})
        assert answer.status_code == 429 and answer.json()["error"]["type"] == "rate_limit_error"


def test_one_service_a_home(tmp_path: Path) -> None:
    with (
        run_service(tmp_path, lanes=[]),
        pytest.raises(RuntimeError, match="choose another --home"),
        run_service(tmp_path),
    ):
        pass

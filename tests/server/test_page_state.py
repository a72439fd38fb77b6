"""What a page needs so that it shows the service's state: whenever it comes, and in every tab."""

import base64
import gc
import io
import shutil
import tempfile

import pytest
from PIL import Image
from starlette import formparsers

from tests.server.conftest import save_digits
from tests.server.running import Running, run_service
from tests.server.test_security import png
from tests.systems.unclip import tiny_unclip
from triptych.requests import Ask, Classify, TextToImage, TrainCvae
from triptych.server.jobs.carry_out import Outcome, Stop, Tools, carry_out
from triptych.server.jobs.database import Database
from triptych.server.jobs.store import Job, Store
from triptych.server.jobs.workers import Lane
from triptych.server.routes.own import split_sentence
from triptych.systems.stable_diffusion.answer import read_prompt
from triptych.systems.unclip.answer import read_prompt as read_unclip_prompt
from triptych.weights.describe_model import describe_model

CAT = {"prompt": "a red cat", "steps": 3, "seed": 7, "precision": "float32"}


def work(job: Job, tools: Tools, stop: Stop) -> Outcome:
    """Says how far it is, and goes on until it is stopped."""
    tools.tell(job, "progress", {"done": 0.25, "step": 5, "steps": 20})
    stop.event.wait()
    return Outcome(stop.state)


def test_state_and_then_the_events_after_it_lose_nothing(tmp_path) -> None:
    with run_service(tmp_path, lanes=[Lane("data", work)]) as running:
        job = running.submit("check-data", source="digits")
        for event in running.events(job["id"]):
            if event["event"] == "progress":
                break
        for path in ("/api/jobs", "/api/queue"):
            answer = running.http.get(path)
            assert int(answer.headers["x-last-event"]) == event["number"]
            (now,) = answer.json()
            assert (now["state"], now["done"], now["number"]) == ("running", 0.25, 1)
            assert now["result"]["values"] == {"step": 5, "steps": 20}
        running.http.delete(f"/api/jobs/{job['id']}")
        after = [one["event"] for one in running.events(job["id"], after=event["number"])]
        assert after == ["cancelling", "cancelled"]
        assert running.http.get(f"/api/jobs/{job['id']}").json()["done"] is None


def test_what_is_deleted_is_told_to_everybody(tmp_path, offered) -> None:
    with run_service(tmp_path, models=offered) as running:
        job = running.made("text-to-image", **CAT, n=2)
        first, second = (one["id"] for one in job["result"]["pictures"])
        last = running.service.jobs.last_event()
        assert running.http.delete(f"/api/files/{first}").status_code == 204
        left = running.http.get(f"/api/jobs/{job['id']}").json()["result"]["pictures"]
        assert [one["id"] for one in left] == [second]
        (one,) = running.service.jobs.events(last)
        assert (one.kind, one.job, one.data) == ("deleted", job["id"], {"file": first})
        assert not one.is_last
        assert running.http.delete(f"/api/results/{job['id']}").status_code == 204
        (one,) = running.service.jobs.events(last)  # those of the job are gone with it
        assert (one.kind, one.job, one.data) == ("deleted", job["id"], {}) and one.is_last


def test_a_model_that_was_deleted_is_gone_from_the_list_and_said_to_be(tmp_path) -> None:
    """Given or trained here; before a request, while it waits, and while it is being loaded."""
    home, given = tmp_path / "home", tmp_path / "given"
    for folder in (given, home / "runs" / "mine", home / "runs" / "late"):
        save_digits(folder)
    with run_service(home, models=(str(given),), lanes=[]) as running:
        jobs = [
            running.submit("class-to-image", model=name, label="7")
            for name in ("given", "mine", "late")
        ]
        tools = running.service.workers.tools

        def load(place: str, device: str, dtype: str) -> None:
            shutil.rmtree(place)
            raise FileNotFoundError(place)

        tools.models.load = load
        for folder in (given, home / "runs" / "mine"):
            shutil.rmtree(folder)
        for job in jobs:
            outcome = carry_out(running.service.jobs.job(job["id"]), tools, Stop())
            name = job["request"]["model"]
            message = f"model '{name}' is no longer there: it was deleted or moved; choose another"
            assert outcome.error == {"type": "request", "message": message, "param": "model"}
        assert running.http.get("/api/models").json() == []
        body = {"model": "mine", "label": "7"}
        answer = running.http.post("/api/class-to-image", json=body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "model"


def test_all_previews_of_one_picture_are_kept_where_that_is_asked_for(served) -> None:
    def previews(**query: str) -> list[dict]:
        answer = served.http.post("/api/text-to-image", json=CAT, params=query)
        job = served.finish(answer.json()["id"])
        return [one for one in served.events(job["id"]) if one["event"] == "preview"]

    kept = previews(previews="all")
    assert len(kept) >= CAT["steps"] - 1 and previews() == []
    shares = [one["done"] for one in kept]
    assert shares == sorted(set(shares))
    with Image.open(io.BytesIO(base64.b64decode(kept[-1]["url"].partition(",")[2]))) as image:
        assert image.size == (64, 64)  # drawn by the autoencoder, not a pixel for each latent
    refused = served.http.post("/api/text-to-image?previews=all", json=CAT | {"n": 2})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "n"


def test_a_database_of_the_first_services_is_read(tmp_path) -> None:
    database = Database(tmp_path / "a.sqlite")
    database.connection.execute("ALTER TABLE jobs DROP COLUMN keeps")
    database.connection.execute(
        "INSERT INTO jobs (id, name, lane, request, client, attached, run, state, place, created) "
        "VALUES ('a', 'x', 'draw', '{}', '', 0, '', 'waiting', 1, 0)"
    )
    database.close()
    (job,) = Store(Database(tmp_path / "a.sqlite")).queue()
    assert job.id == "a" and not job.keeps


@pytest.mark.parametrize(
    ("kind", "message", "sentence", "place"),
    [
        (TextToImage, "TextToImage: n must be 1", "n must be 1", "n"),
        (TextToImage, "TextToImage: no spacing 'n'; there are", None, "spacing"),
        (TextToImage, "TextToImage.steps must be int, not 'x'", "steps must be int, not 'x'", None),
        (TrainCvae, "TrainCvae.training: steps must be 1", "steps must be 1", "training.steps"),
        (TrainCvae, "TrainCvae.training has no field 'stps'", None, "training"),
        (Classify, "Classify: no labels: say what", None, "labels"),
        (Classify, "Classify: 'labels' twice", None, ""),
        (Ask, "Ask: give a question", None, "question"),
        (Ask, "Ask must be an object, not [1]", "Ask must be an object, not [1]", ""),
        (Ask, "Ask has no field 'pictur'. Did you", "Ask has no field 'pictur'. Did you", "pictur"),
    ],
)
def test_a_sentence_names_the_field_that_it_is_about(kind, message, sentence, place) -> None:
    found, where = split_sentence(message, kind)
    assert sentence is None or found == sentence
    assert where == ("steps" if place is None else place)


def test_the_tokens_of_a_prompt_without_loading_a_model(served, tmp_path, offered) -> None:
    def read(running: Running, **body: str) -> dict:
        answer = running.http.post("/api/tokens", json=body)
        assert answer.status_code == 200, answer.text
        found: dict = answer.json()
        return found

    with run_service(tmp_path, models=offered, lanes=[]) as running:
        found = read(running, model="painter", prompt="a")
        assert not found["loaded"] and found["windows"] is None
        assert running.service.models.sizes() == {}
        for body, param in (
            ({"model": "no", "prompt": "a"}, None),
            ({"model": "painter"}, "prompt"),
        ):
            answer = running.http.post("/api/tokens", json=body)
            assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    served.made("text-to-image", **CAT)
    found = read(served, model="painter", prompt="a (red:1.5) cat")
    (window,) = found["windows"]
    assert [token["weight"] for token in window if "r" in token["text"]][:1] == [1.5]
    assert "".join(token["text"] for token in window).replace(" ", "") == "aredcat"
    assert found["limit"] == served.service.models.find(_place(served)).tokenizers[0].room
    long = read(served, model="painter", prompt="a red cat, " * 40)
    assert len(long["windows"]) > 1 and long["cut"] == ""
    served.made("class-to-image", label="3", n=1)
    assert read(served, model="digits-vae", prompt="3")["windows"] is None


def _place(running: Running) -> str:
    return running.service.offers.find_model("painter").place


def test_tokens_are_those_that_the_model_reads(served) -> None:
    served.made("text-to-image", **CAT)
    loaded = served.service.models.find(_place(served))
    tokenizer = loaded.tokenizers[0]
    changing = read_prompt(loaded, "a [red:blue:0.5] cat AND a dog <lora:x:1>")
    tokens = [[one.token for one in window] for window in changing.windows]
    assert tokens == [tokenizer.pieces("a red cat"), tokenizer.pieces("a dog")]
    unclip = tiny_unclip.loaded()
    read = read_unclip_prompt(unclip, "a red circle " * 30)
    assert len(read.windows[0]) == read.limit and read.cut
    assert [one.token for one in read.windows[0]] == unclip.tokenizer.pieces("a red circle " * 30)[
        : read.limit
    ]


def test_a_model_says_its_defaults_and_classes_before_it_is_loaded(served, tmp_path) -> None:
    models = {one["name"]: one for one in served.http.get("/api/models").json()}
    assert models["digits-vae"]["labels"] == list("0123456789")
    assert models["digits-vae"]["defaults"] == {}
    made = served.made("text-to-image", prompt="a red cat", seed=1)["result"]["values"]["request"]
    said = models["painter"]["defaults"]
    assert {name: made[name] for name in said} == said and {"steps", "guidance", "size"} <= set(
        said
    )
    folder = tmp_path / "x"
    folder.mkdir()
    for text in ("", "[]", '{"model": 3}', '{"model": "cvae", "config": [], "classes": 3}'):
        (folder / "config.json").write_text(text)
        found = describe_model(folder)
        assert found.defaults == {} and found.classes == ()
    (folder / "model_index.json").write_text('{"_class_name": "UnCLIPPipeline"}')
    assert describe_model(folder).kind == "unclip"


def test_the_files_of_a_form_are_closed(served, monkeypatch) -> None:
    opened: list[tempfile.SpooledTemporaryFile] = []

    def note(*given, **named) -> tempfile.SpooledTemporaryFile:
        opened.append(tempfile.SpooledTemporaryFile(*given, **named))  # noqa: SIM115
        return opened[-1]

    monkeypatch.setattr(formparsers, "SpooledTemporaryFile", note)
    data = {"file": ("a.png", png())}
    assert served.http.post("/api/uploads", files=data).status_code == 201
    files = [("files", ("a.png", png())), ("files", ("b.png", b"no picture"))]
    made = served.http.post("/api/data-sets", files=files).json()
    served.http.post(f"/api/data-sets/{made['name']}/pictures", files=files)
    served.http.post("/v1/images/variations", files={"image": ("a.png", png())})
    assert served.http.post("/api/uploads", files={"other": ("a.png", png())}).status_code == 400
    gc.collect()
    assert len(opened) == 7 and all(file.closed for file in opened)

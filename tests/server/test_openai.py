"""OpenAI's routes, called by OpenAI's own client, and the two shapes that Open WebUI sends."""

import base64
import io

import numpy as np
import openai
import pytest
from PIL import Image

from tests.server.running import run_service
from tests.server.test_jobs import CAT, read_png
from triptych.server.jobs.carry_out import Outcome, Stop, Tools
from triptych.server.jobs.store import Event, Job, Store
from triptych.server.jobs.workers import Lane
from triptych.vision.images import open_picture

EXTRA = {"seed": 7, "num_inference_steps": 3}


@pytest.fixture(scope="module")
def client(served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0)


def decode(encoded: str | None) -> np.ndarray:
    assert encoded
    return open_picture(base64.b64decode(encoded))


def photo(mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    if mode == "RGBA":
        alpha = np.full((64, 64), 255, np.uint8)
        alpha[:, :32] = 0
        image.putalpha(Image.fromarray(alpha))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_models(client) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["painter", "seer", "digits-vae"]
    assert client.models.retrieve("painter").model_dump()["capabilities"] == ["text-to-image"]
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("dall-e-3")
    assert error.value.code == "model_not_found"


def test_a_picture_without_a_model_is_that_of_our_own_route(client, served) -> None:
    drawn = client.images.generate(prompt="a red cat", n=2, extra_body=EXTRA)
    assert drawn.data is not None and drawn.size == "64x64" and drawn.output_format == "png"
    request = {key: value for key, value in CAT.items() if key != "precision"}
    job = served.made("text-to-image", **request, n=2)
    for one, own in zip(drawn.data, job["result"]["pictures"], strict=True):
        assert (decode(one.b64_json) == read_png(served, own["url"])).all()
        assert one.revised_prompt == "a red cat"


def test_a_client_that_waits_for_its_picture_has_no_events_read(client, monkeypatch) -> None:
    """Each has a preview in it. The state of the job is looked at when it may have ended: not at
    every step, of which there are many times as many.
    """
    read: list[str] = []
    looked: list[str] = []
    events, state = Store.events, Store.state

    def look(store: Store, key: str) -> str:
        looked.append(key)
        return state(store, key)

    monkeypatch.setattr(Store, "state", look)

    def note(store: Store, after: int = 0, job: str = "", limit: int = 500) -> list[Event]:
        read.append(job)
        return events(store, after, job, limit)

    monkeypatch.setattr(Store, "events", note)
    drawn = client.images.generate(
        prompt="a red cat", extra_body=EXTRA | {"num_inference_steps": 30}
    )
    assert drawn.data and read == [] and len(looked) <= 3
    assert drawn._request_id  # what to name when something is wrong
    list(client.images.generate(prompt="a red cat", stream=True, extra_body=EXTRA))
    assert read


def test_formats_addresses_and_classes(client, served) -> None:
    drawn = client.images.generate(
        prompt="a red cat", model="painter", response_format="url", extra_body=EXTRA
    )
    assert drawn.data is not None and drawn.data[0].url is not None
    path = drawn.data[0].url.removeprefix(served.url)
    assert read_png(served, path).shape == (64, 64, 3)
    drawn = client.images.generate(
        prompt="a red cat", output_format="webp", output_compression=50, extra_body=EXTRA
    )
    assert drawn.data is not None and drawn.data[0].b64_json is not None
    assert base64.b64decode(drawn.data[0].b64_json)[8:12] == b"WEBP"
    drawn = client.images.generate(prompt="3", model="digits-vae")
    assert drawn.data is not None and decode(drawn.data[0].b64_json).shape == (8, 8, 1)


def test_a_stream_has_previews_and_then_the_picture(client) -> None:
    stream = client.images.generate(
        prompt="a red cat",
        stream=True,
        partial_images=2,
        extra_body=EXTRA | {"num_inference_steps": 5},
    )
    events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[-1] == "image_generation.completed" and "image_generation.partial_image" in kinds
    previews = [event.partial_image_index for event in events[:-1]]
    assert previews == list(range(len(previews))) and len(previews) <= 2
    drawn = client.images.generate(
        prompt="a red cat", extra_body=EXTRA | {"num_inference_steps": 5}
    )
    assert drawn.data and events[-1].b64_json == drawn.data[0].b64_json
    assert decode(events[0].b64_json).ndim == 3


def test_edits_with_and_without_a_mask(client) -> None:
    source = open_picture(photo())
    edited = client.images.edit(
        image=("a.png", photo()),
        mask=("m.png", photo("RGBA")),
        prompt="a red cat",
        extra_body=EXTRA,
    )
    assert edited.data is not None
    pixels = decode(edited.data[0].b64_json)
    assert (pixels[:, 32:] == source[:, 32:]).all() and (pixels[:, :32] != source[:, :32]).any()
    stream = client.images.edit(image=photo(), prompt="a cat", stream=True, extra_body=EXTRA)
    assert [event.type for event in stream] == ["image_edit.completed"]
    with pytest.raises(openai.BadRequestError, match="no transparent pixels"):
        client.images.edit(image=photo(), mask=photo(), prompt="a red cat")


def test_an_edit_as_json_with_data_urls(served) -> None:
    url = "data:image/png;base64," + base64.b64encode(photo()).decode()
    body = {"prompt": "a cat", "images": [{"image_url": url}], **EXTRA}
    answer = served.http.post("/v1/images/edits", json=body)
    assert answer.status_code == 200, answer.text
    body["images"] = [{"image_url": "http://127.0.0.1/a.png"}]
    answer = served.http.post("/v1/images/edits", json=body)
    assert answer.status_code == 400 and "not fetched" in answer.json()["error"]["message"]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_variations(client) -> None:
    found = client.images.create_variation(image=photo(), n=2)
    assert found.data is not None and len(found.data) == 2
    assert (decode(found.data[0].b64_json) != decode(found.data[1].b64_json)).any()


def test_embeddings_are_the_same_as_numbers_and_in_base64(client, served) -> None:
    texts = ["a cat", "a dog at night"]
    default = client.embeddings.create(input=texts, model="seer")  # the client asks for base64
    plain = client.embeddings.create(input=texts, model="seer", encoding_format="float")
    own = served.made("embed", text=texts)["result"]["values"]["rows"]
    for one, other, row in zip(default.data, plain.data, own, strict=True):
        assert np.allclose(one.embedding, other.embedding, atol=1e-7)
        assert other.embedding == row["embedding"]
    with pytest.raises(openai.BadRequestError, match="too long for this model"):
        client.embeddings.create(input="a dog " * 50, model="seer")
    with pytest.raises(openai.BadRequestError, match="lists of tokens are not read"):
        client.embeddings.create(input=[1, 2], model="seer")


@pytest.mark.parametrize(
    ("fields", "words", "param"),
    [
        ({"n": 11}, "n is 1 to 10", "n"),
        ({"size": "12x12"}, "each 16 to 4096 pixels", "size"),
        ({"extra_body": {"scheduler": "eulr"}}, "Did you mean 'euler'", "scheduler"),
        ({"extra_body": {"num_inference_steps": 151}}, "at most 150", "num_inference_steps"),
        ({"background": "transparent"}, "must be one of 'auto', 'opaque'", "background"),
        ({"extra_body": {"prompt": ""}}, "prompt is missing", "prompt"),
    ],
)
def test_errors_are_those_that_the_client_knows(client, fields, words, param) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as error:
        client.images.generate(prompt="a cat", **fields)
    assert error.value.param == param and error.value.type == "invalid_request_error"


def test_other_error_classes(served, offered, tmp_path) -> None:
    with run_service(tmp_path, models=offered, api_key="k" * 32, lanes=[]) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong", max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="k" * 32, max_retries=0)
        assert len(client.models.list().data) == 3
        with pytest.raises(openai.NotFoundError):
            client.images.generate(prompt="a cat", model="dall-e-3")
        with pytest.raises(openai.NotFoundError):
            message = {"role": "user", "content": "a"}
            client.chat.completions.create(model="gpt", messages=[message])


def broken(job: Job, tools: Tools, stop: Stop) -> Outcome:
    """Fails and counts how often it was called."""
    calls.append(job.id)
    return Outcome("failed", error={"type": "unexpected", "message": "it failed"})


calls: list[str] = []


def test_a_job_that_failed_is_not_repeated_by_the_client(offered, tmp_path) -> None:
    calls.clear()
    with run_service(tmp_path, models=offered, lanes=[Lane("draw", broken)]) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=2)
        with pytest.raises(openai.InternalServerError, match="it failed"):
            client.images.generate(prompt="a cat")
        assert len(calls) == 1
        with pytest.raises(openai.APIError, match="it failed"):
            list(client.images.generate(prompt="a cat", stream=True))


def test_the_shapes_of_open_webui(served) -> None:
    """As recorded: engine "openai", with and without size and response_format; `?api-version=`."""
    body = {"model": "painter", "prompt": "a red cat", "n": 1, "size": "64x64"}
    for more in ({"response_format": "b64_json"}, {}):
        answer = served.http.post("/v1/images/generations?api-version=1", json=body | more)
        (row,) = answer.json()["data"]
        assert "b64_json" in row or "url" in row

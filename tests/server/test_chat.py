"""Chats by OpenAI's client, with a small language model of random weights."""

import base64
from collections.abc import Iterator
from dataclasses import replace

import openai
import pytest

import triptych
from tests.server.running import Running, run_service
from tests.server.test_figures import read
from tests.server.test_security import degenerate, png
from tests.systems.gemma.tiny_gguf import write_gguf
from tests.systems.paligemma.test_pipeline import save_tiny
from tests.systems.unclip import tiny_unclip
from triptych.requests import Ask, Chat
from triptych.vision.images import open_picture

DECODING = {"temperature": 0.0, "max_tokens": 6}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "a red circle"},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "a blue square"},
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("chat")
    write_gguf(root / "small.gguf")
    models = (str(root / "small.gguf"), str(save_tiny(root / "eye")))
    models += (str(tiny_unclip.saved(root / "chain")),)
    with run_service(root / "home", models=models) as running:
        yield running


@pytest.fixture(scope="module")
def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0)


def test_an_answer_is_that_of_the_library_streamed_or_not(client, running) -> None:
    whole = client.chat.completions.create(model="small", messages=CHAT, **DECODING)
    place = running.service.offers.find_model("small").place
    decoding = {"decoding": Chat("a", "b").decoding.__class__(**DECODING)}
    request = Chat(
        "a blue square", place, system="Be brief.", turns=["a red circle", "yes"], **decoding
    )
    *_, said = triptych.run(request)
    choice = whole.choices[0]
    assert choice.message.content == said.text and choice.finish_reason == "length"
    assert whole.usage.completion_tokens == 6 and whole.usage.prompt_tokens == said.prompt
    chunks = list(
        client.chat.completions.create(
            model="small",
            messages=CHAT,
            stream=True,
            stream_options={"include_usage": True},
            **DECODING,
        )
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == said.text and chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    figures = read(running)
    assert figures["triptych_tokens_total read"] == 2 * whole.usage.prompt_tokens
    assert figures["triptych_tokens_total written"] == 2 * whole.usage.completion_tokens
    assert figures["triptych_first_token_seconds_count"] == 2


def test_without_a_model_the_one_that_chats(client, running) -> None:
    answer = client.chat.completions.create(
        model="", messages=[{"role": "user", "content": "a red circle"}], **DECODING
    )
    assert answer.model == "small"
    found = running.made("chat", message="a red circle", decoding=DECODING)
    assert found["result"]["values"]["text"] == answer.choices[0].message.content


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least one"),
        ([{"role": "assistant", "content": "a"}], "alternate"),
        ([CHAT[1], CHAT[1]], "alternate"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "parts of text and image_url"),
        ([{"role": "user"}], "parts of text and image_url"),
    ],
)
def test_what_is_no_chat_is_refused(client, messages, words) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(model="small", messages=messages)


def test_a_question_about_a_picture_is_answered_as_by_the_library(client, running) -> None:
    url = f"data:image/png;base64,{base64.b64encode(png((40, 30))).decode()}"
    picture = {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}
    place = running.service.offers.find_model("eye").place
    for text, fields in (("two red circles ?", {}), ("", {"task": "caption"})):
        content = [{"type": "text", "text": text}, picture] if text else [picture]
        asked = {"messages": [{"role": "user", "content": content}], **DECODING}
        whole = client.chat.completions.create(model="eye", **asked)
        decoding = Ask("p", "q", "m").decoding
        request = Ask(
            open_picture(png((40, 30))), text, place, decoding=replace(decoding, max_tokens=6),
            **fields,
        )  # fmt: skip
        *_, said = triptych.run(request)
        assert whole.choices[0].message.content == said.text and said.text
        assert whole.usage.prompt_tokens == said.prompt  # with those of the picture
        chunks = list(client.chat.completions.create(model="eye", stream=True, **asked))
        parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
        assert "".join(parts) == said.text and chunks[-1].choices[0].finish_reason
        assert client.chat.completions.create(model="", **asked).model == "eye"


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("1x1", "16-bit") else pytest.param(name, marks=pytest.mark.slow)
        for name in degenerate()
    ],
)
def test_degenerate_pictures_are_answered(client, running, name) -> None:
    data = degenerate()[name]
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": content}]
    answer = client.chat.completions.create(model="eye", messages=messages, max_tokens=1)
    assert answer.usage.completion_tokens == 1
    form = {"image": ("a.png", data)}
    varied = running.http.post("/v1/images/variations", files=form, data={"model": "chain"})
    assert len(varied.json()["data"]) == 1
    assert running.http.get("/healthz").status_code == 200


def test_a_picture_needs_a_model_that_sees(client) -> None:
    part = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}
    content = [{"type": "text", "text": "what is it?"}, part]
    with pytest.raises(openai.BadRequestError, match="not fetched"):
        client.chat.completions.create(
            model="small", messages=[{"role": "user", "content": content}]
        )
    with pytest.raises(openai.BadRequestError, match="at most 1,024"):
        client.chat.completions.create(model="small", messages=CHAT, max_tokens=2000)

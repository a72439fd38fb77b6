"""`triptych chat` on a small Gemma in a GGUF file."""

import io
import json
import sys

import pytest

from tests.systems.clip.tiny_clip import saved, tiny_clip
from tests.systems.gemma.tiny_gguf import write_gguf
from triptych.cli.main import run
from triptych.loading import load
from triptych.requests import Chat, Decoding
from triptych.running import run as run_request


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "small.gguf"
    write_gguf(path)
    return f"{path}"


def chat(capsys, *words):
    code = run(["chat", *words, "--max-tokens", "6", "--precision", "float32"])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_text_is_continued_as_one_object(capsys, model):
    """The tokens are those that the request gives in Python."""
    code, out, _ = chat(
        capsys, "--model", model, "--raw", "two red", "--temperature", "0", "--json"
    )
    found = json.loads(out)
    request = Chat(
        raw="two red", model=model, decoding=Decoding(max_tokens=6, temperature=0.0),
        precision="float32",
    )  # fmt: skip
    *_, said = run_request(request)
    assert code == 0 and found["tokens"] == list(said.tokens) and len(said.tokens) == 6
    assert found["text"] == said.text == load(model).language.decode(said.tokens)
    assert found["model"] == "small.gguf" and found["reason"] == "limit"
    assert found["prompt_tokens"] == 1 + len(load(model).language.encode("two red"))


def test_a_seed_decides_what_is_drawn(capsys, model):
    words = ("red", "--model", model, "--temperature", "9", "--top-k", "0", "--top-p", "1")
    answers = [chat(capsys, *words, "--seed", seed)[1] for seed in "001"]
    assert answers[0] == answers[1] != answers[2]


def test_answers_are_shown_as_they_come(capsys, model, monkeypatch):
    shown = []
    out = io.StringIO()
    out.flush = lambda: shown.append(out.getvalue())
    monkeypatch.setattr(sys, "stdout", out)
    assert run(["chat", "--raw", "red", "--model", model, "--max-tokens", "6"]) == 0
    assert len(set(shown)) > 2 and shown == sorted(shown, key=len)
    assert all(shown[-1].startswith(text) for text in shown)


def test_a_chat_goes_on_where_its_transcript_ends(capsys, model, tmp_path):
    file = tmp_path / "chat.jsonl"
    words = ("--model", model, "--transcript", f"{file}", "--system", "Be short.", "--json")
    _, first, _ = chat(capsys, "red", *words)
    code, second, _ = chat(capsys, "blue", "left", *words)
    stored = [json.loads(line) for line in file.read_text().splitlines()]
    texts = [json.loads(line)["text"] for line in (first + second).splitlines()]
    assert code == 0 and [turn["role"] for turn in stored] == ["system", *["user", "assistant"] * 3]
    contents = [turn["content"] for turn in stored]
    assert contents == ["Be short.", "red", texts[0], "blue", texts[1], "left", texts[2]]
    # the last answer is that of the whole chat, though it was read in parts
    request = Chat(
        "left", model, "Be short.", tuple(contents[1:5]), precision="float32",
        decoding=Decoding(max_tokens=6),
    )  # fmt: skip
    *_, said = run_request(request)
    assert said.text == texts[2]
    before = file.read_bytes()
    code, _, said = chat(capsys, "x", "--model", model, "--transcript", f"{file}")
    assert code == 3 and "another --system" in said and file.read_bytes() == before


def test_lines_of_the_input_are_messages(capsys, model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("red\n\nblue\n"))
    code, out, _ = chat(capsys, "--model", model, "--json")
    assert code == 0 and len(out.splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["red"], 2, "give a model"),
        (["red", "--model", "MODEL", "--raw", "x"], 2, "goes with no message"),
        (["--model", "MODEL", "--raw", "x", "--system", "y"], 2, "no system prompt"),
        (["red", "--model", "MODEL", "--top-p", "0"], 2, "top_p must be above 0"),
        (["red", "--model", "MODEL", "--precision", "float16"], 2, "float32"),
        (["red " * 200, "--model", "MODEL"], 3, "reads at most 128"),
        (["x" * 1_000_001, "--model", "MODEL"], 3, "1,000,001 characters"),
        (["red", "--model", "MODEL", "--transcript", "a.txt"], 2, "--transcript"),
    ],
)
def test_what_cannot_be_answered_is_said(capsys, model, words, code, message):
    found, out, said = chat(capsys, *[model if word == "MODEL" else word for word in words])
    assert message in said and out == "" and found == code


def test_no_message_is_a_usage_mistake(capsys, model, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    code, _, said = chat(capsys, "--model", model)
    assert code == 2 and "no message to answer" in said


def test_a_model_of_pictures_does_not_write(capsys, tmp_path):
    folder = saved(tiny_clip(), tmp_path / "clip")
    code, _, said = chat(capsys, "red", "--model", f"{folder}")
    assert code == 3 and "does not write" in said

"""Configurations survive JSON, and refuse what they do not know."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych import config, fields
from triptych.fields import from_json, to_json
from triptych.requests import TrainCvae, Training
from triptych.systems import RECIPES


@pytest.mark.parametrize("request_", [p for n, s in RECIPES.items() for p in s.recipes[n].values()])
def test_every_preset_survives_json(request_) -> None:
    assert from_json(type(request_), to_json(request_)) == request_


@given(st.integers(1, 10**9), st.floats(0, 1), st.lists(st.integers(1, 999), max_size=5))
def test_values_survive_json(steps: int, floor: float, widths: list[int]) -> None:
    request = TrainCvae(Training(steps=steps, rate_floor=floor), widths=tuple(widths))
    assert from_json(TrainCvae, to_json(request)) == request


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"latents": 3}, "no field 'latents'. Did you mean 'latent'"),
        ({"latent": 3.5}, "latent must be int"),
        ({"latent": True}, "latent must be int"),
        ({"learned_prior": 1}, "learned_prior must be bool"),
        ({"network": "rnn"}, "one of 'mlp', 'convolutional'"),
        ({"widths": 3}, "widths must be a list"),
        ({"widths": [3, "4"]}, r"widths\[1\] must be int"),
        ({"training": {"steps": 0}}, "steps must be at least 1"),
        ({"training": {"step": 5}}, "training has no field 'step'"),
        ([], "must be an object"),
    ],
)
def test_anything_else_is_refused_by_place(data, words) -> None:
    with pytest.raises(ValueError, match=words):
        from_json(TrainCvae, data)


def test_bounds_are_themselves_allowed(tmp_path, monkeypatch) -> None:
    @dataclass(frozen=True)
    @fields.bounded
    class Bounded:
        size: int = 0
        widths: tuple[int, ...] = ()

    most = (fields.LARGEST,) * fields.LONGEST
    assert Bounded(fields.LARGEST, most).widths == most
    for wrong, words in (
        ({"size": fields.LARGEST + 1}, "at most 1,048,576"),
        ({"size": -1}, "at least 0"),
        ({"widths": (*most, 1)}, "has 4,097 values"),
        ({"widths": (1, fields.LARGEST + 1)}, "widths must be at most"),
    ):
        with pytest.raises(ValueError, match=words):
            Bounded(**wrong)
    path = tmp_path / "a.json"
    monkeypatch.setattr(config, "MAX_BYTES", 20)
    path.write_text('{"a": 1}' + " " * 12)
    assert config.read_object(path) == {"a": 1}
    path.write_text('{"a": 1}' + " " * 13)
    with pytest.raises(config.BadFile, match="has 21 bytes; a configuration has at most 20"):
        config.read_json(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1,\n "b" 2}', "is not JSON from line 2, column 6 on"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "too long a number"),
        (b'{"a": "\xff"}', "is not text in UTF-8"),
        (b"", "is not JSON from line 1"),
    ],
)
def test_what_is_not_json_is_said_in_our_words(tmp_path, content: bytes, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(config.BadFile, match=words) as raised:
        config.read_json(path)
    assert "Expecting" not in f"{raised.value}" and "codec" not in f"{raised.value}"


@dataclass(frozen=True)
class Renamed:
    steps: int
    device: str = field(default="cpu", metadata={"was": "on"})
    rate: float = field(default=0.1, metadata={"was": "speed"})


@dataclass(frozen=True)
class Outer:
    inner: Renamed = field(metadata={"was": "core"})


def test_a_renamed_field_is_read_under_its_old_name_and_written_under_its_new_one() -> None:
    expected = Renamed(3, "cuda", 0.5)
    assert from_json(Renamed, {"steps": 3, "on": "cuda", "rate": 0.5}) == expected
    assert from_json(Renamed, {"device": "cuda", "speed": 0.5, "steps": 3}) == expected
    assert from_json(Outer, {"core": {"steps": 3, "on": "cuda", "speed": 0.5}}) == Outer(expected)
    assert to_json(expected) == {"steps": 3, "device": "cuda", "rate": 0.5}


def test_an_old_name_of_a_required_field_is_enough() -> None:
    with pytest.raises(ValueError, match="lacks the field 'inner'"):
        from_json(Outer, {})


@pytest.mark.parametrize("names", [("device", "on"), ("on", "device")])
def test_a_field_under_its_old_and_its_new_name_is_refused(names) -> None:
    words = "Renamed has the field 'device' twice, also under its old name 'on'"
    with pytest.raises(ValueError, match=words):
        from_json(Renamed, {"steps": 1} | dict.fromkeys(names, "cpu"))


def test_a_wrong_value_is_reported_under_the_name_in_the_file() -> None:
    with pytest.raises(ValueError, match=r"Renamed\.on must be str, not 3"):
        from_json(Renamed, {"steps": 1, "on": 3})
    with pytest.raises(ValueError, match="no field 'On'"):
        from_json(Renamed, {"steps": 1, "On": "cpu"})

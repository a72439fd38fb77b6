"""Parts of the service alone: models in memory, the store, settings, schema."""

import threading
from pathlib import Path

import pytest
from torch import nn

from triptych.requests import TextToImage
from triptych.server import offers
from triptych.server.catalog import map_texts, offered_requests
from triptych.server.jobs.database import Database
from triptych.server.jobs.files import Files
from triptych.server.jobs.inputs import hide_paths
from triptych.server.jobs.store import Store
from triptych.server.models import Models
from triptych.server.offers import Offers
from triptych.server.schema import schema_of
from triptych.server.sentences import name_fields
from triptych.server.service import open_service
from triptych.server.settings import Places, Serve
from triptych.systems import RECIPES, SYSTEMS
from triptych.weights.describe_model import Description, describe_model
from triptych.weights.loaded import Card, Loaded

MEGABYTE = 1 << 20


def model(megabytes: int) -> Loaded:
    layer = nn.Linear(1, megabytes * MEGABYTE // 4, bias=False)
    return Loaded("x", Card("cvae", {}), None, layer)


def test_two_models_stay_and_the_one_used_longest_ago_goes() -> None:
    loads: list[str] = []

    def load(place: str, device: str, dtype: str) -> Loaded:
        loads.append(place)
        return model(1)

    models = Models(load, budget=100 * MEGABYTE)
    for place in "abacab":
        models.get(place, 0, "cpu", "auto")
    assert loads == ["a", "b", "c", "b"]  # a was used between b and c
    models.get("b", 1, "cpu", "auto")  # its files have changed
    assert loads[-1] == "b" and models.sizes() == {"b": 2 * MEGABYTE}


def test_models_stay_within_the_budget_and_the_last_always() -> None:
    models = Models(lambda place, device, dtype: model(2), budget=3 * MEGABYTE)
    models.get("a", 0, "cpu", "auto")
    models.get("b", 0, "cpu", "auto")
    assert models.sizes() == {"b": 2 * MEGABYTE}
    small = Models(lambda place, device, dtype: model(2), budget=1)
    assert small.get("a", 0, "cpu", "auto").size == 2 * MEGABYTE and len(small.sizes()) == 1


def test_who_asks_for_a_model_that_is_being_loaded_waits_for_it() -> None:
    started, go, loads = threading.Event(), threading.Event(), []

    def load(place: str, device: str, dtype: str) -> Loaded:
        loads.append(place)
        started.set()
        go.wait()
        return model(1)

    models, found = Models(load, budget=100 * MEGABYTE), []
    threads = [
        threading.Thread(target=lambda: found.append(models.get("a", 0, "cpu", "auto")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    started.wait()
    go.set()
    for thread in threads:
        thread.join()
    assert loads == ["a"] and len({id(kept.loaded) for kept in found}) == 1


def test_a_model_that_cannot_be_loaded_is_tried_again() -> None:
    outcomes = [ValueError("damaged"), model(1)]

    def load(place: str, device: str, dtype: str) -> Loaded:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    models = Models(load, budget=100 * MEGABYTE)
    with pytest.raises(ValueError, match="damaged"):
        models.get("a", 0, "cpu", "auto")
    assert models.get("a", 0, "cpu", "auto").size == MEGABYTE


def test_what_waited_for_a_connection_is_interrupted_by_a_restart(tmp_path) -> None:
    jobs = Store(Database(tmp_path / "a.sqlite"))
    attached = jobs.add_job("x", "draw", {}, attached=True)
    kept = jobs.add_job("x", "draw", {})
    assert jobs.interrupt_all() == [attached.id]
    assert [job.id for job in jobs.queue()] == [kept.id]
    jobs.end(attached.id, "done")  # ended once
    assert jobs.job(attached.id).state == "interrupted"


def test_what_ran_when_the_service_was_killed_is_interrupted_at_the_start(tmp_path) -> None:
    database = Database(Places(tmp_path).database)
    jobs = Store(database)
    running, waiting = (jobs.add_job("x", "draw", {}) for _ in range(2))
    jobs.take("draw")
    database.close()
    with open_service(Serve(home=tmp_path), with_lanes=[]) as service:
        assert service.jobs.job(running.id).state == "interrupted"
        assert [job.id for job in service.jobs.queue()] == [waiting.id]


def test_a_change_is_complete_or_not_at_all(tmp_path) -> None:
    database = Database(tmp_path / "a.sqlite")
    jobs = Store(database)
    with pytest.raises(ZeroDivisionError), database.change():
        jobs.database.connection.execute("DELETE FROM jobs")
        raise ZeroDivisionError
    jobs.add_job("x", "draw", {})
    database.close()
    assert len(Store(Database(tmp_path / "a.sqlite")).queue()) == 1


@pytest.mark.parametrize("words", ["50%", "_", "a'b", '"', "\\", "%' OR 1=1 --"])
def test_words_are_searched_as_they_are(tmp_path, words) -> None:
    files = Files(Database(tmp_path / "a.sqlite"))
    files.add_file("a.png", (1, 1), job="j", kind="made", words=f"x {words} y")
    files.add_file("b.png", (1, 1), job="j", kind="made", words="other 50 words")
    assert [file.path for file in files.results(words)] == ["a.png"]


def test_every_request_has_a_route_and_a_schema_of_its_fields() -> None:
    kinds = {kind for system in SYSTEMS.values() for kind in system.requests.values()}
    kinds |= {type(next(iter(system.recipes[name].values()))) for name, system in RECIPES.items()}
    assert kinds <= {offered.kind for offered in offered_requests().values()}
    schema = schema_of(TextToImage)
    assert schema["required"] == ["prompt"] and schema["additionalProperties"] is False
    assert schema["properties"]["image"]["names"] == "picture"
    assert schema["properties"]["model"]["names"] == "model"
    assert "names" not in schema["properties"]["sampler"]
    assert schema["properties"]["guidance"] == {
        "anyOf": [{"type": "number"}, {"type": "null"}], "default": None,
        "description": schema["properties"]["guidance"]["description"],
    }  # fmt: skip
    for offered in offered_requests().values():
        for name, field in schema_of(offered.kind)["properties"].items():
            assert "description" in field or name in ("training", "towers"), (offered.name, name)


def test_texts_are_mapped_within_nested_fields_and_lists() -> None:
    request = offered_requests()["train-clip"].presets["tiny"]
    seen = []
    map_texts(request, lambda text: seen.append((text.place, text.names.value)) or text.value)
    assert ("training.data", "data") in seen and ("towers.init", "model") in seen


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("/home/me/a.png: is damaged", "a.png: is damaged"),
        ("no file '/root/x y/z'", "no file 'x y/z'"),
        ("C:\\Users\\me\\a.png is bad", "a.png is bad"),
        ("~/models/a: bad", "a: bad"),
        ("guidance is 0 to 1, and/or 2", "guidance is 0 to 1, and/or 2"),
        ("see https://example.com/a/b", "see https://example.com/a/b"),
    ],
)
def test_paths_are_hidden(sentence, expected) -> None:
    assert hide_paths(sentence) == expected


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("give a picture with --image FILE and a mask with --mask", "give a picture with `image` "
         "and a mask with `mask`"),
        ("LoRAs are `--loras FILE:WEIGHT`, as in `--sampler euler`", "LoRAs are `loras`, as in "
         "`sampler` euler"),
        ("--clip-skip 2: leave it out", "`clip_skip` 2: leave it out"),
        ("`triptych train clip --size 64` and --models stay", "`triptych train clip --size 64` and "
         "--models stay"),
        ("a--size b ` --n", "a--size b ` `n`"),
    ],
)  # fmt: skip
def test_sentences_name_fields_and_not_options(sentence, expected) -> None:
    assert name_fields(sentence, TextToImage) == expected


def test_fields_inside_of_others_are_named_too() -> None:
    kind = offered_requests()["train-clip"].kind
    assert name_fields("a --batch-size of 4", kind) == "a `batch_size` of 4"


def test_names_of_models_are_checked_at_the_start(tmp_path) -> None:
    for folder in ("a/x", "b/x"):
        (tmp_path / folder).mkdir(parents=True)
    given = tuple(str(tmp_path / folder) for folder in ("a/x", "b/x"))
    with pytest.raises(ValueError, match="are both called 'x'"):
        Offers(Serve(models=given), Places(tmp_path)).check()
    with pytest.raises(ValueError, match="there is no model"):
        Offers(Serve(models=(str(tmp_path / "none"),)), Places(tmp_path)).check()


def test_the_files_of_a_model_are_read_again_only_when_they_change(tmp_path, monkeypatch) -> None:
    """Every request names a model, and all of them are looked at."""
    reads: list[Path] = []

    def count(path: Path) -> Description:
        reads.append(path)
        return describe_model(path)

    monkeypatch.setattr(offers, "describe_model", count)
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "config.json").write_text('{"model": "cvae", "classes": ["a"]}')
    offered = Offers(Serve(models=(str(folder),)), Places(tmp_path))
    for _ in range(3):
        assert offered.find_model("digits").about.classes == ("a",)
    assert reads == [folder]
    (folder / "config.json").write_text('{"model": "cvae", "classes": ["a", "b"]}')
    assert offered.find_model("digits").about.classes == ("a", "b")
    (folder / "words.json").write_text('{"names": ["a red cat"]}')
    assert offered.find_model("digits").about.ideas == ("a red cat",)
    assert reads == [folder] * 3


def test_folders_outside_a_data_root_are_not_offered(tmp_path) -> None:
    root = tmp_path / "root"
    (root / "inside").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    data = Offers(Serve(data_root=(str(root),)), Places(tmp_path)).data()
    assert "inside" in data and "root" in data and "link" not in data
    assert Path(data["inside"]) == root / "inside"

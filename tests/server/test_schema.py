"""Every operation of the OpenAPI document, called with drawn data: no answer is outside of it."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

from tests.server.running import run_service, with_limits
from triptych.server.jobs.carry_out import Outcome, Stop, Tools
from triptych.server.jobs.store import Job
from triptych.server.jobs.workers import Lane

load_all_checks()
LEFT_OUT = ("positive_data_acceptance", "negative_data_rejection", "unsupported_method")
"""What is refused depends on models, pictures and limits too, and OpenAI's clients send fields that
are ignored; methods: `OPTIONS` without its headers is an unknown method, as everywhere."""


def carry_out(job: Job, tools: Tools, stop: Stop) -> Outcome:
    """Fails at once: what is drawn is for other tests."""
    return Outcome("failed", error={"type": "request", "message": "not drawn"})


@pytest.fixture(scope="module")
def document(offered, tmp_path_factory):
    home = tmp_path_factory.mktemp("schema")
    limits = with_limits(waiting=100_000, waiting_per_client=100_000)
    lanes = [Lane(name, carry_out) for name in ("draw", "train", "data")]
    with run_service(home, models=offered, lanes=lanes, limits=limits) as running:
        yield running, running.http.get("/openapi.json").json()


def test_the_document_has_every_route(document) -> None:
    _, found = document
    paths = found["paths"]
    assert {"/api/text-to-image", "/v1/images/generations", "/sdapi/v1/txt2img"} <= set(paths)
    for path, methods in paths.items():
        for method, operation in methods.items():
            assert operation.get("summary") or operation.get("description"), (method, path)
            assert "default" not in operation["responses"]
            if method in ("post", "put") and not path.endswith(("again", "place", "interrupt")):
                assert "requestBody" in operation or path == "/api/session", (method, path)
    for path in ("images/generations", "images/edits", "images/variations", "chat/completions"):
        answer = paths[f"/v1/{path}"]["post"]["responses"]["200"]["content"]
        assert answer.keys() == {"application/json", "text/event-stream"}, path


def call_all(document: Any, examples: int) -> int:
    """Half of the examples fit the document, half do not; returns the number of operations."""
    running, found = document
    schema = schemathesis.openapi.from_dict(found)
    schema.config.update(base_url=running.url)
    checks = [check for check in CHECKS.get_all() if check.__name__ not in LEFT_OUT]
    count = 0
    for operation in (result.ok() for result in schema.get_all_operations()):
        if operation.path.endswith("/events"):  # which do not end
            continue
        count += 1
        chosen = settings(
            max_examples=examples // 2,
            database=None, derandomize=True, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )  # fmt: skip
        varied = operation.body or operation.query
        for mode in GenerationMode if varied else (GenerationMode.POSITIVE,):
            cases = operation.as_strategy(generation_mode=mode)

            @chosen
            @given(case=cases)
            def call(case: Any) -> None:
                case.call_and_validate(checks=checks)

            call()
    return count


def test_ten_examples_of_every_operation(document) -> None:
    assert call_all(document, 10) > 40


@pytest.mark.slow
def test_a_thousand_examples_of_every_operation(document) -> None:
    assert call_all(document, 1000) > 40

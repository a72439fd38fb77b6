"""What `/metrics` tells, read by Prometheus' own parser."""

from prometheus_client.parser import text_string_to_metric_families

from tests.server.running import Running
from tests.server.test_jobs import CAT


def read(running: Running) -> dict[str, float]:
    """Every sample by its name and labels."""
    text = running.http.get("/metrics").text
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_is_drawn_is_counted_and_timed(served: Running) -> None:
    before = read(served)
    served.made("text-to-image", **CAT)
    served.made("text-to-image", **CAT | {"prompt": "a secret"})
    after = read(served)

    def more(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert more("triptych_jobs_total text-to-image done") == 2
    assert more("triptych_steps_total") >= 2 * CAT["steps"]
    assert more("triptych_requests_total /api/text-to-image 202") == 2
    for name in ("triptych_queue_wait_seconds", "triptych_job_seconds"):
        assert more(f"{name}_count") == 2
    assert more("triptych_job_seconds_sum") > 0
    assert after["triptych_queue_depth waiting"] == 0 and after["triptych_loaded_models"] >= 1
    assert after["triptych_resident_bytes"] > 0 and after["triptych_model_load_seconds_count"] >= 1
    assert "secret" not in served.http.get("/metrics").text

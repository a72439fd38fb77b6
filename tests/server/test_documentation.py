"""The Python in docs/service.md runs as it stands there, at the address of a test's service; every
route of the page exists."""

import re
from pathlib import Path

from tests.server.running import run_service
from tests.systems.clip import tiny_clip
from tests.systems.stable_diffusion import tiny_stable_diffusion

PAGE = (Path(__file__).parents[2] / "docs" / "service.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_examples_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_stable_diffusion.saved(tmp_path / "painter")
    tiny_clip.saved(tiny_clip.tiny_clip(), tmp_path / "clip")
    models = (str(tmp_path / "painter"), str(tmp_path / "clip"))
    with run_service(tmp_path / "home", models=models) as running:
        port = running.url.rpartition(":")[2]
        names: dict[str, object] = {}
        for block in BLOCKS:
            exec(compile(block.replace("7860", port), "docs/service.md", "exec"), names)
        for job in running.http.get("/api/jobs").json():
            assert running.finish(job["id"])["state"] in ("done", "cancelled"), job


def test_every_route_of_the_page_exists(served) -> None:
    paths = served.http.get("/openapi.json").json()["paths"]
    known = {re.sub(r"\{\w+\}", "ID", path) for path in paths} | {"/api/NAME"}
    named = {
        match[0].partition("?")[0] for match in re.finditer(r"/(?:api|v1|sdapi)/[\w/-]*\w", PAGE)
    }
    assert len(named) > 20 and not {name for name in named if name not in known} - {"/sdapi/v1"}

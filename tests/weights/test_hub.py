"""The hub is asked once, what came is verified, and from then on nothing needs a network."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from triptych.weights.hub import fetch, is_hub_id, select_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = save({"w": torch.arange(300_000.0)})
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()
FILES = {
    "config.json": b'{"model_type": "clip"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"a second copy that nobody wants",
    "README.md": b"words",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs; the first answer with weights breaks off."""

    protocol_version = "HTTP/1.1"
    asked: list[str]
    broken: bool

    def _headers(self, status: int, size: int, **more: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size))
        self.send_header("X-Repo-Commit", COMMIT)
        for name, value in more.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _answer(self, body: bool) -> None:
        kept = self.headers.get("Range", "")
        self.asked.append(f"{self.command} {self.path} {kept}".strip())
        if self.path.startswith("/api/models/owner/clip"):
            listed = [{"type": "file", "path": n, "size": 1, "oid": "0"} for n in FILES]
            said = listed if "/tree/" in self.path else {
                "id": "owner/clip", "siblings": [{"rfilename": n} for n in FILES], "sha": COMMIT
            }  # fmt: skip
            data = json.dumps(said).encode()
            self._headers(200, len(data), Content_Type="application/json")
            self.wfile.write(data if body else b"")
            return
        name = self.path.rpartition("/")[2]
        if "/owner/clip/" not in self.path or name not in FILES:
            self._headers(
                404, 0, X_Error_Code="EntryNotFound" if "owner" in self.path else "RepoNotFound"
            )
            return
        data = FILES[name]
        tag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept_Ranges": "bytes"}
        start = int(kept.removeprefix("bytes=").split("-")[0]) if kept else 0
        if kept:
            tag["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._headers(206 if kept else 200, len(data) - start, **tag)
        if body and len(data) > 10_000 and type(self).broken:
            type(self).broken = False
            self.wfile.write(data[: len(data) // 3])
            self.close_connection = True
            return
        self.wfile.write(data[start:] if body else b"")

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[ThreadingHTTPServer, type[Hub]]]:
    handler = type("Fresh", (Hub,), {"asked": [], "broken": True})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server, handler
    server.shutdown()
    server.server_close()


NO_NETWORK = """
import socket
def refuse(*a, **k): raise AssertionError('the network was asked')
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


def run(code: str, home: Path, port: int, **environment: str) -> str:
    """In a process of its own, since the hub's client reads its environment when it is loaded."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"HF_HOME": str(home), "HF_ENDPOINT": f"http://127.0.0.1:{port}"} | environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


FETCH = f"""
import huggingface_hub.constants
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1 << 16  # what a broken download loses
from triptych.weights.hub import fetch
print(fetch('owner/clip', ['config.json', 'model.safetensors'], 'main',
            {{'model.safetensors': '{DIGEST}'}}))
"""


def test_a_broken_download_goes_on_and_is_never_made_again(hub, tmp_path: Path) -> None:
    server, handler = hub
    folder = Path(run(FETCH, tmp_path, server.server_port))
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    got = [line for line in handler.asked if line.startswith("GET") and "safetensors" in line]
    assert len(got) == 2
    assert 0 < int(got[1].split("bytes=")[1].rstrip("-")) <= len(WEIGHTS) // 3
    assert not any("pytorch_model" in line for line in handler.asked)
    before = len(handler.asked)
    assert Path(run(NO_NETWORK + FETCH, tmp_path, server.server_port)) == folder
    assert len(handler.asked) == before


def test_a_model_is_fetched_in_one_form(hub, tmp_path: Path) -> None:
    server, handler = hub
    code = "from triptych.weights.hub import fetch_model\nprint(fetch_model('owner/clip'))"
    folder = Path(run(code, tmp_path, server.server_port))
    there = sorted(p.name for p in folder.iterdir())
    assert there == ["config.json", "model.safetensors", "tokenizer.json"]
    assert Path(run(NO_NETWORK + code, tmp_path, server.server_port)) == folder
    assert any("/api/models/" in line for line in handler.asked)


def test_a_file_that_is_not_what_its_digest_says_is_removed(hub, tmp_path: Path) -> None:
    server, _ = hub
    wrong = "0" * 64
    code = (
        FETCH.replace(DIGEST, wrong).replace("print(", "try:\n print(")
        + """
except ValueError as error: print(error)
from huggingface_hub import try_to_load_from_cache
print(try_to_load_from_cache('owner/clip', 'model.safetensors'))
"""
    )
    said = run(code, tmp_path, server.server_port)
    assert f"its SHA-256 is not {wrong}" in said and said.endswith("None")
    folder = Path(run(FETCH, tmp_path, server.server_port))  # fetched anew, with the right digest
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("offline", [pytest.param("", marks=pytest.mark.slow), "1"])
def test_without_a_network_every_file_and_its_place_is_named(tmp_path: Path, offline) -> None:
    code = FETCH.replace("print(", "try:\n print(") + "\nexcept ValueError as error: print(error)"
    said = run(code, tmp_path, 9, HF_HUB_OFFLINE=offline)
    page = "http://127.0.0.1:9/owner/clip/resolve/main"
    assert f"{page}/config.json\n" in said and f"{page}/model.safetensors\n" in said
    assert "./clip, and give that folder as the model" in said
    assert ("HF_HUB_OFFLINE is set" if offline else "cannot be reached") in said


def test_what_is_not_there_is_said(hub, tmp_path: Path) -> None:
    server, _ = hub
    code = """
from triptych.weights.hub import fetch
for name, file in (('nobody/nothing', 'a'), ('owner/clip', 'absent.bin')):
    try: fetch(name, [file])
    except ValueError as error: print(error)
"""
    first, second = run(code, tmp_path, server.server_port).splitlines()[:2]
    assert "has no public model nobody/nothing" in first
    assert second.startswith("owner/clip has no such file")


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("openai/clip-vit-base-patch32", True),
        ("google/siglip2-so400m-patch14-384", True),
        ("timm/ViT-B-16-SigLIP", True),
        ("runs/demo", False),
        ("./openai/clip", False),
        ("../openai/clip", False),
        ("/openai/clip", False),
        ("~/clip", False),
        ("C:\\models\\clip", False),
        ("openai\\clip", False),
        ("openai/clip/model", False),
        ("openai/clip.safetensors", False),
        ("openai/ViT-B-32.pt", False),
        ("clip", False),
        ("", False),
        ("openai/", False),
        ("openai/a..b", False),
        ("https://huggingface.co/openai/clip", False),
        ("here/clip", False),  # `here` is a folder
    ],
)
def test_a_name_that_looks_like_a_path_never_goes_to_the_hub(
    name: str, hub_id: bool, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert is_hub_id(name) is hub_id


@pytest.mark.parametrize(
    ("repo", "file", "revision"),
    [
        ("clip", "a", "main"),
        ("a/b/c", "a", "main"),
        ("a/b", "../a", "main"),
        ("a/b", "/etc/passwd", "main"),
        ("a/b", "a", "../main"),
        ("a/b", "a", ""),
    ],
)
def test_names_that_lead_elsewhere_are_refused(repo: str, file: str, revision: str) -> None:
    with pytest.raises(ValueError, match="is no "):
        fetch(repo, [file], revision)


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin", "flax_model.msgpack",
          "vocab.json"], ["config.json", "vocab.json", "model.safetensors"]),
        (["config.json", "pytorch_model.bin"], ["config.json", "pytorch_model.bin"]),
        (["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"],
         ["config.json", "model.safetensors.index.json"]),
        (["open_clip_config.json", "open_clip_model.safetensors", "open_clip_pytorch_model.bin"],
         ["open_clip_config.json", "open_clip_model.safetensors"]),
        (["config.json", "open_clip_config.json", "open_clip_pytorch_model.bin",
          "pytorch_model.bin"],
         ["config.json", "open_clip_config.json", "open_clip_pytorch_model.bin"]),
        (["README.md", "model.onnx"], []),
    ],
)  # fmt: skip
def test_one_form_of_weights_is_wanted(listing, expected) -> None:
    assert select_files(listing) == expected


def test_of_a_diffusers_repository_one_form_of_the_parts_that_draw() -> None:
    listing = [
        "model_index.json", "v1-5-pruned.ckpt", "README.md", "scheduler/scheduler_config.json",
        "safety_checker/model.safetensors", "feature_extractor/preprocessor_config.json",
        "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/special_tokens_map.json",
        "unet/config.json", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/config.json", "text_encoder/model.safetensors",
        "text_encoder/flax_model.msgpack",
    ]  # fmt: skip
    assert select_files(listing) == [
        "model_index.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/config.json", "text_encoder/model.safetensors",
        "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/special_tokens_map.json",
        "scheduler/scheduler_config.json",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_whole_pipeline_in_the_cache_needs_no_network(tmp_path: Path) -> None:
    repo = tmp_path / "hub" / "models--owner--sd"
    snapshot = repo / "snapshots" / COMMIT
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    index = {"unet": ["diffusers", "U"], "tokenizer": ["t", "T"], "safety_checker": [None, None]}
    files = {
        "model_index.json": json.dumps(index).encode(),
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors.index.json": json.dumps(
            {"weight_map": {"w": "diffusion_pytorch_model-00001-of-00001.safetensors"}}
        ).encode(),
        "unet/diffusion_pytorch_model-00001-of-00001.safetensors": WEIGHTS,
        "tokenizer/tokenizer.json": b"{}",
    }
    for name, data in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(data)
    code = (
        NO_NETWORK
        + """
from triptych.weights.hub import fetch_model
try: print(fetch_model('owner/sd'))
except (ValueError, AssertionError) as error: print('asked')
"""
    )
    assert run(code, tmp_path, 9) == str(snapshot)
    for name in list(files)[2:]:
        (snapshot / name).rename(tmp_path / "aside")
        assert run(code, tmp_path, 9) == "asked", name
        (tmp_path / "aside").rename(snapshot / name)

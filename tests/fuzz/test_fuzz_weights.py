"""Mutated weights and configurations are read, or refused with a reason, in a second and 512 MB."""

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.fuzz.mutate import fuzz
from tests.systems.clip.tiny_clip import saved, tiny_clip
from tests.systems.stable_diffusion import tiny_stable_diffusion
from tests.test_bounds import HUGE, changed, nodes
from tests.weights.files.test_weight_file import sharded, state
from triptych.config import BadFile
from triptych.doctor import examine
from triptych.export import convert_checkpoint
from triptych.loading import load, read_config
from triptych.systems import summarise
from triptych.systems.stable_diffusion.adapters.lora_files import read_lora
from triptych.systems.stable_diffusion.adapters.textual_inversion import read_word
from triptych.weights.files.checkpoint_tensors import named_tensors
from triptych.weights.files.pickle_reader import read_pickle
from triptych.weights.files.weight_file import open_weights
from triptych.weights.layouts import layout

pytestmark = pytest.mark.slow

VALUES = (
    *(None, True, "", "x", "cvae", [], [[]], {}, {"a": 1}, 0, 1, -1, 3, 0.5, 1e999, float("nan")),
    *(2**20, 2**31, 2**62, 10**9, 10**30, [1] * 5000, [10**6] * 4, "a" * 5000),
)


def tell(capsys: pytest.CaptureFixture[str], what: str, counts: Any) -> None:
    with capsys.disabled():
        print(f"\n{what}: {dict(counts)}")
    assert min(counts["read"], counts["refused"]) > 0


def files(folder: Path) -> dict[str, bytes]:
    """A small file of weights in every form."""
    tensors = state() | {"deep.1.w": torch.zeros(2, 0, 3), "scalar": torch.tensor(3.0)}
    made = {name: folder / name for name in ("a.safetensors", "a.npz", "b.npz", "a.pt", "b.pt")}
    save_file(tensors, made["a.safetensors"], {"format": "pt", "lora_adapter_metadata": "{}"})
    np.savez(made["a.npz"], a=np.arange(6.0).reshape(2, 3), b=np.ones(3, np.int8))
    np.savez_compressed(made["b.npz"], a=np.arange(6.0).reshape(2, 3), b=np.ones(3, np.int8))
    root = {"state_dict": tensors, "epoch": 3, "args": {"lr": 0.1}}
    torch.save(root, made["a.pt"])
    torch.save(root, made["b.pt"], _use_new_zipfile_serialization=False)
    return {name: path.read_bytes() for name, path in made.items()}


@pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "b.npz", "a.pt", "b.pt"])
def test_files_of_weights(tmp_path: Path, capsys, name: str) -> None:
    path = tmp_path / "mutated"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        list(examine(path))
        for reader in (lambda: read_lora(path, []), lambda: read_word(path, (8,))):
            with pytest.raises(ValueError):
                reader()
        file = open_weights(path)
        whole = file.read()
        assert file.header.shapes == {name: tuple(x.shape) for name, x in whole.items()}
        assert sum(tensor.clone().nbytes for tensor in whole.values()) < 1 << 24
        file.read(torch.bfloat16)

    tell(capsys, name, fuzz([files(tmp_path)[name]], read, BadFile))


def test_headers_of_safetensors(tmp_path: Path, capsys) -> None:
    """The JSON alone, whose length then fits."""
    path = tmp_path / "mutated"
    whole = files(tmp_path)["a.safetensors"]
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])

    def read(data: bytes) -> None:
        text = mutated_json(header, data)
        path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
        list(examine(path))
        file = open_weights(path)
        file.read()
        file.read(torch.bfloat16)

    tell(capsys, "headers of safetensors", fuzz([whole[8 : 8 + length]], read, BadFile))


def test_an_index_of_shards(tmp_path: Path, capsys) -> None:
    index = sharded(tmp_path)
    sample = index.read_bytes()

    def read(data: bytes) -> None:
        index.write_bytes(mutated_json(json.loads(sample), data))
        list(examine(index))
        open_weights(index).read()

    tell(capsys, "an index of shards", fuzz([sample], read, BadFile))


def test_pickles(tmp_path: Path, capsys) -> None:
    """Those inside of files of torch, and of others, of every protocol."""
    import pickle
    import zipfile

    samples = []
    torch.save({"state_dict": state(), "step": 3}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        samples.append(next(archive.read(n) for n in archive.namelist() if n.endswith("data.pkl")))
    values = {"a": [1, 2.5, (None, True)], "b": "x" * 300, "c": {"d": "text", 4: 10**30}}
    samples += [pickle.dumps(values, protocol) for protocol in range(5)]

    def read(data: bytes) -> None:
        found = read_pickle(io.BytesIO(data))
        named_tensors({"state_dict": found, "x": found})

    def read_or_none(data: bytes) -> None:
        try:
            read(data)
        except ValueError as error:
            if "holds no tensors" not in f"{error}":
                raise

    tell(capsys, "pickles", fuzz(samples, read_or_none, ValueError))


def mutated_json(original: Any, data: bytes) -> bytes:
    """The mutated text where it still is JSON, else other values in the original, drawn by it."""
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        draws = random.Random(data)
        if draws.random() < 0.1:
            return data
        for _ in range(draws.randint(1, 3)):
            paths = [path for path, _ in nodes(original)]
            if not paths:
                break
            path = draws.choice(paths)
            original = changed(original, path, draws.choice(VALUES))
        return json.dumps(original).encode()
    return data


@pytest.mark.parametrize("name", HUGE)
def test_configurations(tmp_path: Path, capsys, name: str) -> None:
    """Of run folders, transformers, open_clip and diffusers."""
    file, stored = HUGE[name]
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")

    def read(data: bytes) -> None:
        (tmp_path / file).write_bytes(mutated_json(stored, data))
        kind = len(data) % 3  # one of them, since each builds the model
        if kind == 0:
            list(examine(tmp_path))
        elif kind == 1:
            with pytest.raises(ValueError):  # the weights are of no model
                load(str(tmp_path))
        else:
            read_config(layout(tmp_path))

    tell(capsys, f"configurations, {name}", fuzz([json.dumps(stored).encode()], read, BadFile))


def whole_models() -> dict[str, tuple[Callable[[Path], object], list[str]]]:
    """Folders that load, and the files of settings in them."""

    def stable(folder: Path) -> None:
        run = tiny_stable_diffusion.saved(folder / "run")
        convert_checkpoint(str(run), folder / "model", "diffusers")

    def towers(to: str) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            run = saved(tiny_clip(), folder / "run")
            convert_checkpoint(str(run), folder / "model", to)

        return write

    parts = [f"{part}/config.json" for part in ("unet", "vae", "text_encoder")]
    return {
        "run": (lambda folder: saved(tiny_clip(), folder / "model"), ["config.json"]),
        "transformers": (towers("transformers"), [
            "config.json", "preprocessor_config.json", "tokenizer_config.json",
        ]),
        "open_clip": (towers("open_clip"), ["open_clip_config.json", "tokenizer_config.json"]),
        "diffusers": (stable, [
            "model_index.json", "scheduler/scheduler_config.json", *parts,
            "tokenizer/tokenizer_config.json",
        ]),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["run", "transformers", "open_clip", "diffusers"])
def test_folders_that_load(tmp_path: Path, capsys, name: str) -> None:
    """One file of settings mutated, beside weights that are right."""
    write, settings = whole_models()[name]
    write(tmp_path)
    folder = tmp_path / "model"
    contents = {file: (folder / file).read_bytes() for file in settings if (folder / file).exists()}
    assert len(contents) == len(settings)
    shutil.rmtree(tmp_path / "run", ignore_errors=True)

    def read(data: bytes) -> None:
        file = next((name for name in settings if contents[name][:40] == data[:40]), None)
        file = file or random.Random(data).choice(settings)
        (folder / file).write_bytes(mutated_json(json.loads(contents[file]), data))
        try:
            if len(data) % 2:
                list(examine(folder))
                summarise(layout(folder))
            else:
                load(str(folder))
        finally:
            (folder / file).write_bytes(contents[file])

    tell(capsys, f"folders that load, {name}", fuzz(list(contents.values()), read, ValueError))

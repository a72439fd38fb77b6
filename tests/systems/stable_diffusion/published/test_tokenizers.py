"""A single file's vocabulary is found beside it or among what was downloaded, and never fetched;
padding is what each publisher meant.
"""

import gzip
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from triptych.systems.clip.model import TextConfig, TextEncoderConfig
from triptych.systems.stable_diffusion.model import CLIP_L
from triptych.systems.stable_diffusion.published.text_encoder import OPENCLIP_BIGG
from triptych.systems.stable_diffusion.published.tokenizers import (
    file_tokenizers,
    folder_tokenizers,
)
from triptych.text.tokenizer import clip_tokenizer, train_tokenizer

END = "<|endoftext|>"
TEXTS = ["a photo of a fox!", "!! wow", "", f"written {END} out", "very " * 90]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("a local path asked the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """CLIP's own vocabulary in every form."""
    data = os.environ.get("TRIPTYCH_DATA", "")
    if not data:
        pytest.skip("TRIPTYCH_DATA is not set: real data is not at hand")
    source, folder = Path(data) / "tokenizers" / "clip", tmp_path_factory.mktemp("clip")
    stored = json.loads(gzip.decompress((source / "hf_tokenizer.json.gz").read_bytes()))
    (folder / "tokenizer.json").write_text(json.dumps(stored))
    (folder / "vocab.json").write_text(json.dumps(stored["model"]["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in stored["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    name = "bpe_simple_vocab_16e6.txt.gz"
    shutil.copy(source / name, folder / name)
    (folder / name).chmod(0o644)
    return folder


def beside(published, folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(published / name, folder / name)
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    "names",
    [("tokenizer.json",), ("vocab.json", "merges.txt"), ("bpe_simple_vocab_16e6.txt.gz",)],
)
def test_beside_the_file(names, published, tmp_path):
    file = beside(published, tmp_path / "models", *names)
    first, second = file_tokenizers(file, (CLIP_L, OPENCLIP_BIGG), (49407, 0))
    assert (first.config.pad, second.config.pad) == (49407, 0)
    assert not second.config.written_pad and second.config.length == 77
    tokens = second.encode(["fox!"]).tokens
    assert tokens[0, :4].tolist() == [49406, 3240, 256, 49407] and not tokens[0, 4:].any()


def test_among_what_was_downloaded(published, tmp_path):
    file = tmp_path / "models" / "model.safetensors"
    file.parent.mkdir()
    with pytest.raises(ValueError, match=r"put the tokenizer\.json of openai/clip-vit-l"):
        file_tokenizers(file, (CLIP_L,), (49407,))
    repo = tmp_path / "cache" / "models--openai--clip-vit-base-patch32"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    beside(published, repo / "snapshots" / ("0" * 40), "tokenizer.json")
    (tokenizer,) = file_tokenizers(file, (CLIP_L,), (49407,))
    assert tokenizer.vocabulary == 49408
    shutil.rmtree(repo)
    stranger = train_tokenizer(["a b c"], 520, 77)
    stranger.save(file.parent)
    words = r"tokenizer\.json: the pad token 49407 is not in the vocabulary"
    with pytest.raises(ValueError, match=words):
        file_tokenizers(file, (CLIP_L,), (49407,))
    (file.parent / "tokenizer.json").unlink()
    beside(published, file.parent, "vocab.json")  # half of a vocabulary is none
    with pytest.raises(ValueError, match="has no vocabulary"):
        file_tokenizers(file, (CLIP_L,), (49407,))


def special(pad):
    return {"bos_token": "<|startoftext|>", "eos_token": END, "unk_token": END, "pad_token": pad}


FOLDERS = {  # tokenizer_config.json, special_tokens_map.json, what pads, and is read where written
    "1.x": (special(END), special(END), 49407, False),
    "2.x": (special(END), special("!"), 0, True),
    "XL, second": (special("!"), special("!"), 0, True),
    "without a map": (special("!"), None, 0, True),
    "newer": (
        special("!") | {"added_tokens_decoder": {"0": {
            "content": "!", "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False, "special": True,
        }}},
        special(END), 0, True,
    ),
}  # fmt: skip


BY_DAY = [(form, place % 2) for place, form in enumerate(FOLDERS)]


@pytest.mark.parametrize(
    ("form", "whole"),
    [*BY_DAY, *(pytest.param(form, 1 - whole, marks=pytest.mark.slow) for form, whole in BY_DAY)],
)
def test_folders_pad_as_transformers_reads_them(form, whole, published, tmp_path):
    names = ("tokenizer.json",) if whole else ()
    stored, mapped, pad, written = FOLDERS[form]
    folder = beside(published, tmp_path / "tokenizer", "vocab.json", "merges.txt", *names).parent
    more = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(stored | more))
    if mapped is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps(mapped))
    theirs = CLIPTokenizer.from_pretrained(folder)
    ids = theirs(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    (ours,) = folder_tokenizers(tmp_path, {"tokenizer": CLIP_L})
    assert (ours.config.pad, ours.config.written_pad) == (pad, written) == (
        theirs.pad_token_id, written,
    )  # fmt: skip
    assert torch.equal(ours.encode(TEXTS).tokens, ids["input_ids"])


def test_pairs_are_a_whole_vocabulary(published, tmp_path):
    """What is written as vocab.json and merges.txt is what was read."""
    tokenizer = clip_tokenizer(published / "tokenizer.json")
    vocabulary, merges = tokenizer.pairs()
    assert vocabulary == json.loads((published / "vocab.json").read_text())
    lines = (published / "merges.txt").read_text().split("\n")
    assert merges == lines[1:-1]


def test_missing_folders_are_named(tmp_path):
    tower = TextEncoderConfig(TextConfig())
    with pytest.raises(ValueError, match="its folder tokenizer_2 is missing"):
        folder_tokenizers(tmp_path, {"tokenizer_2": tower})

"""Detect what a file is by its content, never by its name."""

from pathlib import Path
from typing import Literal

from triptych.weights.files.gguf import MAGIC
from triptych.weights.files.npz import is_npz
from triptych.weights.files.shards import read_index
from triptych.weights.files.torch_archive import LEGACY_MARK, is_script
from triptych.weights.files.zip_archive import Zip, open_zip

Kind = Literal["safetensors", "shards", "torch", "torchscript", "torch-legacy", "npz", "gguf"]

KIND_NAMES: dict[Kind, str] = {
    "safetensors": "safetensors",
    "shards": "an index of shards",
    "torch": "a torch.save archive",
    "torchscript": "a TorchScript archive",
    "torch-legacy": "a file of torch.save before torch 1.6",
    "npz": "a NumPy archive",
    "gguf": "a GGUF file",
}

COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"7z\xbc\xaf": ("7-zip", "7z x"),
    b"Rar!": ("rar", "unrar x"),
}

NOT_WEIGHTS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file (Keras). Get the checkpoint as safetensors",
    b"\x89PNG": "a picture, not weights",
    b"\xff\xd8\xff": "a picture, not weights",
    b"%PDF": "a PDF, not weights",
    b"\x93NUMPY": "a single NumPy array. Weights come as an .npz of named arrays",
}


def detect_kind(path: Path) -> tuple[Kind, Zip | None]:
    """The kind of a file of weights, and the archive where it is one.

    Raises:
        ValueError: it is no file of weights, what it is instead, and what to do. The text does not
            name the file.
    """
    if path.is_dir():
        raise ValueError("is a folder, not a file of weights: give the file inside it")
    if not path.is_file():
        raise ValueError("is no file that can be read")
    with path.open("rb") as file:
        head = file.read(1024)
    if not head:
        raise ValueError("is empty: the download broke off. Fetch it again")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        archive = open_zip(path)
        if is_npz(archive):
            return "npz", archive
        return "torchscript" if is_script(archive) else "torch", archive
    if head.startswith(b"\x80") and LEGACY_MARK in head[:32]:
        return "torch-legacy", None
    if head.startswith(MAGIC):
        return "gguf", None
    if head[8:].lstrip().startswith(b"{") and not _is_text(head):
        return "safetensors", None
    if head.lstrip().startswith((b"{", b"[")):
        _require_index(path)
        return "shards", None
    raise ValueError(_describe(head, path.stat().st_size))


def _require_index(path: Path) -> None:
    content = read_index(path)
    if isinstance(content.get("weight_map"), dict):
        return
    for word in ("error", "message", "detail", "errors"):
        if word in content:
            raise ValueError(
                f"is an error answer of a server ({str(content[word])[:200]!r}), not weights: the "
                "download needs a login, a licence accepted, or another address"
            )
    raise ValueError("is a JSON file, not weights: give the file that holds the tensors")


def _is_text(head: bytes) -> bool:
    """Whether it begins with eight printable bytes: safetensors has a length there, and as one
    they exceed any header.
    """
    return all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head[:8])


def _describe(head: bytes, size: int) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"version https://git-lfs"):
        sizes = [line.split()[-1] for line in head.splitlines() if line.startswith(b"size ")]
        real = f" of {int(sizes[0]):,} bytes" if sizes and sizes[0].isdigit() else ""
        return (
            f"is a git-lfs pointer to a file{real}, not the weights. Run `git lfs pull` in its "
            "folder"
        )
    if text.startswith((b"<!doctype", b"<html", b"<head")):
        return "is a web page, not weights: the download needs a login or another address"
    if text.startswith(b"<?xml"):
        return "is an XML answer of a server, not weights: the download needs another address"
    for magic, (name, command) in COMPRESSED.items():
        if head.startswith(magic):
            return f"is packed with {name}. Unpack it first: `{command} FILE`"
    if head[257:262] == b"ustar":
        return "is a tar archive. Unpack it first: `tar xf FILE`"
    for magic, what in NOT_WEIGHTS.items():
        if head.startswith(magic):
            return f"is {what}"
    if head.startswith(b"\x80") and head[1:2] in b"\x02\x03\x04\x05":
        return (
            "is a bare pickle, and reading it would execute code: never done here. Where it came "
            "from, save the weights as safetensors"
        )
    if not head.strip(b"\0"):
        return "begins with zeros only: the download broke off. Fetch it again"
    if size < 10:
        return f"has only {size} bytes. The download broke off; fetch it again"
    if _is_text(head):
        words = (
            f" that says {head.decode('utf-8', 'replace').strip()[:100]!r}" if size < 300 else ""
        )
        return f"is a text{words}, not weights"
    return (
        "does not begin like a safetensors file, a torch archive, an .npz or a GGUF: those are the "
        "forms that are read"
    )

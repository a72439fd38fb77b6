"""Download once, verify what is known, and work offline from then on.

The cache is the hub's own (`HF_HOME`, `HF_HUB_CACHE`), so what other programs have fetched is not
fetched again, and `HF_HUB_OFFLINE` is respected. What is in the cache is used without asking the
network.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from triptych.config import read_json
from triptych.weights.files.shards import shards
from triptych.weights.layouts import OPEN_CLIP, PREPROCESSORS, TOKENIZERS, TRANSFORMERS
from triptych.weights.variants import named

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
FOLDERS = {"runs", "models", "checkpoints", "weights", "data", "pictures", "out", "output", "tmp"}
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".json", ".th", ".onnx")
PARTS = (
    *("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    *("scheduler", "low_res_scheduler"),
)
"""Of a folder of diffusers: not its safety checker, nor what prepares pictures for it."""
CONFIGURATIONS = ("config.json", "scheduler_config.json")
NO_FILES: Mapping[str, str] = {}


def is_hub_id(name: str) -> bool:
    """Whether a name is OWNER/NAME on the hub, and nothing that could be meant as a local path.

    A name whose first part is a folder here, or a word such as `runs`, is a path.
    """
    if not HUB_ID.fullmatch(name) or ".." in name or "--" in name:
        return False
    owner = name.split("/")[0]
    local = Path(name).exists() or Path(owner).exists() or owner.lower() in FOLDERS
    return not local and not name.endswith((*SUFFIXES, ".git"))


def fetch(
    repo: str,
    files: Sequence[str],
    revision: str = "main",
    sha256: Mapping[str, str] = NO_FILES,
) -> Path:
    """The folder with these files of a repository, downloaded where they are not in the cache.

    Broken downloads go on where they stopped. Files with a known digest are verified.

    Args:
        repo: OWNER/NAME.
        files: Names in the repository.
        revision: A branch, a tag, or a commit.
        sha256: Digests by file, for those that are known.

    Raises:
        ValueError: a file can be neither found nor downloaded, with where to get it and where to
            put it; or a file is not what its digest says, and has been removed.
    """
    _require_hub(repo, files, revision)
    found = {file: _cached(repo, file, revision) for file in files}
    missing = [file for file, path in found.items() if path is None]
    if missing:
        _require_answer(repo, missing, revision)
        found |= {file: _download(repo, file, revision, missing) for file in missing}
    folders = set()
    for file, path in found.items():
        if path is None:
            raise ValueError(f"{repo} has no {file}")
        if file in sha256:
            _verify(repo, file, path, sha256[file], fresh=file in missing)
        folders.add(path.parents[len(PurePosixPath(file).parts) - 1])
    if len(folders) > 1:  # the branch has moved between two downloads
        commit = max(folders, key=lambda folder: folder.stat().st_mtime).name
        if commit == revision:
            raise ValueError(f"the cache of {repo} is of two revisions: remove {folders.pop()}")
        return fetch(repo, files, commit, sha256)
    return folders.pop()


def cached(repo: str, file: str, revision: str = "main") -> Path | None:
    """A file of a repository that was downloaded before; the network is not asked."""
    return _cached(repo, file, revision)


def fetch_model(repo: str, revision: str = "main", sha256: Mapping[str, str] = NO_FILES) -> Path:
    """The folder of a model whose files are not known beforehand: one form of its weights, its
    configuration, tokenizer and preprocessor.

    Raises:
        ValueError: as `fetch`; or the repository holds no weights of a known layout.
    """
    _require_hub(repo, ("config.json",), revision)
    if local := _whole_snapshot(repo, revision):
        return local
    import huggingface_hub

    huggingface_hub.utils.logging.set_verbosity_error()  # what went wrong is said once, by us
    try:
        listing = huggingface_hub.HfApi().list_repo_files(repo, revision=revision)
    except Exception as error:  # of the network's many
        raise ValueError(_explained(repo, (), revision, error)) from error
    files = wanted(listing)
    if not files:
        raise ValueError(
            f"{repo} on the hub holds no weights of a known layout (Transformers, open_clip or "
            "diffusers). Download its file of weights and give that"
        )
    folder = fetch(repo, files, revision, sha256)
    shards = [
        name for file in files if file.endswith(".index.json") for name in _shards(folder, file)
    ]
    return fetch(repo, [*files, *shards], revision, sha256) if shards else folder


def wanted(listing: Sequence[str]) -> list[str]:
    """Of a repository's files, those that a model needs: one form of weights, never all of them."""
    there = set(listing)
    if "model_index.json" in there:
        return _diffusers(there)
    open_clip = "open_clip_config.json" in there
    forms = (*OPEN_CLIP[:4], *TRANSFORMERS) if open_clip else TRANSFORMERS
    if "config.json" in there and "model.safetensors" in there:
        forms = TRANSFORMERS  # without pickles
    weights = next((name for name in forms if name in there), None)
    if weights is None or not there & {"config.json", "open_clip_config.json"}:
        return []
    beside = ("config.json", "open_clip_config.json", *PREPROCESSORS, *TOKENIZERS)
    return [*(name for name in beside if name in there), weights]


def _diffusers(there: set[str]) -> list[str]:
    """The parts of a folder of diffusers that draw pictures, each in its plain form, or in the
    first of its variants.
    """
    files = ["model_index.json"]
    for part in PARTS:
        inside = {name.removeprefix(f"{part}/") for name in there if name.startswith(f"{part}/")}
        weights = list(named(inside).values())[:1]
        beside = [name for name in (*CONFIGURATIONS, *TOKENIZERS) if name in inside]
        files += [f"{part}/{name}" for name in (*beside, *weights)]
    return files


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shards(folder: Path, index: str) -> list[str]:
    try:
        return [
            str(PurePosixPath(index).with_name(name)) for name in sorted(shards(folder / index))
        ]
    except ValueError as error:
        raise ValueError(f"{folder / index} {error}") from error


def _whole_snapshot(repo: str, revision: str) -> Path | None:
    """A cached model with nothing missing."""
    for config in ("model_index.json", "config.json", "open_clip_config.json"):
        path = _cached(repo, config, revision)
        if path is None:
            continue
        listing = [p.relative_to(path.parent).as_posix() for p in path.parent.rglob("*")]
        files = wanted(listing)
        indexes = [file for file in files if file.endswith(".index.json")]
        shards = [name for index in indexes for name in _shards(path.parent, index)]
        whole = path.name != "model_index.json" or _has_parts(path, files)
        if files and whole and set(shards) <= set(listing):
            return path.parent
    return None


def _has_parts(index: Path, files: Sequence[str]) -> bool:
    """Whether every part that a folder of diffusers names is there, networks with weights."""
    notes = read_json(index)
    for part, kind in notes.items() if isinstance(notes, dict) else ():
        if part not in PARTS or not isinstance(kind, list) or None in kind:
            continue
        own = [PurePosixPath(file).name for file in files if file.startswith(f"{part}/")]
        if not own or (part in PARTS[:4] and not named(own)):
            return False
    return True


def _require_hub(repo: str, files: Sequence[str], revision: str) -> None:
    if not HUB_ID.fullmatch(repo) or ".." in repo:
        raise ValueError(f"{repo!r} is no name on the hub: those are OWNER/NAME")
    if not re.fullmatch(r"[A-Za-z0-9][\w./-]*", revision) or ".." in revision:
        raise ValueError(f"{revision!r} is no revision: give a branch, a tag, or a commit")
    for file in files:
        if not file or file.startswith("/") or ".." in PurePosixPath(file).parts or "\\" in file:
            raise ValueError(f"{file!r} is no file of a repository")
    if not files:
        raise ValueError(f"nothing to fetch from {repo}: name its files")


def _cached(repo: str, file: str, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file, revision=revision)
    return Path(found) if isinstance(found, str) and Path(found).is_file() else None


def _require_answer(repo: str, missing: Sequence[str], revision: str) -> None:
    """Ask once, since a download itself asks for half a minute before it gives up."""
    import huggingface_hub

    try:
        url = huggingface_hub.hf_hub_url(repo, missing[0], revision=revision)
        huggingface_hub.get_hf_file_metadata(url)
    except Exception as error:  # of the network's many
        raise ValueError(_explained(repo, missing, revision, error)) from error


def _download(repo: str, file: str, revision: str, missing: Sequence[str]) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))
    except Exception as error:  # of the network's many
        raise ValueError(_explained(repo, missing, revision, error)) from error


def _verify(repo: str, file: str, path: Path, digest: str, fresh: bool) -> None:
    blob = path.resolve()
    if not fresh and blob.name == digest:  # the cache names large files so; verified when it came
        return
    if digest_of(blob) == digest:
        return
    path.unlink()
    blob.unlink(missing_ok=True)
    raise ValueError(
        f"{file} of {repo} is not what it should be: its SHA-256 is not {digest}. The file has "
        "been removed; run the command again to fetch it anew"
    )


def _explained(repo: str, files: Sequence[str], revision: str, error: Any) -> str:
    """Which files to get from where and where to put them, when we cannot."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} wants its licence accepted: do so on {page}, then run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{constants.ENDPOINT} has no public model {repo}, and there is no such path here"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}: see {page}/commits"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{repo} has no such file at {revision!r}: {error}. See {page}/tree/{revision}"
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    if "space" in str(error).lower():
        why = str(error)
    folder = repo.split("/")[1]
    wanted_files = "\n".join(f"  {page}/resolve/{revision}/{file}" for file in files)
    if not files:
        wanted_files = f"  {page}/tree/{revision} (configuration, tokenizer, weights)"
    return (
        f"{repo} is not on this computer and {why}. Where there is a network, download\n"
        f"{wanted_files}\ninto one folder, such as ./{folder}, and give that folder as the model"
    )

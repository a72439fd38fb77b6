"""Download from the Hugging Face hub once, verify known digests, and work offline from then on.

The cache is the hub's own (`HF_HOME`, `HF_HUB_CACHE`), which other programs share, and
`HF_HUB_OFFLINE` is respected. Files in the cache are used without asking the network. Downloads are
`huggingface_hub.snapshot_download`; this module adds what it lacks: use a complete snapshot
without a request, notice files that do not exist, verify published digests, and say in one message
which files to fetch and where to put them.
"""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from triptych.config import errors_about, read_json
from triptych.weights.digests import file_digest
from triptych.weights.files.shards import shards
from triptych.weights.layouts import OPEN_CLIP, PREPROCESSORS, TOKENIZERS, TRANSFORMERS
from triptych.weights.open_clip_names import repository
from triptych.weights.short_names import SHORT_NAMES
from triptych.weights.variants import group_by_variant

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
FOLDERS = {"runs", "models", "checkpoints", "weights", "data", "pictures", "out", "output", "tmp"}
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz", ".json", ".th", ".onnx")
PARTS = (
    *("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    *("scheduler", "low_res_scheduler"),
)
"""Of a diffusers folder: without the safety checker and what prepares pictures for it."""
CONFIGURATIONS = ("config.json", "scheduler_config.json")
NO_FILES: Mapping[str, str] = {}


def is_hub_id(name: str) -> bool:
    """Whether a name is OWNER/NAME on the hub, and cannot be meant as a local path.

    A name whose first part is a folder here, or a word such as `runs`, is a path.
    """
    if not HUB_ID.fullmatch(name) or ".." in name or "--" in name:
        return False
    owner = name.split("/")[0]
    local = os.path.exists(name) or os.path.exists(owner) or owner.lower() in FOLDERS
    return not local and not name.endswith((*SUFFIXES, ".git"))


def fetch(
    repo: str,
    files: Sequence[str],
    revision: str = "main",
    sha256: Mapping[str, str] = NO_FILES,
) -> Path:
    """The folder with these files of a repository, downloaded if one is not in the cache.

    Interrupted downloads are resumed. Files with a known digest are verified.

    Args:
        repo: OWNER/NAME.
        files: Names in the repository.
        revision: A branch, a tag, or a commit.
        sha256: Digests by file, for those that are known.

    Raises:
        ValueError: a file is neither in the cache nor can it be downloaded, with where to get it
            and where to put it; or a file does not have its digest, and has been removed.
    """
    _require_hub(repo, files, revision)
    missing = [file for file in files if find_cached(repo, file, revision) is None]
    if missing:
        _require_files(repo, files, _list_files(repo, revision, missing), revision)
        _download(repo, files, revision, missing)
    path = find_cached(repo, files[0], revision)
    if path is None:
        raise ValueError(f"the cache of {repo} lost {files[0]} while it was used: try again")
    folder = path.parents[len(PurePosixPath(files[0]).parts) - 1]
    for file in sha256.keys() & set(files):
        _verify(repo, file, folder / file, sha256[file], fresh=bool(missing))
    return folder


def find_cached(repo: str, file: str, revision: str = "main") -> Path | None:
    """A file of a repository that was downloaded before, without a request to the network."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, file, revision=revision)
    return Path(path) if isinstance(path, str) and Path(path).is_file() else None


def cached_repositories() -> dict[str, int]:
    """The repositories in the hub's cache, whichever program downloaded them, and their bytes."""
    from huggingface_hub import constants

    found = {}
    for folder in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        # links to files that several snapshots share
        files = {file.resolve() for file in (folder / "snapshots").rglob("*") if file.is_file()}
        if files:
            repo = folder.name.removeprefix("models--").replace("--", "/", 1)
            found[repo] = sum(file.stat().st_size for file in files)
    return found


def fetch_model(repo: str) -> Path:
    """The folder of a model whose files are not known beforehand: one form of its weights, its
    configuration, tokenizer and preprocessor.

    Raises:
        ValueError: as `fetch`; or the repository has no weights in a known layout.
    """
    _require_hub(repo, ("config.json",), "main")
    if local := _cached_model(repo):
        return local
    files = select_files(_list_files(repo, "main"))
    if not files:
        raise ValueError(
            f"{repo} on the hub holds no weights of a known layout (Transformers, open_clip or "
            "diffusers). Download its file of weights and give that"
        )
    folder = fetch(repo, files)
    shards = _shards(folder, files)
    return fetch(repo, [*files, *shards]) if shards else folder


def find_repository(name: str) -> str:
    """The repository on the hub that a name stands for: a short name, MODEL/TAG of open_clip, or
    OWNER/NAME; empty for a path and for any other name.

    Raises:
        ValueError: open_clip knows the model, but not the tag.
    """
    if os.path.exists(name):
        return ""
    if name in SHORT_NAMES:
        return SHORT_NAMES[name].repo
    return repository(name) or (name if is_hub_id(name) else "")


def fetch_published(name: str, repo: str) -> Path:
    """The folder of a model, downloaded if it is not on this computer yet.

    `repo` is what `find_repository` returns for the name.

    Raises:
        ValueError: it cannot be downloaded: says what `name` stands for, and how to get it.
    """
    try:
        return fetch_model(repo)
    except ValueError as error:
        if name == repo:
            raise
        raise ValueError(f"{name} is {repo} on the hub. {error}") from error


def select_files(listing: Sequence[str]) -> list[str]:
    """Of a repository's files, those that a model needs, with one form of its weights."""
    there = set(listing)
    if "model_index.json" in there:
        return _diffusers(there)
    open_clip = "open_clip_config.json" in there
    forms = (*OPEN_CLIP[:4], *TRANSFORMERS) if open_clip else TRANSFORMERS
    if "config.json" in there and "model.safetensors" in there:
        forms = TRANSFORMERS  # without pickles
    weights = next((name for name in forms if name in there), None)
    if "config.json" in there and weights is None:  # one network of diffusers
        weights = next(iter(group_by_variant(there).values()), None)
    if weights is None or not there & {"config.json", "open_clip_config.json"}:
        return []
    beside = ("config.json", "open_clip_config.json", *PREPROCESSORS, *TOKENIZERS)
    return [*(name for name in beside if name in there), weights]


def _diffusers(there: set[str]) -> list[str]:
    """The parts of a diffusers folder that generate pictures, each in its plain variant, or in the
    first that there is.
    """
    files = ["model_index.json"]
    for part in PARTS:
        inside = {name.removeprefix(f"{part}/") for name in there if name.startswith(f"{part}/")}
        weights = list(group_by_variant(inside).values())[:1]
        beside = [name for name in (*CONFIGURATIONS, *TOKENIZERS) if name in inside]
        files += [f"{part}/{name}" for name in (*beside, *weights)]
    return files


def _shards(folder: Path, files: Sequence[str]) -> list[str]:
    """The files that the indexes of shards among `files` name, as names in the repository."""
    names = []
    for index in (file for file in files if file.endswith(".index.json")):
        with errors_about(folder / index):
            names += [
                f"{PurePosixPath(index).with_name(n)}" for n in sorted(shards(folder / index))
            ]
    return names


def _cached_model(repo: str) -> Path | None:
    """The folder of a model in the cache from which nothing is missing."""
    for config in ("model_index.json", "config.json", "open_clip_config.json"):
        path = find_cached(repo, config)
        if path is None:
            continue
        listing = [p.relative_to(path.parent).as_posix() for p in path.parent.rglob("*")]
        files = select_files(listing)
        complete = path.name != "model_index.json" or _has_parts(path, files)
        if files and complete and set(_shards(path.parent, files)) <= set(listing):
            return path.parent
    return None


def _has_parts(index: Path, files: Sequence[str]) -> bool:
    """Whether every part that `model_index.json` names is there, networks with weights."""
    content = read_json(index)
    for part, kind in content.items() if isinstance(content, dict) else ():
        if part not in PARTS or not isinstance(kind, list) or None in kind:
            continue
        own = [PurePosixPath(file).name for file in files if file.startswith(f"{part}/")]
        if not own or (part in PARTS[:4] and not group_by_variant(own)):
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


def _list_files(repo: str, revision: str, missing: Sequence[str] = ()) -> list[str]:
    """The names of all files of a repository; `missing` are those that an error should list.

    Asked for before every download, since `snapshot_download` ignores files that do not exist, and
    returns an incomplete snapshot where the network is down.
    """
    import huggingface_hub

    huggingface_hub.utils.logging.set_verbosity_error()  # errors are reported once, by us
    try:
        return huggingface_hub.HfApi().list_repo_files(repo, revision=revision)
    except Exception as error:  # one of the many of the network
        raise ValueError(_explain(repo, missing, revision, error)) from error


def _require_files(repo: str, files: Sequence[str], listing: Sequence[str], revision: str) -> None:
    from huggingface_hub import constants

    if absent := [file for file in files if file not in listing]:
        raise ValueError(
            f"{repo} has no such file at {revision!r}: {', '.join(absent)}. See "
            f"{constants.ENDPOINT}/{repo}/tree/{revision}"
        )


def _download(repo: str, files: Sequence[str], revision: str, missing: Sequence[str]) -> None:
    """All the files at one commit of the revision."""
    import huggingface_hub

    patterns = [glob.escape(file) for file in files]
    try:
        huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns)
    except Exception as error:  # one of the many of the network and the disk
        raise ValueError(_explain(repo, missing, revision, error)) from error


def _verify(repo: str, file: str, path: Path, digest: str, fresh: bool) -> None:
    blob = path.resolve()
    if not fresh and blob.name == digest:  # how the cache names large files; verified when new
        return
    if file_digest(blob) == digest:
        return
    path.unlink()
    blob.unlink(missing_ok=True)
    raise ValueError(
        f"{file} of {repo} is not what it should be: its SHA-256 is not {digest}. The file has "
        "been removed; run the command again to fetch it anew"
    )


def _explain(repo: str, files: Sequence[str], revision: str, error: Any) -> str:
    """Why a download failed, and how to get the files by hand."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repo} wants its licence accepted: do so on {page}, then run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{constants.ENDPOINT} has no public model {repo}, and there is no such path here"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}: see {page}/commits"
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
    if "space" in str(error).lower():
        why = str(error)
    folder = repo.split("/")[1]
    addresses = "\n".join(f"  {page}/resolve/{revision}/{file}" for file in files)
    if not files:
        addresses = f"  {page}/tree/{revision} (configuration, tokenizer, weights)"
    return (
        f"{repo} is not on this computer and {why}. Where there is a network, run\n"
        f"  triptych weights fetch {repo}\nor download\n"
        f"{addresses}\ninto one folder, such as ./{folder}, and give that folder as the model"
    )

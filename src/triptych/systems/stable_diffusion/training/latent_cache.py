"""A cache of what frozen networks compute: latents of pictures, and states of texts.

An autoencoder and text towers that do not train give the same output at every visit, and these
outputs are all that a step needs. A cache is a folder whose name is a digest of everything that the
outputs depend on, so that another autoencoder has another cache.

    cache.json              what the digest is of
    frozen.safetensors      the frozen networks, which are needed again for sampling and export
    pictures-000000...      for some pictures of one shape: scaled latents (of a KL autoencoder mean
                            and deviation, so that training still samples), sizes before and after
                            cropping, captions
    texts-000000...         for some texts: states and pooled vectors
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych.atomic import lock_folder, remove_temporary
from triptych.config import read_json, write_json
from triptych.data.fingerprint import fingerprint
from triptych.data.source import Source
from triptych.diffusion.denoiser import Conditioning
from triptych.fields import to_json
from triptych.systems.stable_diffusion.model import StableDiffusion
from triptych.systems.stable_diffusion.training import cached_latents
from triptych.systems.stable_diffusion.training.cached_latents import CachedLatents, CacheFiles
from triptych.systems.stable_diffusion.training.fill_cache import Filling
from triptych.text.tokenizer import Tokenizer
from triptych.train.recipe import Progress
from triptych.weights.digests import weights_digest
from triptych.weights.files.safetensors import write_safetensors
from triptych.weights.files.store import Shard
from triptych.weights.files.weight_file import read_safetensors
from triptych.weights.skeleton import skeleton

FORM = 1  # version of the files
DTYPES = {"float32": torch.float32, "float16": torch.float16}


class LatentCache:
    """The cache of one source, autoencoder and, where they are frozen, text towers.

    Raises:
        ValueError: the source is endless, or the model has no autoencoder.
    """

    def __init__(
        self,
        root: Path,
        source: Source,
        model: StableDiffusion,
        tokenizers: Sequence[Tokenizer],
        *,
        sentences: Sequence[str] = (),
        texts: bool = True,
        precision: str = "float32",
        device: torch.device | str = "cpu",
    ):
        """`sentences` are cached beside the captions; without `texts` only pictures are."""
        if source.info.length is None:
            raise ValueError(
                f"{source.info.name!r} is endless and cannot be cached: limit it, for example by "
                "--pictures 50000"
            )
        if model.config.patch:
            raise ValueError(
                "a cache keeps latents, and this model has no autoencoder: give --autoencoder or "
                "--init, or leave out --cache"
            )
        self.config, self.tokenizers = model.config, tokenizers
        self.sentences, self.texts = sentences, texts
        self.dtype, self.device = DTYPES[precision], torch.device(device)
        self.description = _describe(source, model, tokenizers if texts else None, precision)
        digest = hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()
        self.folder = root.expanduser() / f"latents-{digest[:16]}"
        self.files = CacheFiles(self.folder, source)
        self._model: StableDiffusion | None = model  # until the cache is filled

    def fill(self) -> Iterator[Progress]:
        """Compute what is missing, then release the model with its frozen networks.

        Raises:
            ValueError: more than a tenth of the pictures cannot be used, or an output is not
                finite.
            OSError: the disk is full or the folder cannot be written; finished files stay.
        """
        if self._model is None:
            return
        with lock_folder(self.folder) as waited:
            if waited:
                yield Progress("waited for another process that fills the cache", 0, 0)
            remove_temporary(self.folder)
            self._write_description()
            if unused := self._describe_unused():
                yield Progress(unused, 0, 0)
            if self.texts and not self.files.frozen.exists():
                state = self._model.state_dict()
                frozen = {k: v for k, v in state.items() if not k.startswith("unet.")}
                write_safetensors(self.files.frozen, frozen)
            filling = Filling(self.files, self.device, self.dtype)
            yield from filling.fill_pictures(self._model)
            if self.texts:
                yield from filling.fill_texts(self._model, self.tokenizers, self.sentences)
        self._model = None

    def open_latents(self) -> CachedLatents:
        """The source with latents in place of pictures; fills the cache where needed.

        Raises:
            ValueError, OSError: as `fill`.
        """
        for _ in self.fill():
            pass
        return self.files.open_latents()

    def encode_texts(self, texts: Sequence[str]) -> Conditioning:
        """Conditioning of the U-Net for cached texts: states, and the pooled vector if any."""
        places = [self._texts[text] for text in texts]
        return {
            name: torch.stack([s.tensors[name][row] for s, row in places]).float().to(self.device)
            for name in ("context", "vector")
            if name in places[0][0].tensors
        }

    def restore_model(self, unet: nn.Module, device: torch.device | str = "cpu") -> StableDiffusion:
        """The complete model around this U-Net, for sampling and export; its frozen networks are
        mapped from disk and leave the memory with it.
        """
        model = skeleton(lambda: StableDiffusion(self.config))
        stored = read_safetensors(self.files.frozen)
        for name in ("text", "autoencoder"):
            state = {k.removeprefix(f"{name}."): v for k, v in stored.items() if k.startswith(name)}
            part = model.get_submodule(name)
            part.load_state_dict(state, assign=True)
            part.requires_grad_(False).to(device).eval()
        model.unet = unet  # type: ignore[assignment]
        return model

    @cached_property
    def _texts(self) -> dict[str, tuple[Shard, int]]:
        for _ in self.fill():
            pass
        return self.files.locate_texts()

    def _write_description(self) -> None:
        path = self.folder / "cache.json"
        if not path.exists():
            write_json(path, self.description)
        elif read_json(path) != self.description:
            raise ValueError(
                f"{path} does not fit the name of its folder, so its contents may be of other "
                "pictures or networks: remove the folder, and it is computed again"
            )

    def _describe_unused(self) -> str:
        """A sentence on caches of other pictures, networks or settings in the same place."""
        unused = [p for p in self.folder.parent.glob("latents-*") if p != self.folder]
        size = sum(file.stat().st_size for path in unused for file in path.glob("*.safetensors"))
        if not unused:
            return ""
        return (
            f"{self.folder.parent} also holds caches of other pictures, networks or settings "
            f"({len(unused)} folders, {size / 1e9:.1f} GB), which are not used here"
        )


def _describe(
    source: Source,
    model: StableDiffusion,
    tokenizers: Sequence[Tokenizer] | None,
    precision: str,
) -> dict[str, Any]:
    """Everything that the contents depend on; without `tokenizers` no texts are cached."""
    config = model.config.autoencoder or model.config.tiny
    description: dict[str, Any] = {
        "form": [FORM, cached_latents.SHARD],
        "source": source.info.name,
        "pictures": source.info.length,
        "fingerprint": fingerprint(source),
        "autoencoder": [to_json(config), weights_digest(model.autoencoder)],
        "precision": precision,
    }
    if tokenizers is not None:
        description["text"] = [
            [to_json(tower) for tower in model.config.text],
            weights_digest(model.text),
            *map(_describe_tokenizer, tokenizers),
        ]
    return description


def _describe_tokenizer(tokenizer: Tokenizer) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        stored = (Path(folder) / "tokenizer.json").read_bytes()
    return [to_json(tokenizer.config), hashlib.sha256(stored).hexdigest()]

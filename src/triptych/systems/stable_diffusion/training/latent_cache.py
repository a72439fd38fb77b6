"""Latents and text states on disk: computed once, resumable anywhere, memory-mapped.

What is frozen says the same of a picture or a text at every visit, and its answers are all that a
step needs. A cache is a folder named by a digest of everything that they depend on: another
autoencoder is another cache. Its files are whole or not there, so a process may be killed at any
moment, and the next one computes what is missing.

    cache.json              what the digest is of
    frozen.safetensors      the parts that are then needed for drawing alone
    pictures-000000...      for some pictures of one shape: scaled latents, of a KL
                            autoencoder with their deviations so that every visit still draws, how
                            the picture was cut, its captions
    texts-000000...         states and pooled vectors of some texts

Dimensions: N pictures, B pictures of a batch, C channels, H height, W width, Z latent channels, h w
latent sides, P pictures of a file.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from triptych.atomic import lock_folder, remove_temporary
from triptych.config import read_json, to_json, write_json
from triptych.data.disk.index import refuse_if_many
from triptych.data.fingerprint import fingerprint
from triptych.data.order.batches import to_images
from triptych.data.order.buckets import Bucketed
from triptych.data.source import Columns, Source
from triptych.diffusion.denoiser import Conditioning
from triptych.systems.autoencoder.model import Autoencoder
from triptych.systems.autoencoder.tiny_model import TinyAutoencoder
from triptych.systems.stable_diffusion.model import Patches, StableDiffusion
from triptych.systems.stable_diffusion.training.cached_latents import Latents
from triptych.text.tokenizer import Tokenizer
from triptych.train.recipe import Progress
from triptych.weights.files.read import read_safetensors, weights_digest, write_safetensors
from triptych.weights.skeleton import skeleton

FORM = 1  # of what stands in the files
SHARD, TEXTS = 64, 256  # pictures, and texts, of a file: what a kill can lose
VALUES, MOST = 1 << 21, 64  # numbers, and pictures or texts, that go through a network at once
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def moments(
    autoencoder: Autoencoder | TinyAutoencoder | Patches, image: Float[Tensor, "B C H W"]
) -> tuple[Float[Tensor, "B Z h w"], Float[Tensor, "B Z h w"] | None]:
    """Scaled latents of pictures and, of an autoencoder that says so, how uncertain each is.

    In the plain order of numbers, whatever the network's: noise like them is drawn in their order.
    """
    if not isinstance(autoencoder, Autoencoder):
        return autoencoder.encode(image).contiguous(), None
    posterior = autoencoder.posterior(image)
    mean, deviation = autoencoder.scale(posterior.mean), autoencoder.scaled_deviation(posterior)
    return mean.contiguous(), deviation.contiguous()


def drawn_latents(
    mean: Float[Tensor, "B Z h w"], deviation: Float[Tensor, "B Z h w"] | None
) -> Float[Tensor, "B Z h w"]:
    """What one visit to the pictures sees: a draw, where there is something to draw."""
    return mean if deviation is None else mean + deviation * torch.randn_like(mean)


class LatentCache:
    """The cache of one source, autoencoder and, where they are frozen, text towers.

    Raises:
        ValueError: the source has no end; latents are pixels.
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
        """`sentences` are texts beside captions; without `texts` only pictures are cached."""
        if source.info.length is None:
            raise ValueError(
                f"{source.info.name!r} is endless and cannot be cached: limit the number of its "
                "pictures, for example with --pictures 50000"
            )
        if model.config.patch:
            raise ValueError(
                "a cache keeps latents, and this model has no autoencoder: give --autoencoder or "
                "--init, or leave out --cache"
            )
        self.source, self.config, self.tokenizers = source, model.config, tokenizers
        self.sentences, self.texts = sentences, texts
        self.dtype, self.device = DTYPES[precision], torch.device(device)
        self.described = self._description(model, precision)
        digest = hashlib.sha256(json.dumps(self.described, sort_keys=True).encode()).hexdigest()
        self.folder = root.expanduser() / f"latents-{digest[:16]}"
        self.shortened = 0  # texts, of those computed here
        self._model: StableDiffusion | None = model

    def _description(self, model: StableDiffusion, precision: str) -> dict[str, Any]:
        kind = model.config.autoencoder or model.config.tiny
        described: dict[str, Any] = {
            "form": [FORM, SHARD],
            "source": self.source.info.name,
            "pictures": self.source.info.length,
            "fingerprint": fingerprint(self.source),
            "autoencoder": [to_json(kind), weights_digest(model.autoencoder)],
            "precision": precision,
        }
        if self.texts:
            towers = [to_json(tower) for tower in model.config.text]
            described["text"] = [
                towers,
                weights_digest(model.text),
                *map(_vocabulary, self.tokenizers),
            ]
        return described

    @cached_property
    def buckets(self) -> Int64[np.ndarray, " N"]:
        if isinstance(self.source, Bucketed):
            return self.source.buckets
        length = self.source.info.length
        assert length is not None
        return np.zeros(length, np.int64)

    @cached_property
    def parts(self) -> list[Int64[np.ndarray, " _P"]]:
        """The pictures of every shard, all of one bucket."""
        found = [np.flatnonzero(self.buckets == bucket) for bucket in np.unique(self.buckets)]
        return [part[at : at + SHARD] for part in found for at in range(0, len(part), SHARD)]

    def fill(self) -> Iterator[Progress]:
        """Compute what is missing; afterwards what is frozen is only mapped from the disk.

        Raises:
            ValueError: more than a tenth of the pictures cannot be used, or a latent is not finite.
            OSError: the disk is full or the folder cannot be written; what is there stays.
        """
        if self._model is None:
            return
        with lock_folder(self.folder) as waited:
            if waited:
                yield Progress("waited for another process that fills the cache", 0, 0)
            remove_temporary(self.folder)
            self._describe()
            if others := self._others():
                yield Progress(others, 0, 0)
            if self.texts and not (self.folder / "frozen.safetensors").exists():
                state = self._model.state_dict()
                kept = {k: v for k, v in state.items() if not k.startswith("unet.")}
                write_safetensors(self.folder / "frozen.safetensors", kept)
            yield from self._fill_pictures(self._model)
            if self.texts:
                yield from self._fill_texts(self._model)
        self._model = None

    def _describe(self) -> None:
        path = self.folder / "cache.json"
        if not path.exists():
            write_json(path, self.described)
        elif read_json(path) != self.described:
            raise ValueError(
                f"{path} is not of the pictures and networks that its folder is named after: "
                "remove the folder, and it is computed again"
            )

    def _others(self) -> str:
        """What lies beside this cache and is of other pictures, networks or settings."""
        beside = [p for p in self.folder.parent.glob("latents-*") if p != self.folder]
        size = sum(file.stat().st_size for path in beside for file in path.glob("*.safetensors"))
        if not beside:
            return ""
        return (
            f"{self.folder.parent} also holds what is cached of other pictures, networks or "
            f"settings ({len(beside)} folders, {size / 1e9:.1f} GB), which is not used here"
        )

    def _fill_pictures(self, model: StableDiffusion) -> Iterator[Progress]:
        there = {n: shard for n in range(len(self.parts)) if (shard := self._shard(n)) is not None}
        total, done = len(self.buckets), sum(len(self.parts[n]) for n in there)
        skipped = dict(self.source.info.skipped)
        for shard in there.values():
            skipped |= shard["skipped"]
        autoencoder = model.autoencoder.to(self.device).eval()
        yield Progress("latents", done, total)
        for number in range(len(self.parts)):
            if number in there:
                continue
            tensors: list[dict[str, Tensor]] = []
            captions: list[Any] = []
            missed: dict[str, str] = {}
            for chunk in _chunks(self.parts[number], self._at_once(number)):
                columns = self.source.read(chunk.tolist())
                tensors.append(self._encoded(autoencoder, columns))
                captions += columns.get("caption", [])
                missed |= dict(columns.get("skipped", ()))
                done += len(chunk)
                yield Progress("latents", done, total)
            notes = {"captions": captions, "skipped": missed}
            whole = {name: torch.cat([t[name] for t in tensors]) for name in tensors[0]}
            write_safetensors(self._path("pictures", number), whole | {"said": _bytes(notes)})
            skipped |= missed
            info = self.source.info
            refuse_if_many(skipped, total + len(info.skipped), info.name)

    def _at_once(self, number: int) -> int:
        height, width, channels = self.source.info.shape
        if isinstance(self.source, Bucketed):
            height, width = self.source.shapes[int(self.buckets[self.parts[number][0]])]
        return max(1, min(MOST, VALUES // (height * width * channels)))

    @torch.inference_mode()
    def _encoded(
        self, autoencoder: Autoencoder | TinyAutoencoder | Patches, columns: Columns
    ) -> dict[str, Tensor]:
        mean, deviation = moments(autoencoder, to_images(columns["image"]).to(self.device))
        found = {"mean": self._kept(mean, "latents")}
        if deviation is not None:
            found["deviation"] = self._kept(deviation, "deviations of latents")
        for name in ("sizes", "label"):
            if name in columns:
                found[name] = torch.from_numpy(np.asarray(columns[name], np.int64))
        return found

    def _kept(self, tensor: Tensor, what: str) -> Tensor:
        kept = tensor.to("cpu", self.dtype)
        if not kept.isfinite().all():
            advice = "" if self.dtype == torch.float32 else "; use --cache-precision float32"
            raise ValueError(f"{what} of {self.source.info.name!r} are not finite{advice}")
        return kept

    def _fill_texts(self, model: StableDiffusion) -> Iterator[Progress]:
        wanted = dict.fromkeys(["", *self.sentences])
        for number in range(len(self.parts)):
            shard = self._shard(number)
            assert shard is not None
            for notes in shard["captions"]:
                wanted |= dict.fromkeys([notes] if isinstance(notes, str) else notes)
        known, number = self._text_rows()
        missing = [text for text in wanted if text not in known]
        total, done = len(wanted), len(wanted) - len(missing)
        model.text.to(self.device).eval()
        yield Progress("texts", done, total)
        for chunk in _chunks(missing, TEXTS):
            tensors: list[dict[str, Tensor]] = []
            for texts in _chunks(chunk, MOST):
                tensors.append(self._told(model, texts))
                done += len(texts)
                yield Progress("texts", done, total)
            whole = {name: torch.cat([t[name] for t in tensors]) for name in tensors[0]}
            write_safetensors(self._path("texts", number), whole | {"said": _bytes(list(chunk))})
            number += 1
        if self.shortened:
            notes = f"{self.shortened:,} texts are longer than the window and lost their end"
            yield Progress(notes, 0, 0)

    @torch.inference_mode()
    def _told(self, model: StableDiffusion, texts: Sequence[str]) -> dict[str, Tensor]:
        tokens = [tokenizer.encode(list(texts)) for tokenizer in self.tokenizers]
        self.shortened += sum(map(any, zip(*(each.cut for each in tokens), strict=True)))
        context, vector = model.encode_text([each.tokens.to(self.device) for each in tokens])
        found = {"context": self._kept(context, "states of captions")}
        if vector is not None:
            found["vector"] = self._kept(vector, "vectors of captions")
        return found

    def pictures(self) -> Latents:
        """The source with latents in place of pictures; fills the cache first if it is not whole.

        Raises:
            ValueError, OSError: as `fill`.
        """
        for _ in self.fill():
            pass
        shards, skipped = [], dict(self.source.info.skipped)
        at = np.empty((len(self.buckets), 2), np.int64)
        for number, part in enumerate(self.parts):
            shard = self._shard(number)
            assert shard is not None, "filled, and now it is gone"
            shards.append(shard)
            skipped |= shard["skipped"]
            at[part, 0], at[part, 1] = number, np.arange(len(part))
        info = replace(self.source.info, attributes=(), vector=(), skipped=skipped)
        return Latents(info, self.buckets, shards, at)

    def tell(self, texts: Sequence[str]) -> Conditioning:
        """What the U-Net is told of cached texts: their states and, if it has one, the vector."""
        found = [self._texts[text] for text in texts]
        return {
            name: torch.stack([shard[name][row] for shard, row in found]).float().to(self.device)
            for name in ("context", "vector")
            if name in found[0][0]
        }

    def whole(self, unet: nn.Module, device: torch.device | str = "cpu") -> StableDiffusion:
        """The model around this U-Net, for drawing and for export: its frozen parts are mapped from
        the disk, and gone again with it.
        """
        whole = skeleton(lambda: StableDiffusion(self.config))
        stored = read_safetensors(self.folder / "frozen.safetensors")
        for name in ("text", "autoencoder"):
            own = {k.removeprefix(f"{name}."): v for k, v in stored.items() if k.startswith(name)}
            part = whole.get_submodule(name)
            part.load_state_dict(own, assign=True)
            part.requires_grad_(False).to(device).eval()
        whole.unet = unet  # type: ignore[assignment]
        return whole

    @cached_property
    def _texts(self) -> dict[str, tuple[dict[str, Tensor], int]]:
        for _ in self.fill():
            pass
        return self._text_rows()[0]

    def _text_rows(self) -> tuple[dict[str, tuple[dict[str, Tensor], int]], int]:
        """Where every text is, and the number of the next file."""
        rows: dict[str, tuple[dict[str, Tensor], int]] = {}
        number = 0
        while (path := self._path("texts", number)).exists():
            shard = _read(path)
            notes = shard.pop("said", []) if shard else []
            rows |= {text: (shard, row) for row, text in enumerate(notes)}
            number += 1
        return rows, number

    def _shard(self, number: int) -> dict[str, Any] | None:
        """One file of pictures; None where it is not there, or damaged, and is to be written."""
        shard = _read(self._path("pictures", number))
        if not shard:
            return None
        notes: dict[str, Any] = shard.pop("said")
        return shard | notes

    def _path(self, what: str, number: int) -> Path:
        return self.folder / f"{what}-{number:06d}.safetensors"


def _vocabulary(tokenizer: Tokenizer) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(Path(folder))
        stored = (Path(folder) / "tokenizer.json").read_bytes()
    return [to_json(tokenizer.config), hashlib.sha256(stored).hexdigest()]


def _chunks(items: Any, size: int) -> list[Any]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def _bytes(notes: Any) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(notes).encode()), dtype=torch.uint8)


def _read(path: Path) -> dict[str, Any]:
    """A file of the cache, its tensors mapped; empty where it is not there or damaged."""
    if not path.exists():
        return {}
    try:
        tensors: dict[str, Any] = dict(read_safetensors(path))
        tensors["said"] = json.loads(bytes(tensors["said"].numpy()))
    except (ValueError, LookupError):
        return {}
    return tensors

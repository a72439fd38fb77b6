"""Fills a latent cache: runs the frozen networks on whatever is missing from its files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych.data.disk.index import refuse_if_many
from triptych.data.order.batches import to_images
from triptych.data.order.buckets import BucketedSource
from triptych.data.source import Columns
from triptych.systems.autoencoder.model import Autoencoder
from triptych.systems.autoencoder.tiny_model import TinyAutoencoder
from triptych.systems.stable_diffusion.model import Patches, StableDiffusion
from triptych.systems.stable_diffusion.training.cached_latents import CacheFiles
from triptych.systems.stable_diffusion.training.encode_latents import encode_moments
from triptych.text.tokenizer import Tokenizer
from triptych.train.recipe import Progress

TEXTS = 256  # texts in a file
VALUES, MOST = 1 << 21, 64  # pixel values, and pictures or texts, of a batch


@dataclass(frozen=True)
class Filling:
    """The files to fill, and how: networks run on `device`, results are stored as `dtype`."""

    files: CacheFiles
    device: torch.device
    dtype: torch.dtype

    def fill_pictures(self, model: StableDiffusion) -> Iterator[Progress]:
        """Write the missing files of latents.

        Raises:
            ValueError: more than a tenth of the pictures cannot be used, or a latent is not finite.
            OSError: the disk is full or the folder cannot be written.
        """
        source, parts = self.files.source, self.files.parts
        skipped = dict(source.info.skipped)
        missing, done = [], 0
        for number, part in enumerate(parts):
            if (shard := self.files.pictures.read(number)) is None:
                missing.append(number)
            else:
                done += len(part)
                skipped |= shard.notes["skipped"]
        total = len(self.files.buckets)
        autoencoder = model.autoencoder.to(self.device).eval()
        yield Progress("latents", done, total)
        for number in missing:
            tensors: list[dict[str, Tensor]] = []
            captions: list[Any] = []
            unreadable: dict[str, str] = {}
            for indices in _chunks(parts[number], self._batch_size(number)):
                columns = source.read(indices.tolist())
                tensors.append(self._encode_pictures(autoencoder, columns))
                captions += columns.get("caption", [])
                unreadable |= dict(columns.get("skipped", ()))
                done += len(indices)
                yield Progress("latents", done, total)
            notes = {"captions": captions, "skipped": unreadable}
            self.files.pictures.write(number, _concatenate(tensors), notes)
            skipped |= unreadable
            refuse_if_many(skipped, total + len(source.info.skipped), source.info.name)

    def fill_texts(
        self, model: StableDiffusion, tokenizers: Sequence[Tokenizer], sentences: Sequence[str]
    ) -> Iterator[Progress]:
        """Write the outputs of the text towers for the empty text, `sentences` and all captions.

        Raises:
            ValueError: an output is not finite.
            OSError: the disk is full or the folder cannot be written.
        """
        texts = self._all_texts(sentences)
        cached = self.files.locate_texts()
        missing = [text for text in texts if text not in cached]
        number = max(self.files.texts.numbers(), default=-1) + 1
        total, done, shortened = len(texts), len(texts) - len(missing), 0
        model.text.to(self.device).eval()
        yield Progress("texts", done, total)
        for chunk in _chunks(missing, TEXTS):
            tensors: list[dict[str, Tensor]] = []
            for batch in _chunks(chunk, MOST):
                encoded, cut = self._encode_texts(model, tokenizers, batch)
                tensors.append(encoded)
                shortened += cut
                done += len(batch)
                yield Progress("texts", done, total)
            self.files.texts.write(number, _concatenate(tensors), chunk)
            number += 1
        if shortened:
            yield Progress(
                f"{shortened:,} texts are longer than the window: their end is cut", 0, 0
            )

    def _all_texts(self, sentences: Sequence[str]) -> list[str]:
        texts = dict.fromkeys(["", *sentences])
        for number in range(len(self.files.parts)):
            shard = self.files.pictures.read(number)
            assert shard is not None
            for captions in shard.notes["captions"]:
                texts |= dict.fromkeys([captions] if isinstance(captions, str) else captions)
        return list(texts)

    def _batch_size(self, number: int) -> int:
        source = self.files.source
        height, width, channels = source.info.shape
        if isinstance(source, BucketedSource):
            height, width = source.shapes[int(self.files.buckets[self.files.parts[number][0]])]
        return max(1, min(MOST, VALUES // (height * width * channels)))

    @torch.inference_mode()
    def _encode_pictures(
        self, autoencoder: Autoencoder | TinyAutoencoder | Patches, columns: Columns
    ) -> dict[str, Tensor]:
        image = to_images(columns["image"]).to(self.device)
        mean, deviation = encode_moments(autoencoder, image)
        tensors = {"mean": self._to_disk(mean, "latents")}
        if deviation is not None:
            tensors["deviation"] = self._to_disk(deviation, "deviations of latents")
        for name in ("sizes", "label"):
            if name in columns:
                tensors[name] = torch.from_numpy(np.asarray(columns[name], np.int64))
        return tensors

    @torch.inference_mode()
    def _encode_texts(
        self, model: StableDiffusion, tokenizers: Sequence[Tokenizer], texts: Sequence[str]
    ) -> tuple[dict[str, Tensor], int]:
        """States, pooled vectors if there are any, and how many texts are too long."""
        tokens = [tokenizer.encode(list(texts)) for tokenizer in tokenizers]
        cut = sum(map(any, zip(*(each.cut for each in tokens), strict=True)))
        context, vector = model.encode_text([each.tokens.to(self.device) for each in tokens])
        tensors = {"context": self._to_disk(context, "states of captions")}
        if vector is not None:
            tensors["vector"] = self._to_disk(vector, "vectors of captions")
        return tensors, cut

    def _to_disk(self, tensor: Tensor, name: str) -> Tensor:
        stored = tensor.to("cpu", self.dtype)
        if not stored.isfinite().all():
            advice = "" if self.dtype == torch.float32 else "; use --cache-precision float32"
            raise ValueError(f"{name} of {self.files.source.info.name!r} are not finite{advice}")
        return stored


def _chunks(items: Any, size: int) -> list[Any]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def _concatenate(tensors: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([each[name] for each in tensors]) for name in tensors[0]}

"""Keys and values of the positions seen so far: a causal transformer computes only new ones.

Rows of different lengths are padded on the left, so that all of them end at the same place: a
*place* counts from the start of the padded row, a *position* from the row's own first token.

Dimensions: B batch, K key/value heads, T new places, S kept places, C head width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


class LayerCache:
    """Keys and values of one attention layer, for inference.

    With a window (arXiv:2004.05150) position i attends to j where i - j < window, itself included,
    and no more than `window` places are kept.
    """

    def __init__(self, window: int | None = None):
        self.window = window
        self.count = 0
        """Places seen so far, also those that are no longer kept."""
        self._keys = self._values = torch.empty(0)

    def extend(
        self, k: Float[Tensor, "B K T C"], v: Float[Tensor, "B K T C"]
    ) -> tuple[Float[Tensor, "B K S C"], Float[Tensor, "B K S C"]]:
        """Add new places, and return what they may attend to: the kept places and the new ones, in
        the order that `places` says.

        Views of the buffers are returned where possible: use them before the next call.
        """
        new = k.shape[2]
        if new == 1:
            return self._extend_by_one(k, v)
        old = min(self.count, self._keys.shape[2] if self.count else 0)
        whole = self._in_buffer(new)
        if not whole and old:
            k_seen = torch.cat([self._keys[:, :, :old], k], 2)
            v_seen = torch.cat([self._values[:, :, :old], v], 2)
        else:
            k_seen, v_seen = k, v
        self._reserve(k, v)
        kept = new if self.window is None else min(new, self.window)
        at = torch.arange(self.count + new - kept, self.count + new, device=k.device)
        at = at if self.window is None else at % self.window
        self._keys.index_copy_(2, at, k[:, :, new - kept :])
        self._values.index_copy_(2, at, v[:, :, new - kept :])
        self.count += new
        if whole:
            filled = self.count if self.window is None else min(self.count, self.window)
            return self._keys[:, :, :filled], self._values[:, :, :filled]
        return k_seen, v_seen

    def _extend_by_one(
        self, k: Float[Tensor, "B K 1 C"], v: Float[Tensor, "B K 1 C"]
    ) -> tuple[Float[Tensor, "B K S C"], Float[Tensor, "B K S C"]]:
        self._reserve(k, v)
        at = self.count if self.window is None else self.count % self.window
        self._keys.narrow(2, at, 1).copy_(k)
        self._values.narrow(2, at, 1).copy_(v)
        self.count += 1
        filled = self.count if self.window is None else min(self.count, self.window)
        return self._keys.narrow(2, 0, filled), self._values.narrow(2, 0, filled)

    def places(self, new: int) -> Int64[Tensor, " S"]:
        """The places of what the next `extend` with `new` places will return."""
        last = self.count + new
        if self.window is None or last <= self.window:
            return torch.arange(last)
        if self._in_buffer(new):
            return last - 1 - (last - 1 - torch.arange(self.window)) % self.window
        kept = torch.arange(min(self.count, self.window))
        if self.count > self.window:
            kept = self.count - 1 - (self.count - 1 - kept) % self.window
        return torch.cat([kept, torch.arange(self.count, last)])

    def _in_buffer(self, new: int) -> bool:
        """Whether the buffer, once `new` places are in it, holds everything that they may see."""
        return self.window is None or new == 1 or self.count + new <= self.window

    def _reserve(self, k: Tensor, v: Tensor) -> None:
        """Make room for new places; the buffers double, so that a place is copied about once."""
        needed = self.count + k.shape[2]
        room = self._keys.shape[2] if self.count else 0
        if self.window is not None:
            needed = min(needed, self.window)
        if room >= needed:
            return
        size = needed if not room else max(needed, 2 * room)
        if self.window is not None:
            size = min(size, self.window)
        buffers = []
        for old, fresh in ((self._keys, k), (self._values, v)):
            buffer = fresh.new_empty(*fresh.shape[:2], size, fresh.shape[3])
            if room:
                buffer[:, :, :room] = old
            buffers.append(buffer)
        self._keys, self._values = buffers

    @property
    def kept(self) -> int:
        """Places for which there is memory."""
        return self._keys.shape[2] if self.count else 0


class Cache:
    """The caches of all layers of a model, and the padding of its rows."""

    def __init__(
        self, windows: Sequence[int | None], pads: Int64[Tensor, " B"] | None = None
    ) -> None:
        """
        Args:
            windows: the window of each layer, None for one that sees everything before it.
            pads: places of padding on the left of each row; None for rows of one length.
        """
        self.layers = [LayerCache(window) for window in windows]
        self.pads = None if pads is None or not bool(pads.any()) else pads

    @property
    def count(self) -> int:
        """Places seen so far."""
        return self.layers[0].count if self.layers else 0

    def rewind(self, count: int) -> None:
        """Forget all but the first `count` places, for other ones to follow them.

        Raises:
            ValueError: a layer has a window, and has dropped what was before it.
        """
        if any(layer.window is not None for layer in self.layers):
            raise ValueError("layers with a window keep no places to go back to")
        for layer in self.layers:
            layer.count = count

    def positions(self, new: int, device: torch.device | None = None) -> Int64[Tensor, "#B T"]:
        """The positions of the next `new` places; 0 for padding."""
        places = torch.arange(self.count, self.count + new, device=device)[None]
        return places if self.pads is None else (places - self.pads[:, None]).clamp(min=0)

    def masks(
        self,
        new: int,
        prefix: Int64[Tensor, " B"] | None = None,
        device: torch.device | None = None,
    ) -> dict[int | None, Bool[Tensor, "#B 1 T S"] | None]:
        """For each window of the layers: which keys the next `new` places may see, None for all.

        Within the first `prefix` places of a row, padding included, attention is in both
        directions.
        """
        if new == 1 and self.pads is None:
            return {layer.window: None for layer in self.layers}
        queries = torch.arange(self.count, self.count + new)
        found: dict[int | None, Tensor | None] = {}
        for layer in self.layers:
            if layer.window not in found:
                mask = visible(queries, layer.places(new), layer.window, self.pads, prefix)
                found[layer.window] = mask if mask is None else mask.to(device)
        return found


def visible(
    queries: Int64[Tensor, " T"],
    keys: Int64[Tensor, " S"],
    window: int | None = None,
    pads: Int64[Tensor, " B"] | None = None,
    prefix: Int64[Tensor, " B"] | None = None,
) -> Bool[Tensor, "#B 1 T S"] | None:
    """Which keys each query may see, both given by their places: causal attention, None for all.

    `window` hides keys that far back. `pads` hides the padding on the left of each row. In the
    first `prefix` places attention is in both directions, with or without a window (prefix-LM,
    arXiv:2407.07726 figure 2). Every query sees itself, padding too, lest its softmax is empty.
    """
    queries, keys = queries[:, None], keys[None]
    seen = keys <= queries  # (T, S)
    if window is not None:
        seen = seen & (queries - keys < window)
    seen = seen[None, None]
    if prefix is not None:
        limit = prefix.cpu()[:, None, None, None]
        seen = seen | ((keys < limit) & (queries < limit))
    if pads is not None:
        seen = seen & (keys >= pads.cpu()[:, None, None, None]) | (keys == queries)
    return None if bool(seen.all()) else seen

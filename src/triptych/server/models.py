"""The models in memory: the two that were used last, within a budget."""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triptych.weights.loaded import Loaded

MOST = 2
Key = tuple[str, int, str, str]
"""Place, time of its files, device and precision."""


@dataclass
class Kept:
    """A model in memory."""

    loaded: "Loaded"
    size: int
    """Bytes of its weights."""
    previews: dict[str, Any] = field(default_factory=dict)
    """Functions that draw previews, by system: fitted to this model once."""


class Models:
    """Loads each model once, and forgets the one that was used longest ago."""

    def __init__(self, load: "Callable[[str, str, str], Loaded]", budget: int, most: int = MOST):
        """`load` takes place, device and precision; `budget` is in bytes."""
        self.load, self.budget, self.most = load, budget, most
        self.lock = Lock()
        self.kept: OrderedDict[Key, Future[Kept]] = OrderedDict()

    def get(self, place: str, time: int, device: str, dtype: str) -> Kept:
        """The model, loaded if it is not there. Who asks for one that is being loaded waits for it.

        Raises:
            Exception: what `load` raises; the next who asks tries again.
        """
        key = (place, time, device, dtype)
        with self.lock:
            future = self.kept.get(key)
            first = future is None
            if future is None:
                self._forget(self.most - 1)  # before loading: the new one needs the room
                future = self.kept[key] = Future()
            self.kept.move_to_end(key)
        if first:
            try:
                loaded = self.load(place, device, dtype)
                future.set_result(Kept(loaded, count_bytes(loaded)))
            except BaseException as error:
                with self.lock:
                    self.kept.pop(key, None)
                future.set_exception(error)
                raise
            with self.lock:
                self._forget(self.most)
        return future.result()

    def find(self, place: str) -> "Loaded | None":
        """The model of a place, if it is loaded: on any device, in any precision."""
        with self.lock:
            ready = [kept for key, kept in self.kept.items() if key[0] == place and kept.done()]
        return ready[-1].result().loaded if ready else None

    def sizes(self) -> dict[str, int]:
        """Bytes of the models that are loaded, by place."""
        with self.lock:
            ready = [(key, kept.result()) for key, kept in self.kept.items() if kept.done()]
        found: dict[str, int] = {}
        for (place, *_), kept in ready:
            found[place] = found.get(place, 0) + kept.size
        return found

    def _forget(self, most: int) -> None:
        """Drop the models used longest ago, down to `most` and into the budget; never the last."""
        ready = [key for key, kept in self.kept.items() if kept.done()]
        total = sum(self.kept[key].result().size for key in ready)
        for key in ready[: len(ready) if most < len(self.kept) else -1]:
            if len(self.kept) <= most and total <= self.budget:
                return
            total -= self.kept.pop(key).result().size


def count_bytes(loaded: "Loaded") -> int:
    """Bytes of a model's weights and buffers."""
    parts = [*loaded.model.parameters(), *loaded.model.buffers()]
    return sum(part.numel() * part.element_size() for part in parts)

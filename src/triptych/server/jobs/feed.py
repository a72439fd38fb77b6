"""Wakes those who wait for events, in any thread or event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator

from triptych.server.jobs.store import Event, Store


class Feed:
    """Tells workers that there may be work, and streams that there may be events."""

    def __init__(self, store: Store):
        self.store = store
        self.changed = threading.Condition()
        self.waiting: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self.version = 0
        self.closed = False

    def notify(self) -> None:
        """Something changed."""
        with self.changed:
            self.version += 1
            self.changed.notify_all()
            for loop, event in self.waiting:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """End all streams and let workers end."""
        with self.changed:
            self.closed = True
        self.notify()

    async def follow(
        self, after: int = 0, job: str = "", pause: float = 15.0
    ) -> AsyncIterator[Event | None]:
        """The events after a number, of all jobs or one, as they come; ends after the last event of
        the one job. None stands for `pause` seconds without an event.
        """
        changed = asyncio.Event()
        entry = (asyncio.get_running_loop(), changed)
        with self.changed:
            self.waiting.add(entry)
        try:
            while True:
                changed.clear()
                events = self.store.events(after, job)
                for event in events:
                    after = event.number
                    yield event
                    if job and event.is_last:
                        return
                if events:
                    continue
                if self.closed:
                    return
                try:
                    await asyncio.wait_for(changed.wait(), pause)
                except TimeoutError:
                    yield None
        finally:
            with self.changed:
                self.waiting.discard(entry)

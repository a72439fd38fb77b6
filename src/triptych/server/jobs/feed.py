"""Wakes those who wait for events, in any thread or event loop."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field

from triptych.server.jobs.store import DELETED, FINAL, Event, Store


@dataclass(eq=False)
class Waiter:
    """Who waits in an event loop."""

    ends: bool
    """Only for the end of a job: is not woken by each step of it."""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Feed:
    """Tells workers that there may be work, and streams that there may be events."""

    def __init__(self, store: Store):
        self.store = store
        self.changed = threading.Condition()
        self.waiting: set[Waiter] = set()
        self.version = 0
        self.closed = False

    def notify(self, ended: bool = False) -> None:
        """Something changed; with `ended` a job may have ended."""
        with self.changed:
            self.version += 1
            self.changed.notify_all()
            for waiter in self.waiting:
                if (ended or not waiter.ends) and not waiter.loop.is_closed():
                    waiter.loop.call_soon_threadsafe(waiter.changed.set)

    def close(self) -> None:
        """End all streams and let workers end."""
        with self.changed:
            self.closed = True
        self.notify(ended=True)

    async def changes(
        self, pause: float = 15.0, *, ends: bool = False
    ) -> AsyncGenerator[bool, None]:
        """True now, and each time that something has changed, or with `ends` that a job may have
        ended; False where nothing has for `pause` seconds. Ends when the feed is closed.
        """
        waiter = Waiter(ends)
        with self.changed:
            self.waiting.add(waiter)
        try:
            while True:
                waiter.changed.clear()
                yield True
                if self.closed:
                    return
                try:
                    await asyncio.wait_for(waiter.changed.wait(), pause)
                except TimeoutError:
                    yield False
        finally:
            with self.changed:
                self.waiting.discard(waiter)

    async def follow(
        self, after: int = 0, job: str = "", pause: float = 15.0
    ) -> AsyncIterator[Event | None]:
        """The events after a number, of all jobs or one, as they come; ends after the last event of
        the one job. None stands for `pause` seconds without an event.
        """
        async with aclosing(self.changes(pause)) as changes:
            async for has_changed in changes:
                if not has_changed:
                    yield None
                while events := self.store.events(after, job):
                    for event in events:
                        after = event.number
                        yield event
                        if job and event.is_last:
                            return

    async def until_ended(self, job: str) -> None:
        """Wait until a job has ended, or the feed is closed. None of its events are read, and none
        wakes the waiter: there are many, with previews, and it wants only the result.
        """
        async with aclosing(self.changes(ends=True)) as changes:
            async for _ in changes:
                if self.store.state(job) in (*FINAL, DELETED):
                    return

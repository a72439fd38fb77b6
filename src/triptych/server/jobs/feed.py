"""Wakes those who wait for events, in any thread or event loop."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field

from triptych.server.jobs.store import DELETED, FINAL, Event, Store

LOOKS = 10.0
"""Seconds for which a client that asks again and again, instead of following, counts as one."""


@dataclass(eq=False)
class Waiter:
    """Who waits in an event loop."""

    ends: bool
    """Only for the end of a job: is not woken by each step of it."""
    job: str = ""
    """Whose events it waits for; empty for those of all jobs."""
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Feed:
    """Tells workers that there may be work, and streams that there may be events."""

    def __init__(self, store: Store):
        self.store = store
        self.changed = threading.Condition()
        self.waiting: set[Waiter] = set()
        self.version = 0
        self.looked = float("-inf")
        self.closed = False

    def notify(self, *, ended: bool = False, work: bool = False) -> None:
        """Something changed; with `ended` a job may have ended, with `work` a worker has something
        to do: workers are not woken by the steps of others.
        """
        with self.changed:
            if work:
                self.version += 1
                self.changed.notify_all()
            for waiter in self.waiting:
                if (ended or not waiter.ends) and not waiter.loop.is_closed():
                    waiter.loop.call_soon_threadsafe(waiter.changed.set)

    def close(self) -> None:
        """End all streams and let workers end."""
        with self.changed:
            self.closed = True
        self.notify(ended=True, work=True)

    def note_look(self) -> None:
        """A client has asked how far things are."""
        self.looked = time.monotonic()

    def is_followed(self, job: str) -> bool:
        """Whether somebody sees the events of a job as they come, or has just asked for them."""
        with self.changed:
            waiting = any(not one.ends and one.job in ("", job) for one in self.waiting)
        return waiting or time.monotonic() - self.looked < LOOKS

    async def changes(
        self, pause: float = 15.0, *, ends: bool = False, job: str = ""
    ) -> AsyncGenerator[bool, None]:
        """True now, and each time that something has changed, or with `ends` that a job may have
        ended; False where nothing has for `pause` seconds. Ends when the feed is closed.
        """
        waiter = Waiter(ends, job)
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
        async with aclosing(self.changes(pause, job=job)) as changes:
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

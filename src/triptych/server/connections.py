"""HTTP connections, given up where a client is too slow: so many of them cost nothing for long."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's connection, with an end to a request whose head does not come and to an answer that
    nobody reads; the guard sees to bodies.
    """

    def __init__(self, seconds: float, **given: Any):
        super().__init__(**given)
        self.seconds = seconds
        self.head: asyncio.TimerHandle | None = None
        self.unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.head = self.loop.call_later(self.seconds, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._cancel("head")
        elif self.head is None:  # the beginning of a further request
            self.head = self.loop.call_later(self.seconds, self._give_up)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._cancel("unread")
        self.unread = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel("unread")

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel("head")
        self._cancel("unread")
        super().connection_lost(exc)

    def _give_up(self) -> None:
        self.head = None
        if self.conn.their_state is h11.IDLE:
            self.transport.abort()

    def _cancel(self, name: str) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)

"""The service on a port, until it is told to stop."""

import os
import socket
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import uvicorn

from triptych.server.app import build_app
from triptych.server.connections import Connection
from triptych.server.service import Service, open_service
from triptych.server.settings import Serve

BACKLOG = 1024


class Server(uvicorn.Server):
    """Stops jobs and streams before it waits for connections to close."""

    def __init__(self, config: uvicorn.Config, stop: Callable[[], None]):
        super().__init__(config)
        self.stop = stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stop()
        await super().shutdown(sockets)


def start(settings: Serve, say: Callable[..., None]) -> int:
    """Serve until Ctrl-C or SIGTERM; returns the exit code.

    Raises:
        OSError: the port is taken, or the home cannot be written.
        RuntimeError: another service uses the home.
    """
    listening = listen(settings.host, settings.port)
    port = listening.getsockname()[1]
    with listening, open_service(settings) as service:
        server = make_server(service, port)
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        say(f"Triptych is at http://{shown}:{port}")
        if settings.key:
            say("clients send the API key as `Authorization: Bearer KEY`")
        if settings.open:  # it listens already: the browser waits for the first answer
            webbrowser.open(f"http://{shown}:{port}")
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again that ended it
            server.run(sockets=[listening])
    return 0


def make_server(service: Service, port: int) -> Server:
    """The server of a service that is reached at this port."""
    config = uvicorn.Config(
        build_app(service, lambda: port),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=4 * service.limits.connections,  # the guard answers before that
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=64 << 10,
        http=partial(Connection, service.limits.body_idle_seconds),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
    )
    return Server(config, service.stop)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: the port is taken, or the address is not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns off Nagle's algorithm only for sockets that name their protocol. With it a
    # client that keeps its connection waits 40 ms for an answer, until it acknowledges the head.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if os.name == "posix":
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)  # before the address is printed: nobody is turned away
    except OSError as error:
        listening.close()
        reason = error.strerror or str(error)
        raise OSError(
            error.errno, f"port {port} of {host}: {reason}; choose another --port"
        ) from None
    return listening

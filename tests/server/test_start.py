"""The socket that the service listens on."""

import asyncio
import socket

from triptych.server.start import listen


def test_answers_are_sent_at_once() -> None:
    """Else the second part of an answer waits for the client, which waits 40 ms."""

    async def accepted() -> int:
        option: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            option.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listening = listen("127.0.0.1", 0)
        async with await asyncio.start_server(met, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            found = await option
            writer.close()
        return found

    assert asyncio.run(accepted()) == 1

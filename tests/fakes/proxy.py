"""A TCP proxy whose connections can be cut: a network between client and server that fails when a test wants it to.

async with Proxy(port) as proxy:
    ... http://127.0.0.1:{proxy.port} ...
    proxy.cut()               # all connections break, without a goodbye
    proxy.refuse(3)           # the next three connections break at once
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self


class Proxy:
    """See the module. `accepted` counts the connections that were passed on."""

    def __init__(self, target_port: int) -> None:
        self.accepted = 0
        self._target_port = target_port
        self._refusals = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        """Break all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def refuse(self, count: int) -> None:
        """Break the next `count` connections as soon as they are made."""
        self._refusals = count

    @property
    def refusals_left(self) -> int:
        return self._refusals

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusals:
            self._refusals -= 1
            writer.transport.abort()
            return
        self.accepted += 1
        there_reader, there = await asyncio.open_connection("127.0.0.1", self._target_port)
        mine = {writer, there}
        self._writers |= mine
        try:
            await asyncio.gather(self._pass_on(reader, there), self._pass_on(there_reader, writer))
        finally:
            self._writers -= mine
            for end in mine:
                end.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(64 * 1024):
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            writer.transport.abort()

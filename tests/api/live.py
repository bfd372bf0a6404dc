"""The whole API behind a real uvicorn on a free port, for what only real connections show: streams and sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from httpx_sse import EventSource, ServerSentEvent, aconnect_sse
from pydantic_core import from_json, to_json
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from app.engine.registry import Task
from app.engine.service import Engine
from tests.api.running import api_keys, app_on
from tests.support import PATIENCE_S


@dataclass(frozen=True)
class Live:
    """A running API, its server, and the key of each user."""

    app: FastAPI
    server: uvicorn.Server
    address: str
    keys: dict[str, str]

    @property
    def engine(self) -> Engine:
        engine: Engine = self.app.state.engine
        return engine

    def headers(self, user: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[user]}"}

    @asynccontextmanager
    async def http(self, user: str = "ada") -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(
            base_url=f"http://{self.address}", headers=self.headers(user), timeout=PATIENCE_S
        ) as client:
            yield client

    @asynccontextmanager
    async def socket(
        self, user: str | None = "ada", query: str = "", *, authorization: str | None = None, **options: Any
    ) -> AsyncIterator[Socket]:
        headers = self.headers(user) if user else {"authorization": authorization} if authorization else {}
        # A client that has not read everything cannot read the server's answer to its close: it does not wait for it.
        options = {"additional_headers": headers, "close_timeout": 0.1, **options}
        async with connect(f"ws://{self.address}/ws{query}", **options) as connection:
            yield Socket(connection)

    @asynccontextmanager
    async def sse(self, path: str, user: str = "ada", last: str | None = None) -> AsyncIterator[EventSource]:
        headers = {} if last is None else {"Last-Event-ID": last}
        async with self.http(user) as client, aconnect_sse(client, "GET", path, headers=headers) as source:
            yield source


class Socket:
    """A client's end of a WebSocket, in frames."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, kind: str, **fields: Any) -> None:
        await self.connection.send(to_json({"type": kind, **fields}).decode())

    async def frame(self) -> dict[str, Any]:
        """The next frame. Raises `ConnectionClosed` when there is none."""
        async with asyncio.timeout(PATIENCE_S):
            return dict(from_json(await self.connection.recv()))

    async def frames(self, count: int) -> list[dict[str, Any]]:
        return [await self.frame() for _ in range(count)]

    async def asked(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a frame; the next one that comes."""
        await self.send(kind, **fields)
        return await self.frame()

    async def closed(self) -> tuple[int | None, str]:
        """Read until the close; its code and reason."""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionClosed):
                while True:
                    await self.connection.recv()
        return self.connection.close_code, self.connection.close_reason or ""


async def next_events(source: AsyncIterator[ServerSentEvent], count: int) -> list[dict[str, Any]]:
    """The next `count` events of an SSE stream, decoded. Fails when they do not come."""
    events: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(events) < count:
            event = await anext(source)
            data = from_json(event.data)
            assert (event.id, event.event) == (data["id"], data["type"])
            events.append(data)
    return events


async def all_events(source: AsyncIterator[ServerSentEvent]) -> list[dict[str, Any]]:
    """All events of an SSE stream that ends."""
    async with asyncio.timeout(PATIENCE_S):
        return [from_json(event.data) async for event in source]


@asynccontextmanager
async def live_on(url: str, tasks: Iterable[Task[Any, Any]] = (), **options: Any) -> AsyncIterator[Live]:
    """The API with the given tasks on the server at `url`; a worker runs beside it."""
    async with AsyncExitStack() as stack:
        keys_file, keys = stack.enter_context(api_keys())
        app = app_on(url, keys_file, tasks, **{"shutdown_grace_s": 0, **options})
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server = await stack.enter_async_context(serving(app, listening))
        await stack.enter_async_context(app.state.engine.worker())
        yield Live(app, server, f"127.0.0.1:{listening.getsockname()[1]}", keys)


@asynccontextmanager
async def serving(app: FastAPI, listening: socket.socket) -> AsyncIterator[uvicorn.Server]:
    """A uvicorn server of `app`, which has started, until the end of the block."""
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", ws="websockets-sansio")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve([listening]))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not server.started:
                await asyncio.sleep(0)
        yield server
    finally:
        app.state.shutdown.begin()
        server.should_exit = True
        async with asyncio.timeout(PATIENCE_S):
            await running

"""Ways to call an application in tests: one message at a time, or through a real server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

Headers = Iterable[tuple[bytes, bytes]]


def http_scope(method: str = "GET", path: str = "/", headers: Headers = ()) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": list(headers),
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }


def websocket_scope(path: str = "/ws", headers: Headers = (), *, can_answer: bool = True) -> dict[str, Any]:
    extensions = {"websocket.http.response": {}} if can_answer else {}
    return {**http_scope("GET", path, headers), "type": "websocket", "subprotocols": [], "extensions": extensions}


async def call(app: Any, scope: dict[str, Any], *incoming: dict[str, Any]) -> list[dict[str, Any]]:
    """Everything that `app` sends when it is handed `incoming`, message by message."""
    waiting = list(incoming)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return waiting.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[str]:
    """`host:port` of a real server that runs `app` until the block ends."""
    # The socket listens before the server starts, so that nobody has to wait until it has.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="websockets-sansio")
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve([listening]))
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await asyncio.wait_for(running, 10)

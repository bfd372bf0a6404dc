"""A model server that speaks the OpenAI-compatible protocol over real HTTP and answers as it is told.

In the process of a test:

    async with ModelServer() as server:
        server.script(Refuse(429, headers={"retry-after": "2"}), Reply("Hello"))   # one for each chat request
        ... NIGHTSHIFT_LLM_BASE_URL = server.base_url, NIGHTSHIFT_LLM_MODEL = server.model ...
        server.requests[0].body

When the script is used up, `default_reply` answers: an echo, or the smallest JSON that fits the schema asked for. A
gated reply waits before each chunk for `server.gate.let(1)`. As a process of its own:

    python -m tests.fakes.model_server --port 9000 [--api-key KEY] [--delay-s 0.01]

prints its base URL, and takes `POST /control/script` (`{"script": [{"kind": "reply", ...}]}`, see `model_replies`),
`POST /control/let` (`{"count": 1}`), `GET /control/requests`; each answers with the requests so far.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import uvicorn

from tests.fakes.model_replies import (
    Behaviour,
    Raw,
    Refuse,
    Reply,
    Silence,
    Tool,
    chunks,
    default_reply,
    embeddings,
    error_body,
    from_json,
    whole,
)

__all__ = ["Gate", "ModelServer", "Raw", "Refuse", "Reply", "Request", "Silence", "Tool"]

Script = Behaviour | Callable[["Request"], Behaviour]


@dataclass
class Request:
    """A request as it came in. `left`: the client went away before the answer was complete."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    left: bool = False


class Gate:
    """Lets chunks out one by one."""

    def __init__(self) -> None:
        self._passes = 0
        self._changed = asyncio.Event()

    def let(self, count: int = 1) -> None:
        """Let so many more chunks pass."""
        self._passes += count
        self._changed.set()

    def open(self) -> None:
        """Let everything pass from now on."""
        self.let(10**9)

    async def passed(self) -> None:
        """Wait for a pass and use it up."""
        while self._passes == 0:
            self._changed.clear()
            await self._changed.wait()
        self._passes -= 1


class ModelServer:
    """The server; an async context manager. `api_key`: others are refused with 401. `models`: others with 404."""

    def __init__(
        self, *, api_key: str | None = None, models: Sequence[str] = (), delay_s: float = 0.0, port: int = 0
    ) -> None:
        self.model = models[0] if models else "fake-model"
        self.requests: list[Request] = []
        self.gate = Gate()
        self.open_now = 0
        self.open_most = 0
        self.connections: set[tuple[str, int]] = set()
        self._api_key = api_key
        self._models = models
        self._delay_s = delay_s
        self._script: deque[Script] = deque()
        self._embeddings: deque[Behaviour] = deque()
        self._changed = asyncio.Event()
        # With the protocol named: else asyncio does not turn on TCP_NODELAY, and small writes are held back for 40 ms.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        config = uvicorn.Config(self, log_config=None, log_level=None, lifespan="off", ws="none", backlog=2048)
        self._server = uvicorn.Server(config)

    @property
    def base_url(self) -> str:
        """What goes into NIGHTSHIFT_LLM_BASE_URL."""
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def script(self, *behaviours: Script) -> None:
        """Answer the next chat requests so, one each. A function is given the request."""
        self._script.extend(behaviours)

    def script_embeddings(self, *behaviours: Behaviour) -> None:
        """Answer the next embedding requests so; otherwise each text gets its `vector_of`."""
        self._embeddings.extend(behaviours)

    async def until(self, condition: Callable[[ModelServer], bool]) -> None:
        """Wait until the condition holds; it is looked at whenever a request comes, ends or sends a chunk."""
        async with asyncio.timeout(10):
            while not condition(self):
                self._changed.clear()
                await self._changed.wait()

    async def __aenter__(self) -> Self:
        self._server.config.load()
        self._server.lifespan = self._server.config.lifespan_class(self._server.config)
        await self._server.startup(sockets=[self._socket])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # uvicorn's own shutdown sleeps; here nothing is worth waiting for.
        state = self._server.server_state
        for listener in self._server.servers:
            listener.close()
        for task in list(state.tasks):
            task.cancel()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        for connection in list(state.connections):
            connection.transport.abort()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """The ASGI application."""
        self.connections.add(tuple(scope["client"]))
        exchange = _Exchange(receive, send)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        request = Request(scope["path"], headers, await exchange.read_json())
        if request.path.startswith("/control/"):
            return await self._control(request, exchange)
        self.requests.append(request)
        self._count(1)
        try:
            await self._answer(request, exchange)
        finally:
            request.left = exchange.left
            self._count(-1)
            exchange.close()

    def _count(self, change: int) -> None:
        self.open_now += change
        self.open_most = max(self.open_most, self.open_now)
        self._changed.set()

    async def _answer(self, request: Request, exchange: _Exchange) -> None:
        if refusal := self._refusal(request):
            await exchange.send_json(error_body(refusal), refusal.status, refusal.headers)
        elif request.path == "/v1/models":
            models = [{"id": name, "object": "model"} for name in self._models or [self.model]]
            await exchange.send_json({"object": "list", "data": models})
        elif request.path == "/v1/embeddings" and not self._embeddings:
            await exchange.send_json(embeddings(request.body["input"], request.body["model"]))
        elif request.path == "/v1/embeddings":
            await self._behave(self._embeddings.popleft(), request, exchange)
        else:
            await self._behave(self._next(request), request, exchange)

    def _refusal(self, request: Request) -> Refuse | None:
        body = request.body
        if self._api_key and request.headers.get("authorization") != f"Bearer {self._api_key}":
            return Refuse(401, f"Incorrect API key provided: {request.headers.get('authorization')}", "invalid_api_key")
        if request.path not in ("/v1/chat/completions", "/v1/embeddings", "/v1/models"):
            return Refuse(404, f"Unknown request URL: {request.path}", "unknown_url")
        if self._models and body.get("model", self.model) not in self._models:
            return Refuse(404, f"The model `{body['model']}` does not exist", "model_not_found")
        if request.path == "/v1/chat/completions" and not body.get("messages"):
            return Refuse(400, "Invalid 'messages': empty array.", "empty_array")
        if "stream_options" in body and not body.get("stream"):
            return Refuse(400, "The 'stream_options' parameter is only allowed when 'stream' is enabled.")
        return None

    def _next(self, request: Request) -> Behaviour:
        if not self._script:
            return replace(default_reply(request.body), delay_s=self._delay_s)
        step = self._script.popleft()
        return step(request) if callable(step) else step

    async def _behave(self, behaviour: Behaviour, request: Request, exchange: _Exchange) -> None:
        if isinstance(behaviour, Refuse):
            await exchange.send_json(error_body(behaviour), behaviour.status, behaviour.headers)
        elif isinstance(behaviour, Raw):
            headers = {"content-type": behaviour.content_type} | behaviour.headers
            await exchange.send(behaviour.body.encode(), behaviour.status, headers)
        elif isinstance(behaviour, Silence):
            await exchange.gone.wait()
        elif request.body.get("stream"):
            await self._stream(behaviour, request, exchange)
        elif await self._may_go_on(behaviour, exchange):
            await exchange.send_json(whole(behaviour, request.body["model"]))

    async def _stream(self, reply: Reply, request: Request, exchange: _Exchange) -> None:
        usage = bool((request.body.get("stream_options") or {}).get("include_usage"))
        await exchange.start(200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})
        for number, data in enumerate(chunks(reply, request.body["model"], include_usage=usage)):
            if reply.cut_after == number:
                return  # Without the end of the body: uvicorn closes the connection.
            if reply.end_after == number:
                await exchange.end()
                return
            if not await self._may_go_on(reply, exchange):
                return
            await exchange.event(reply.bad_chunk if number == reply.bad_chunk_at else data)
            self._changed.set()
        if reply.done:
            await exchange.event("[DONE]")
        await exchange.end()

    async def _may_go_on(self, reply: Reply, exchange: _Exchange) -> bool:
        """Wait for the gate and the model's time; False when the client went away meanwhile."""
        if reply.delay_s:
            await asyncio.sleep(reply.delay_s)
        if reply.gated:
            await exchange.unless_gone(self.gate.passed())
        return not exchange.gone.is_set()

    async def _control(self, request: Request, exchange: _Exchange) -> None:
        if request.path == "/control/script":
            self.script(*(from_json(item) for item in request.body["script"]))
        elif request.path == "/control/let":
            self.gate.let(request.body.get("count", 1))
        kept = [{"path": item.path, "body": item.body, "left": item.left} for item in self.requests]
        await exchange.send_json({"requests": kept, "open": self.open_now})
        exchange.close()


class _Exchange:
    """One request and its answer, over ASGI."""

    def __init__(self, receive: Any, send: Any) -> None:
        self._receive = receive
        self._send = send
        self._complete = False
        self._watcher: asyncio.Task[None] | None = None
        self.gone = asyncio.Event()

    @property
    def left(self) -> bool:
        return self.gone.is_set() and not self._complete

    async def read_json(self) -> dict[str, Any]:
        body, more = b"", True
        while more:
            message = await self._receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self._watcher = asyncio.create_task(self._watch())
        return json.loads(body) if body else {}

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone.set()

    async def unless_gone(self, awaitable: Any) -> None:
        work, gone = asyncio.ensure_future(awaitable), asyncio.ensure_future(self.gone.wait())
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        work.cancel()
        gone.cancel()

    async def start(self, status: int, headers: dict[str, str]) -> None:
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def event(self, data: str) -> None:
        chunk = f"data: {data}\n\n".encode()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end(self) -> None:
        self._complete = not self.gone.is_set()
        await self._send({"type": "http.response.body", "body": b""})

    async def send(self, body: bytes, status: int, headers: dict[str, str]) -> None:
        await self.start(status, headers | {"content-length": str(len(body))})
        self._complete = not self.gone.is_set()
        await self._send({"type": "http.response.body", "body": body})

    async def send_json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        await self.send(json.dumps(value).encode(), status, {"content-type": "application/json"} | (headers or {}))

    def close(self) -> None:
        if self._watcher:
            self._watcher.cancel()


async def _serve(port: int, api_key: str | None, delay_s: float) -> None:
    async with ModelServer(port=port, api_key=api_key, delay_s=delay_s) as server:
        print(server.base_url, flush=True)
        await asyncio.Event().wait()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A fake OpenAI-compatible model server.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--api-key")
    parser.add_argument("--delay-s", type=float, default=0.0, help="the model's time for each chunk")
    options = parser.parse_args()
    asyncio.run(_serve(options.port, options.api_key, options.delay_s))


if __name__ == "__main__":
    main()

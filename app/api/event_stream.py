"""Server-sent events (WHATWG HTML, "Server-sent events") as bytes, for as long as client, service and credentials last.

FastAPI's own way costs 73 to 95 us an event, this one 8. A stream ends when its source does, and before that when the
client leaves, falls behind or takes nothing for 30 s, when its credentials expire, and when the service stops: uvicorn
waits for open answers, so they must not stay open. Every end but the first is no end for the client: it comes again by
itself and names the last id it saw.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from loguru import logger
from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api.lifecycle import Shutdown
from app.api.problems import STORE_ERRORS
from app.api.transport import CLOSE_GRACE_S, SEND_TIMEOUT_S, STOP_GRACE_S, abort, seconds_until
from app.engine.events import FINAL_TYPES, PAGE, Event, EventLog, Start, event_key
from app.engine.listeners import Listener, SlowListener
from app.telemetry.metrics import SLOW_CLIENTS_CLOSED, STREAM_CLIENTS

EVENT_STREAM = "text/event-stream"
KEEP_ALIVE_S = 15.0
"""Proxies close what is silent for a minute, some sooner."""
KEEP_ALIVE = b": keep-alive\n"
HEAD = b"retry: 2000\n"
"""How long a browser waits before it comes again, in ms. Neither line is followed by an empty one, which some readers
take for the end of an event without data."""

Chunks = AsyncGenerator[bytes, None]


@dataclass(frozen=True, slots=True)
class Place:
    """A channel, and the stream behind it."""

    channel: str
    stream: str


def encoded(event: Event) -> bytes:
    """An event on the wire. Its text is one line."""
    return f"id: {event.id}\nevent: {event.type}\ndata: {event.text}\n\n".encode()


async def stored(log: EventLog, place: Place, start: Start) -> Chunks:
    """All that the log has, then the end."""
    yield _head(place, start)
    async for chunk in _rest(log, place, start.last_id):
        yield chunk


async def followed(
    log: EventLog, place: Place, start: Start, listener: Listener, is_over: Callable[[], Awaitable[bool]]
) -> Chunks:
    """What a listener of the place gets, until `is_over`: asked after a final event, and when nothing came for 15 s."""
    yield _head(place, start)
    last_id = start.last_id
    while True:
        events = await _next(listener)
        if events:
            last_id = events[-1].id
            yield b"".join(map(encoded, events))
        else:
            yield KEEP_ALIVE
        if (not events or events[-1].type in FINAL_TYPES) and await is_over():
            break
    # The subscription may have been lost just then; the log has what was missed.
    async for chunk in _rest(log, place, last_id):
        yield chunk


class EventStream(Response):
    """An answer that sends `chunks` until one of the ends that the module tells of. It closes `listener`.

    Who comes while the service stops gets a stream that ends at once, and comes again; a browser that is answered
    with an error status never would.
    """

    media_type = EVENT_STREAM

    def __init__(
        self, chunks: Chunks, *, shutdown: Shutdown, expires_at: datetime | None, listener: Listener | None = None
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "vary": "accept", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks = chunks
        self._shutdown = shutdown
        self._expires_at = expires_at
        self._listener = listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the client."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with STREAM_CLIENTS.labels("sse").track_inprogress():
                grace_s = await self._serve(receive, send)
        finally:
            if self._listener is not None:
                self._listener.close()
        if grace_s is not None:
            await _finish(receive, send, grace_s)

    async def _serve(self, receive: Receive, send: Send) -> float | None:
        """Send until an end. Returns how long the client may take to take the last of it; None: it is gone."""
        loop = asyncio.get_running_loop()
        sending = loop.create_task(self._send(send))
        leaving = loop.create_task(_gone(receive))
        stopping = loop.create_task(self._shutdown.wait())
        tasks = {sending, leaving, stopping}
        over = set() if self._listener is None else {self._listener.over}
        awaited: set[asyncio.Future[Any]] = {*tasks, *over}
        try:
            done, _ = await asyncio.wait(
                awaited, timeout=seconds_until(self._expires_at), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if leaving in done:
            return None
        if sending in done:
            return await sending
        if over & done:
            SLOW_CLIENTS_CLOSED.labels("sse").inc()
        return STOP_GRACE_S if stopping in done else CLOSE_GRACE_S

    async def _send(self, send: Send) -> float:
        try:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except (TimeoutError, SlowListener) as error:
            logger.debug("a client of an event stream is too slow: {}", error)
            SLOW_CLIENTS_CLOSED.labels("sse").inc()
            return 0.0 if isinstance(error, TimeoutError) else CLOSE_GRACE_S
        except STORE_ERRORS as error:
            # The client comes again and reads on behind the last id that it saw.
            logger.warning("an event stream ends early, Redis cannot be used: {}", error)
        return CLOSE_GRACE_S


async def _finish(receive: Receive, send: Send, grace_s: float) -> None:
    try:
        async with asyncio.timeout(grace_s):
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except TimeoutError:
        abort(receive)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _next(listener: Listener) -> list[Event]:
    """The next events, or none after 15 s."""
    try:
        async with asyncio.timeout(KEEP_ALIVE_S):
            return [item for item in await listener.get() if isinstance(item, Event)]
    except TimeoutError:
        return []


async def _rest(log: EventLog, place: Place, last_id: str) -> Chunks:
    position = event_key(last_id)
    while True:
        events, _ = await log.read_on(place.stream, place.channel, position)
        if events:
            position = events[-1].key
            yield b"".join(map(encoded, events))
        if len(events) < PAGE:
            return


def _head(place: Place, start: Start) -> bytes:
    if not start.gap:
        return HEAD
    gap = {"type": "gap", "channel": place.channel, "last_event_id": start.last_id}
    return HEAD + b"event: gap\ndata: " + to_json(gap) + b"\n\n"

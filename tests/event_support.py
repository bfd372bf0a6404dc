"""Events for tests without a worker: appended and published by the engine's own Lua, to any stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from pydantic_core import to_json
from redis.asyncio import Redis

from app.engine.events import Event
from app.engine.listeners import Listener
from app.engine.service import Engine
from app.store.assembly import assemble_text
from app.store.scripts import limits
from tests.support import PATIENCE_S, engine_on

_APPEND = """
for at = 2, #ARGV do emit({ K.events .. ARGV[1] }, 'note', 't 1', ARGV[at]) end
publish(now())
"""


async def append(redis: Redis, stream: str, numbers: Iterable[int], *, padding: int = 0) -> None:
    """Append a `note {n}` for each number, all in one script."""
    payloads = [to_json({"n": number, "x": "x" * padding} if padding else {"n": number}) for number in numbers]
    await redis.eval(assemble_text(_APPEND, limits()), 0, stream, *payloads)


@asynccontextmanager
async def listening_on(url: str) -> AsyncIterator[Engine]:
    """An engine whose hub runs."""
    async with engine_on(url) as engine, engine.listening():
        yield engine


async def take(listener: Listener, count: int) -> list[Event]:
    """The next `count` events of a listener, in order; fails when they do not come, or more come with them."""
    events: list[Event] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(events) < count:
            events += [item for item in await listener.get() if isinstance(item, Event)]
    assert len(events) == count
    return events


def numbers_of(events: Iterable[Event]) -> list[int]:
    return [event.data()["n"] for event in events]

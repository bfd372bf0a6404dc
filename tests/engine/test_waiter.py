"""A worker that sleeps is woken by the enqueue, and its claim has been sent ahead."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from app.engine.service import Engine
from app.engine.submissions import Submission
from app.engine.waiter import Waiter
from app.store import keys
from app.store.connection import connect
from tests.engine.test_worker import TASKS
from tests.support import PATIENCE_S, engine_on

LEASE_MS = 10_000


class Sleeper:
    """A waiter and what it has heard."""

    def __init__(self, engine: Engine, waiting: Redis, room: int) -> None:
        self.heard: asyncio.Queue[tuple[list[str], list[str]]] = asyncio.Queue()
        self.waiter = Waiter(waiting, engine.scripts, "sleeper", LEASE_MS, room=lambda: room, on_woken=self._on_woken)

    def _on_woken(self, now_ms: int, rows: list[list[bytes]], messages: list[str]) -> None:
        self.heard.put_nowait(([row[0].decode() for row in rows], messages))

    async def next(self) -> tuple[list[str], list[str]]:
        """Ids that were claimed, and messages."""
        return await asyncio.wait_for(self.heard.get(), PATIENCE_S)


@asynccontextmanager
async def sleeping(engine: Engine, url: str, room: int = 1) -> AsyncIterator[Sleeper]:
    """A worker that sleeps on the queue `default`, its waiter blocked."""
    waiting = connect(url, command_timeout_s=20.0, max_connections=1)
    sleeper = Sleeper(engine, waiting, room)
    await engine.scripts.claim("sleeper", LEASE_MS, 1, [("default", 1)])
    task = asyncio.create_task(sleeper.waiter.run())
    await sleeper.waiter.turn()
    await sleeper.next()
    yield sleeper
    task.cancel()
    await asyncio.wait({task})
    await waiting.aclose()


async def enqueue(engine: Engine, count: int = 1) -> list[str]:
    accepted = await engine.tasks.enqueue_many([Submission("test.double", {"n": 1})] * count, user_id="ada")
    return [item.task_id for item in accepted]


async def test_the_message_that_wakes_a_worker_brings_the_task(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, sleeping(engine, redis_url) as sleeper:
        ids = await enqueue(engine)
        assert await sleeper.next() == (ids, ["default"])
        record = await engine.tasks.get(ids[0], user_id="ada")
    assert (record.status, record.attempt) == ("STARTED", 1)


async def test_one_message_brings_one_task_however_many_there_are(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, sleeping(engine, redis_url) as sleeper:
        ids = await enqueue(engine, 3)
        claimed, messages = await sleeper.next()
        assert len(claimed) == 1
        assert claimed[0] in ids
        assert messages == ["default"]
        assert await engine.redis.llen(keys.wake("sleeper")) == 0


async def test_a_worker_without_sure_room_hears_the_message_and_claims_nothing(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, sleeping(engine, redis_url, room=0) as sleeper:
        ids = await enqueue(engine)
        assert await sleeper.next() == ([], ["default"])
        assert (await engine.tasks.get(ids[0], user_id="ada")).status == "PENDING"


async def test_a_server_that_lost_its_scripts_is_given_the_claim_again(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, sleeping(engine, redis_url) as sleeper:
        await engine.redis.execute_command("SCRIPT FLUSH")
        ids = await enqueue(engine)
        assert await sleeper.next() == (ids, ["default"])


async def test_a_cancellation_is_heard(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, sleeping(engine, redis_url) as sleeper:
        ids = await enqueue(engine)
        await sleeper.next()
        await engine.tasks.cancel(ids[0], user_id="ada")
        assert await sleeper.next() == ([], [f"!{ids[0]}"])

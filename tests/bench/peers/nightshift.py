"""Nightshift's engine, with one lane: status, events and results all on, as in the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.lane import LaneSettings
from app.engine.registry import Catalogue, task
from app.engine.service import Engine, open_engine
from app.engine.submissions import Submission
from app.settings import load_settings
from app.store import keys
from app.telemetry import configure_logging
from tests.bench.peers.contract import TALLY, Peer, main

USER = "bench"
MAX_DEPTH = 10_000_000


class Nothing(BaseModel):
    """No parameters."""


class Sent(BaseModel):
    """When the task was enqueued, on the machine's monotonic clock."""

    sent_ns: int


@task("bench.noop")
async def noop(ctx: TaskContext, params: Nothing) -> None:
    """Do nothing."""
    TALLY.noop()


@task("bench.stamp")
async def stamp(ctx: TaskContext, params: Sent) -> None:
    """Note how long it took to get here."""
    TALLY.stamp(params.sent_ns)


@asynccontextmanager
async def bench_engine(url: str, concurrency: int) -> AsyncIterator[Engine]:
    """The engine on the server at `url`. It logs warnings only, as the peers do."""
    configure_logging("WARNING")
    lanes = {keys.DEFAULT_QUEUE: LaneSettings(concurrency)}
    settings = load_settings(_env_file=None, redis_url=url, queue_max_depth=MAX_DEPTH)
    async with open_engine(settings, Catalogue((noop, stamp), lanes), lanes) as engine:
        yield engine


class Nightshift(Peer):
    """Batches of 1,000 in one script call."""

    has_batches = True

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        async with bench_engine(self.url, 32) as self.engine:
            yield

    async def put(self) -> None:
        await self.engine.tasks.enqueue(Submission("bench.noop"), user_id=USER)

    async def put_stamp(self, sent_ns: int) -> None:
        await self.engine.tasks.enqueue(Submission("bench.stamp", {"sent_ns": sent_ns}), user_id=USER)

    async def put_batch(self, count: int) -> None:
        await self.engine.tasks.enqueue_many([Submission("bench.noop") for _ in range(count)], user_id=USER)

    async def unfinished(self, accepted: int) -> int:
        return int(await self.engine.redis.zcard(keys.queue(keys.DEFAULT_QUEUE)))

    async def work(self, concurrency: int) -> None:
        async with bench_engine(self.url, concurrency) as engine, engine.worker():
            await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    main(Nightshift)

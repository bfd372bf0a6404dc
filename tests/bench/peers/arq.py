"""Stock arq, as its own worker runs it; `NIGHTSHIFT_BENCH_POLL_S` sets its poll delay (0.5 s by default)."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.constants import default_queue_name
from arq.worker import Worker, func

from tests.bench.peers.contract import TALLY, Peer, main


async def noop(ctx: dict[Any, Any]) -> None:
    TALLY.noop()


async def stamp(ctx: dict[Any, Any], sent_ns: int) -> None:
    TALLY.stamp(sent_ns)


class Arq(Peer):
    """arq has no batches."""

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        self.pool = await create_pool(RedisSettings.from_dsn(self.url))
        try:
            yield
        finally:
            await self.pool.aclose()

    async def put(self) -> None:
        await self.pool.enqueue_job("noop")

    async def put_stamp(self, sent_ns: int) -> None:
        await self.pool.enqueue_job("stamp", sent_ns)

    async def unfinished(self, accepted: int) -> int:
        return int(await self.pool.zcard(default_queue_name))

    async def work(self, concurrency: int) -> None:
        worker = Worker(
            functions=[func(noop), func(stamp)],
            redis_settings=RedisSettings.from_dsn(self.url),
            max_jobs=concurrency,
            poll_delay=float(os.environ.get("NIGHTSHIFT_BENCH_POLL_S", "0.5")),
            handle_signals=False,
        )
        await worker.async_run()


if __name__ == "__main__":
    main(Arq)

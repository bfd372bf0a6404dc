"""taskiq with the list queue of taskiq-redis, its fastest broker, and the result backend of the same package."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from taskiq.api import run_receiver_task
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

from tests.bench.peers.contract import TALLY, Peer, main

QUEUE = "taskiq"
RESULTS = "result"


async def noop() -> None:
    TALLY.noop()


async def stamp(sent_ns: int) -> None:
    TALLY.stamp(sent_ns)


class Taskiq(Peer):
    """taskiq has no batches."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.results: RedisAsyncResultBackend[None] = RedisAsyncResultBackend(
            url, result_ex_time=3600, prefix_str=RESULTS
        )
        self.broker = ListQueueBroker(url, queue_name=QUEUE).with_result_backend(self.results)
        self.noop = self.broker.register_task(noop, task_name="noop")
        self.stamp = self.broker.register_task(stamp, task_name="stamp")

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        await self.broker.startup()
        try:
            yield
        finally:
            await self.broker.shutdown()

    async def put(self) -> None:
        await self.noop.kiq()

    async def put_stamp(self, sent_ns: int) -> None:
        await self.stamp.kiq(sent_ns)

    async def unfinished(self, accepted: int) -> int:
        # A task leaves the list when it is picked up; its result is the only thing that says it has ended.
        redis = Redis(connection_pool=self.results.redis_pool)
        return accepted - (await redis.dbsize() - await redis.exists(QUEUE))

    async def work(self, concurrency: int) -> None:
        self.broker.is_worker_process = True
        await run_receiver_task(
            self.broker, max_async_tasks=concurrency, max_prefetch=2 * concurrency, run_startup=True
        )


if __name__ == "__main__":
    main(Taskiq)

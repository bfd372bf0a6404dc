"""streaQ."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streaq import Worker

from tests.bench.peers.contract import TALLY, Peer, main


class Streaq(Peer):
    """streaQ enqueues batches in one pipeline."""

    has_batches = True

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._build(32)

    def _build(self, concurrency: int) -> None:
        self.worker: Worker[None] = Worker(redis_url=self.url, concurrency=concurrency, handle_signals=False)

        async def noop() -> None:
            TALLY.noop()

        async def stamp(sent_ns: int) -> None:
            TALLY.stamp(sent_ns)

        self.noop = self.worker.task(name="noop")(noop)
        self.stamp = self.worker.task(name="stamp")(stamp)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        async with self.worker:
            yield

    async def put(self) -> None:
        await self.noop.enqueue()

    async def put_stamp(self, sent_ns: int) -> None:
        await self.stamp.enqueue(sent_ns)

    async def put_batch(self, count: int) -> None:
        await self.worker.enqueue_many([self.noop.enqueue() for _ in range(count)])

    async def unfinished(self, accepted: int) -> int:
        return await self.worker.queue_size()

    async def work(self, concurrency: int) -> None:
        self._build(concurrency)
        await self.worker.run_async()


if __name__ == "__main__":
    main(Streaq)

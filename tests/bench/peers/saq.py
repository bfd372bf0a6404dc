"""SAQ with its Redis queue; its throttle of concurrent enqueues is opened to what the benchmark asks for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from saq import Queue, Worker

from tests.bench.peers.contract import TALLY, Peer, main


async def noop(ctx: dict[str, Any]) -> None:
    TALLY.noop()


async def stamp(ctx: dict[str, Any], *, sent_ns: int) -> None:
    TALLY.stamp(sent_ns)


class Saq(Peer):
    """SAQ has no batches: its `map` enqueues one by one."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.queue = Queue.from_url(url, max_concurrent_ops=64)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        await self.queue.connect()
        try:
            yield
        finally:
            await self.queue.disconnect()

    async def put(self) -> None:
        await self.queue.enqueue("noop")

    async def put_stamp(self, sent_ns: int) -> None:
        await self.queue.enqueue("stamp", sent_ns=sent_ns)

    async def unfinished(self, accepted: int) -> int:
        return await self.queue.count("incomplete")

    async def work(self, concurrency: int) -> None:
        await self.queue.connect()
        await Worker(self.queue, functions=[noop, stamp], concurrency=concurrency).start()


if __name__ == "__main__":
    main(Saq)

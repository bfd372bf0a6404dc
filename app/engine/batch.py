"""Micro-batching: what is ready in the same turn of the loop is committed by one script.

A `Batcher` has one commit under way at a time. What arrives meanwhile waits and goes with the next, so batches grow
with the load and a lone item never waits for a timer. Order is kept: of two items, the one submitted first is committed
first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Reply = TypeVar("Reply")

MAX_BATCH_BYTES = 16 * 1024 * 1024
"""A batch is closed when its items weigh more, so that large results do not make one huge command."""


class Batcher(Generic[Item, Reply]):
    """Collects items for `commit`, which gets a list and returns one reply per item, in order.

    `weigh` gives the size of an item in bytes. An error of `commit` goes to every item of its batch.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Item]], Awaitable[Sequence[Reply]]],
        *,
        weigh: Callable[[Item], int],
        max_items: int = 128,
    ) -> None:
        self._commit = commit
        self._weigh = weigh
        self._max_items = max_items
        self._waiting: deque[tuple[Item, asyncio.Future[Reply]]] = deque()
        self._flushing: asyncio.Task[None] | None = None
        self._alone = False

    async def run(self, item: Item) -> Reply:
        """Commit an item and wait for its reply: alone and at once when nothing is under way, else with the next
        batch."""
        if self._alone or self._flushing is not None:
            return await self.submit(item)
        self._alone = True
        try:
            (reply,) = await self._commit([item])
            return reply
        finally:
            self._alone = False
            if self._waiting:
                self._start()

    def submit(self, item: Item) -> asyncio.Future[Reply]:
        """Add an item. The future resolves to its reply; cancelling the future does not take the item back."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._flushing is None and not self._alone:
            self._start()
        return future

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        while self._flushing is not None:
            await asyncio.wait({self._flushing})

    def _start(self) -> None:
        self._flushing = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while self._waiting:
                batch = self._take()
                try:
                    replies = await self._commit([item for item, _ in batch])
                except BaseException as error:
                    _fail(batch, error)
                    if not isinstance(error, Exception):
                        raise
                else:
                    for (_, future), reply in zip(batch, replies, strict=True):
                        if not future.done():
                            future.set_result(reply)
        finally:
            self._flushing = None

    def _take(self) -> list[tuple[Item, asyncio.Future[Reply]]]:
        batch: list[tuple[Item, asyncio.Future[Reply]]] = []
        weight = 0
        while self._waiting and len(batch) < self._max_items and weight < MAX_BATCH_BYTES:
            item, future = self._waiting.popleft()
            weight += self._weigh(item)
            batch.append((item, future))
        return batch


def _fail(batch: Sequence[tuple[object, asyncio.Future[Reply]]], error: BaseException) -> None:
    for _, future in batch:
        if future.done():
            continue
        if isinstance(error, asyncio.CancelledError):
            future.cancel()
        else:
            future.set_exception(error)

"""What is ready together is committed together, in order, and shares no fate it should not share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from app.engine import batch
from app.engine.batch import Batcher


class Commits:
    """Commits that are let through one by one; an item is answered with its square."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.passes = asyncio.Semaphore(0 if held else 1_000)
        self.fail_on: int | None = None

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await self.passes.acquire()
        if self.fail_on in items:
            raise RuntimeError(f"cannot commit {self.fail_on}")
        return [item * item for item in items]


def small(item: int) -> int:
    return 1


async def test_what_is_ready_in_one_turn_goes_in_one_commit() -> None:
    commits = Commits()
    batcher = Batcher(commits, weigh=small)
    assert await asyncio.gather(*(batcher.submit(n) for n in range(5))) == [0, 1, 4, 9, 16]
    assert commits.batches == [[0, 1, 2, 3, 4]]


async def test_what_comes_during_a_commit_goes_with_the_next_in_order() -> None:
    commits = Commits(held=True)
    batcher = Batcher(commits, weigh=small)
    first = batcher.submit(1)
    while not commits.batches:
        await asyncio.sleep(0)
    later = [batcher.submit(n) for n in (2, 3)]
    commits.passes.release()
    assert await first == 1
    later.append(batcher.submit(4))
    commits.passes.release()
    commits.passes.release()
    assert await asyncio.gather(*later) == [4, 9, 16]
    assert [item for group in commits.batches for item in group] == [1, 2, 3, 4]
    assert commits.batches[0] == [1]


async def test_a_batch_has_a_bound_on_its_items_and_on_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_BATCH_BYTES", 10)
    by_count, by_weight = Commits(), Commits()
    counted = Batcher(by_count, weigh=small, max_items=2)
    weighed = Batcher(by_weight, weigh=lambda item: 6)
    await asyncio.gather(*(each.submit(n) for each in (counted, weighed) for n in range(5)))
    assert by_count.batches == [[0, 1], [2, 3], [4]]
    assert by_weight.batches == [[0, 1], [2, 3], [4]]


async def test_an_item_heavier_than_the_bound_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MAX_BATCH_BYTES", 10)
    commits = Commits()
    batcher = Batcher(commits, weigh=lambda item: 100)
    await asyncio.gather(batcher.submit(1), batcher.submit(2))
    assert commits.batches == [[1], [2]]


async def test_an_error_goes_to_its_batch_and_to_no_other() -> None:
    commits = Commits()
    commits.fail_on = 2
    batcher = Batcher(commits, weigh=small, max_items=2)
    replies = await asyncio.gather(*(batcher.submit(n) for n in range(1, 5)), return_exceptions=True)
    assert [str(reply) for reply in replies] == ["cannot commit 2", "cannot commit 2", "9", "16"]
    assert await batcher.submit(5) == 25


async def test_whoever_stops_waiting_holds_up_nobody_and_is_committed_all_the_same() -> None:
    commits = Commits(held=True)
    batcher = Batcher(commits, weigh=small)
    given_up, other = batcher.submit(1), batcher.submit(2)
    while not commits.batches:
        await asyncio.sleep(0)
    given_up.cancel()
    commits.passes.release()
    assert await other == 4
    assert commits.batches == [[1, 2]]


async def test_drain_waits_for_everything() -> None:
    commits = Commits()
    batcher = Batcher(commits, weigh=small, max_items=1)
    futures = [batcher.submit(n) for n in range(3)]
    await batcher.drain()
    assert all(future.done() for future in futures)
    await batcher.drain()

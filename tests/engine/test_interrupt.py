"""A chosen exception comes up inside a coroutine where it awaits, and everything in there behaves as on a
cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from app.engine.interrupt import Interruptible
from app.errors import SoftTimeLimit, TaskCancelled


class Reason(asyncio.CancelledError):
    pass


class Other(asyncio.CancelledError):
    pass


async def start(coroutine: Coroutine[Any, Any, Any]) -> tuple[Interruptible[Any], asyncio.Task[Any]]:
    """Run a coroutine until it awaits something that does not come."""
    inner = Interruptible(coroutine)

    async def outer() -> Any:
        return await inner

    running = asyncio.create_task(outer())
    for _ in range(5):
        await asyncio.sleep(0)
    return inner, running


async def forever() -> None:
    await asyncio.Event().wait()


async def test_without_an_interruption_nothing_changes() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert await Interruptible(work()) == 7

    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    with pytest.raises(KeyError):
        await Interruptible(fail())


async def test_the_reason_comes_up_where_the_coroutine_awaits() -> None:
    inner, running = await start(forever())
    inner.interrupt(Reason("why"))
    with pytest.raises(Reason, match="why"):
        await running
    assert running.cancelling() == 0


async def test_what_is_caught_may_be_followed_by_a_result() -> None:
    async def saves() -> str:
        try:
            await forever()
        except SoftTimeLimit:
            await asyncio.sleep(0)
        return "saved"

    inner, running = await start(saves())
    inner.interrupt(SoftTimeLimit())
    assert await running == "saved"
    assert not running.cancelled()


async def test_except_exception_does_not_swallow_it() -> None:
    async def careless() -> None:
        try:
            await forever()
        except Exception:
            pytest.fail("swallowed")

    inner, running = await start(careless())
    inner.interrupt(SoftTimeLimit())
    with pytest.raises(SoftTimeLimit):
        await running


async def test_a_task_group_ends_its_children_and_passes_it_on() -> None:
    ended: list[str] = []

    async def child(name: str) -> None:
        try:
            await forever()
        finally:
            ended.append(name)

    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            for name in ("a", "b"):
                group.create_task(child(name))
            await forever()

    inner, running = await start(parent())
    inner.interrupt(TaskCancelled("stop"))
    with pytest.raises(TaskCancelled, match="stop"):
        await running
    assert sorted(ended) == ["a", "b"]


async def test_an_error_of_a_task_group_beside_the_reason_is_not_lost() -> None:
    async def fails_when_cancelled() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            raise KeyError("x") from None

    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails_when_cancelled())
            await forever()

    inner, running = await start(parent())
    inner.interrupt(Reason())
    with pytest.raises(BaseExceptionGroup) as caught:
        await running
    assert caught.value.subgroup(KeyError) is not None


async def test_a_gather_and_a_shield_behave_as_on_a_cancellation() -> None:
    kept = asyncio.create_task(forever())

    async def parent() -> None:
        await asyncio.gather(asyncio.shield(kept), forever())

    inner, running = await start(parent())
    inner.interrupt(Reason())
    with pytest.raises(Reason):
        await running
    assert not kept.done()
    kept.cancel()
    await asyncio.wait({kept})


async def test_a_timeout_around_the_await_does_not_take_it_for_its_own() -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await forever()

    inner, running = await start(bounded())
    inner.interrupt(Reason())
    with pytest.raises(Reason):
        await running


async def test_a_timeout_in_the_cleanup_works() -> None:
    """It would not if the task still counted as being cancelled."""

    async def cleans_up() -> str:
        try:
            await forever()
        except Reason:
            try:
                async with asyncio.timeout(0.01):
                    await forever()
            except TimeoutError:
                return "cleanup timed out"
        return "?"

    inner, running = await start(cleans_up())
    inner.interrupt(Reason())
    assert await running == "cleanup timed out"


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_reasons_in_one_turn_are_one_interruption_and_the_last_one_counts(times: int) -> None:
    """A loop that was blocked fires soft limit, hard limit and cancel at once. A task group in the cleanup must not
    take the left-over ones for cancellations of its own."""

    async def cleans_up() -> list[str]:
        seen = []
        try:
            await forever()
        except asyncio.CancelledError as error:
            seen.append(type(error).__name__)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_fail())
                await forever()
        except* ValueError:
            seen.append("group")
        current = asyncio.current_task()
        assert current is not None
        return [*seen, str(current.cancelling())]

    inner, running = await start(cleans_up())
    for _ in range(times - 1):
        inner.interrupt(Other())
    inner.interrupt(Reason())
    assert await running == ["Reason", "group", "0"]


async def _fail() -> None:
    raise ValueError


async def test_it_may_be_interrupted_again() -> None:
    seen: list[str] = []

    async def deaf() -> None:
        for _ in range(2):
            try:
                await forever()
            except asyncio.CancelledError as error:
                seen.append(type(error).__name__)
        await forever()

    inner, running = await start(deaf())
    for reason in (Reason(), Other(), Reason()):
        inner.interrupt(reason)
        for _ in range(3):
            await asyncio.sleep(0)
    with pytest.raises(Reason):
        await running
    assert seen == ["Reason", "Other"]


async def test_a_cancellation_from_outside_stays_one() -> None:
    _, running = await start(forever())
    running.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await running
    assert type(caught.value) is asyncio.CancelledError
    assert running.cancelled()


async def test_before_its_start_and_after_its_end_nothing_happens() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 1

    inner = Interruptible(work())
    inner.interrupt(Reason())
    assert await inner == 1
    inner.interrupt(Reason())
    await asyncio.sleep(0)

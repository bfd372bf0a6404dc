"""A task may begin when others have ended: told in one call, with how they ended."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from app.engine.context import TaskContext
from app.engine.job import Status
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.engine.waits import Call
from app.errors import InvalidInput, NotFound, PermanentError, RetryableError, TooLarge
from app.store import keys
from tests.simulated import claim, end_of, new_task, put
from tests.support import engine_on, event_of, finished

gate = asyncio.Event()


class Number(BaseModel):
    value: int = 0


@task("test.part", retry=RetryPolicy(max_retries=0))
async def part(ctx: TaskContext, params: Number) -> Number:
    """Negative numbers fail; zero waits for the gate."""
    if params.value < 0:
        raise PermanentError(f"{params.value} is negative")
    if params.value == 0:
        await gate.wait()
    return params


@task("test.summary", retry=RetryPolicy(max_retries=1, base_s=0.01))
async def summary(ctx: TaskContext, params: Number) -> list[Any]:
    ends = await ctx.predecessors()
    if params.value == ctx.attempt:
        raise RetryableError("once more")
    return [(end.result or {}).get("value", end.error and end.error["type"]) for end in ends]


@task("test.starter", retry=RetryPolicy(max_retries=1, base_s=0.01))
async def starter(ctx: TaskContext, params: Number) -> list[str]:
    ids = await ctx.start_many([Call(part, Number(value=n)) for n in (1, -2, 3)], then=Call(summary, Number(value=1)))
    if ctx.attempt == 1:
        raise RetryableError("after the start")
    return ids


TASKS = (part, summary, starter)


@pytest.fixture(autouse=True)
def closed_gate() -> None:
    gate.clear()


def parts(*values: int) -> list[Submission]:
    return [Submission("test.part", {"value": value}) for value in values]


async def result_of(engine: Engine, task_id: str) -> Any:
    return (await finished(engine, task_id)).result


async def test_it_begins_when_all_have_ended_and_sees_how(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        made = await engine.tasks.enqueue_many(parts(5, -1, 0), user_id="ada", then=Submission("test.summary"))
        last = made[-1].task_id
        await finished(engine, made[0].task_id)
        await finished(engine, made[1].task_id)
        record = await engine.tasks.get(last, user_id="ada")
        assert record.status is Status.WAITING
        assert record.waiting_for is not None
        assert record.waiting_for["count"] == 3
        assert record.attempt == 0
        gate.set()
        record = await finished(engine, last)
    assert record.result == [5, "PermanentError", 0]
    assert record.attempt == 1


async def test_it_begins_at_once_when_all_ended_before(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        before = [item.task_id for item in await engine.tasks.enqueue_many(parts(1, 2), user_id="ada")]
        for task_id in before:
            await finished(engine, task_id)
        last = await engine.tasks.enqueue(Submission("test.summary", after=(*before, before[0])), user_id="ada")
        assert await result_of(engine, last.task_id) == [1, 2, 1]


async def test_a_retry_of_it_sees_the_same(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        made = await engine.tasks.enqueue_many(parts(7), user_id="ada", then=Submission("test.summary", {"value": 1}))
        record = await finished(engine, made[-1].task_id)
        assert (record.result, record.attempt) == ([7], 2)
        again = await engine.tasks.retry(record.task_id, user_id="ada", params={"value": 0})
        assert await result_of(engine, again.task_id) == [7]


async def test_a_task_starts_its_children_and_their_continuation_once(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        task_id = (await engine.tasks.enqueue(Submission("test.starter"), user_id="ada")).task_id
        ids = await result_of(engine, task_id)
        record = await finished(engine, ids[-1])
        assert record.result == [1, "PermanentError", 3]
        assert record.parent_id == task_id
        assert await engine.redis.scard(keys.PREFIXES["children"] + task_id) == 4


async def test_a_cancelled_predecessor_has_ended_too(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        made = await engine.tasks.enqueue_many(parts(1), user_id="ada", then=Submission("test.summary"))
        await engine.tasks.cancel(made[0].task_id, user_id="ada")
        async with engine.worker():
            assert await result_of(engine, made[-1].task_id) == ["TaskCancelled"]


async def test_it_may_be_cancelled_while_it_waits(redis_url: str, redis: Redis) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        made = await engine.tasks.enqueue_many(parts(1), user_id="ada", then=Submission("test.summary"))
        await engine.tasks.cancel(made[-1].task_id, user_id="ada")
        stats = await engine.queues.get("default")
        async with engine.worker():
            await finished(engine, made[0].task_id)
        assert (await engine.tasks.get(made[-1].task_id, user_id="ada")).status is Status.CANCELLED
    assert (stats.waiting, stats.ready) == (0, 1)
    assert not await redis.exists(keys.PREFIXES["pending"] + made[-1].task_id)


async def test_past_its_deadline_it_begins_all_the_same(redis_url: str, redis: Redis) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        made = await engine.tasks.enqueue_many(parts(0), user_id="ada", then=Submission("test.summary"))
        last = made[-1].task_id
        await redis.zadd(keys.queue("default"), {last: 2_000_000_000}, xx=True)
        async with engine.worker():
            await event_of(engine, made[0].task_id, "task_started")
            record = await finished(engine, last)
            gate.set()
            await finished(engine, made[0].task_id)
    assert (record.result, record.attempt) == (["WaitTimeout"], 1)


async def test_an_end_in_the_same_moment_is_not_missed(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        (first,) = await engine.tasks.enqueue_many(parts(1), user_id="ada")
        (held,) = await claim(engine.scripts)
        results = await asyncio.gather(
            engine.scripts.finish([end_of(held)]),
            engine.tasks.enqueue(Submission("test.summary", after=(first.task_id,)), user_id="ada"),
        )
        assert [row.id for row in await claim(engine.scripts)] == [results[1].task_id]


async def test_a_key_that_made_a_predecessor_before_is_followed(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        first = await engine.tasks.enqueue(Submission("test.part", {"value": 4}, idempotency_key="once"), user_id="ada")
        await finished(engine, first.task_id)
        again = [Submission("test.part", {"value": 4}, idempotency_key="once"), *parts(6)]
        then = Submission("test.summary", idempotency_key="last")
        made = await engine.tasks.enqueue_many(again, user_id="ada", then=then)
        assert made[0].task_id == first.task_id
        # The continuation is found by its key, though the ids behind which it was to begin are new.
        repeated = await engine.tasks.enqueue_many(again, user_id="ada", then=then)
        assert repeated[-1].task_id == made[-1].task_id
        assert await result_of(engine, made[-1].task_id) == [4, 6]


async def test_what_cannot_be_waited_for_is_refused_and_changes_nothing(redis_url: str, redis: Redis) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        (foreign,) = await engine.tasks.enqueue_many(parts(1), user_id="bob")
        before = await redis.dbsize()
        for after in ("nobody", foreign.task_id):
            with pytest.raises(NotFound, match=f"no task {after}"):
                await engine.tasks.enqueue(Submission("test.summary", after=(after,)), user_id="ada")
        for wrong in (Submission("test.summary", after=("a\nb",)), Submission("test.summary", after=("a",), delay_s=1)):
            with pytest.raises(InvalidInput, match="after"):
                await engine.tasks.enqueue(wrong, user_id="ada")
        assert await redis.dbsize() == before


@pytest.mark.parametrize("own", [{"after": ("first",)}, {"delay_s": 60.0}, {"run_at": datetime.now(UTC)}])
async def test_one_behind_a_batch_says_nothing_else_of_when_it_begins(
    redis_url: str, redis: Redis, own: dict[str, Any]
) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        await put(engine.scripts, new_task("first"))
        before = await redis.dbsize()
        (name,) = own
        with pytest.raises(InvalidInput, match=f"expected no {name}") as caught:
            await engine.tasks.enqueue_many(parts(1), user_id="ada", then=Submission("test.summary", **own))
        assert caught.value.pointer == f"/then/{name}"
        assert await redis.dbsize() == before


async def test_more_predecessors_than_a_batch_may_have_are_refused_and_change_nothing(
    redis_url: str, redis: Redis
) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        many = [Submission("test.summary", after=tuple(f"t{n}" for n in range(1_000)))] * 11
        with pytest.raises(TooLarge, match=r"11000 predecessors .* bound of 10000"):
            await engine.tasks.enqueue_many(many, user_id="ada")
        assert await redis.dbsize() == 0


async def test_requests_with_many_predecessors_do_not_all_share_one_call(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        before = tuple(item.task_id for item in await engine.tasks.enqueue_many(parts(*[1] * 1_000), user_id="ada"))
        enqueue, sizes = engine.scripts.enqueue, []

        async def counted(groups: Any, max_depth: int) -> Any:
            sizes.append(len(groups))
            return await enqueue(groups, max_depth)

        monkeypatch.setattr(engine.scripts, "enqueue", counted)
        one = Submission("test.summary", after=before)
        await asyncio.gather(*(engine.tasks.enqueue(one, user_id="ada") for _ in range(40)))
    assert sum(sizes) == 40
    assert max(sizes) <= 15

"""Tasks that wait for quota: they show it, leave for a long wait at no cost, come back to their place, and are
cancelled."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest
from pydantic import BaseModel

from app.engine import limits as limits_module
from app.engine.context import TaskContext
from app.engine.job import Status
from app.engine.policy import RetryPolicy
from app.engine.queue import Submission
from app.engine.registry import task
from app.engine.service import Engine
from app.store import keys
from tests.simulated import server_ms
from tests.support import engine_on, event_of, finished

ONCE = RetryPolicy(max_retries=0)


class Ask(BaseModel):
    tokens: int = 0
    together: int = 1


@task("test.ask", retry=ONCE)
async def ask(ctx: TaskContext, params: Ask) -> int:
    await ctx.progress(1, 4, "begun")

    async def call() -> None:
        async with ctx.quota("llm:x", tokens=params.tokens):
            pass

    async with asyncio.TaskGroup() as group:
        for _ in range(params.together):
            group.create_task(call())
    return ctx.attempt


@task("test.slot", retry=ONCE)
async def slot(ctx: TaskContext, params: Ask) -> None:
    async with ctx.slot("web"):
        await ctx.emit("held", {})
        await asyncio.Event().wait()


LIMITS = {"llm_requests_per_minute": 10, "llm_tokens_per_minute": 1_000, "quotas": "web=//1", "shutdown_grace_s": 0.0}


@asynccontextmanager
async def service(url: str):
    async with engine_on(url, (ask, slot), **LIMITS) as engine, engine.worker():
        yield engine


async def post(engine: Engine, name: str = "test.ask", **params: Any) -> str:
    return (await engine.tasks.enqueue(Submission(name, params), user_id="ada")).task_id


async def use_up(engine: Engine, tokens: int = 1_000) -> None:
    async with engine.quotas.hold("llm", tokens=tokens):
        pass


async def make_room_and_due(engine: Engine, task_id: str) -> None:
    """As if the minute were over."""
    await engine.redis.delete(keys.PREFIXES["quota"] + "llm")
    await engine.redis.zadd(keys.queue("default"), {task_id: await server_ms(engine.redis)}, xx=True)


@pytest.mark.parametrize("together", [1, 3])
async def test_for_a_long_wait_the_task_leaves_and_it_costs_no_try(redis_url: str, together: int) -> None:
    async with service(redis_url) as engine:
        await use_up(engine)
        task_id = await post(engine, tokens=100, together=together)
        leaving = await event_of(engine, task_id, "task_retrying")
        left = await engine.tasks.get(task_id, user_id="ada")
        (llm, _) = await engine.quotas.stats()
        await make_room_and_due(engine, task_id)
        record = await finished(engine, task_id)
    assert leaving["error"]["type"] == "WaitingForQuota"
    assert "waiting for quota llm:x" in leaving["error"]["message"]
    assert (left.status, left.attempt, left.error) == (Status.PENDING, 0, None)
    assert left.next_attempt_at is not None
    assert 40 < (left.next_attempt_at - left.enqueued_at).total_seconds() < 70
    assert datetime.fromisoformat(leaving["next_attempt_at"]) == left.next_attempt_at
    assert llm.waiting == 1, "its place in line"
    assert (record.status, record.result) == (Status.SUCCESS, 1)


async def test_what_came_later_does_not_pass_a_task_that_left(redis_url: str) -> None:
    async with service(redis_url) as engine:
        await use_up(engine)
        early = await post(engine, tokens=900)
        await event_of(engine, early, "task_retrying")
        # Its time has come, and it is not back yet: what it needs is held back.
        await engine.redis.delete(keys.PREFIXES["quota"] + "llm")
        parked = keys.PREFIXES["quota_parked"] + "llm"
        await engine.redis.zadd(parked, {f"@{early}": await server_ms(engine.redis)}, xx=True)
        late = asyncio.create_task(use_up(engine, 200))
        await until_waiting(engine, 2)
        await make_room_and_due(engine, early)
        assert (await finished(engine, early)).status is Status.SUCCESS
        assert not late.done()
        late.cancel()


async def test_a_wait_in_place_is_shown_without_moving_the_percentage(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_module, "SHOW_S", 0.0)
    monkeypatch.setattr(limits_module, "HOLD_S", 1_000.0)
    monkeypatch.setattr(limits_module, "POLL_S", 0.2)
    async with service(redis_url) as engine:
        await use_up(engine)
        task_id = await post(engine, tokens=100)
        await event_of(engine, task_id, "task_progress", count=2)
        waiting = await engine.tasks.get(task_id, user_id="ada")
        await engine.redis.delete(keys.PREFIXES["quota"] + "llm")
        record = await finished(engine, task_id)
    assert waiting.status is Status.STARTED
    assert waiting.progress is not None
    assert (waiting.progress.percent, waiting.progress.label) == (25.0, "waiting for quota llm:x")
    assert record.progress is not None
    assert (record.progress.current, record.progress.total, record.progress.label) == (1, 4, "begun")


async def test_cancelled_while_it_waits_a_task_leaves_the_line(redis_url: str) -> None:
    async with service(redis_url) as engine:
        holder = await post(engine, "test.slot")
        await event_of(engine, holder, "held")
        waiting = await post(engine, "test.slot")
        await until_waiting(engine, 1, "web")
        await engine.tasks.cancel(waiting, user_id="ada")
        assert (await finished(engine, waiting)).status is Status.CANCELLED
        (_, web) = await engine.quotas.stats()
        assert (web.held, web.waiting) == (1, 0)


async def test_a_slot_that_a_cancelled_task_held_goes_to_the_next_at_once(redis_url: str) -> None:
    async with service(redis_url) as engine:
        first, second = [await post(engine, "test.slot") for _ in range(2)]
        holder = await holder_of(engine, first, second)
        other = second if holder == first else first
        await until_waiting(engine, 1, "web")
        await engine.tasks.cancel(holder, user_id="ada")
        await event_of(engine, other, "held")


async def test_a_stopping_worker_gives_its_slots_back(redis_url: str) -> None:
    async with service(redis_url) as engine:
        await event_of(engine, await post(engine, "test.slot"), "held")
    async with engine_on(redis_url, (), **LIMITS) as engine:
        (_, web) = await engine.quotas.stats()
    assert web.held == 0


async def holder_of(engine: Engine, *ids: str) -> str:
    waits = {asyncio.create_task(event_of(engine, task_id, "held")): task_id for task_id in ids}
    done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()
    return waits[done.pop()]


async def until_waiting(engine: Engine, count: int, key: str = "llm") -> None:
    async with asyncio.timeout(60):
        while {stats.key: stats.waiting for stats in await engine.quotas.stats()}[key] != count:
            await asyncio.sleep(0.005)

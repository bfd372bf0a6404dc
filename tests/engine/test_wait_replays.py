"""A dead letter of a task that has waited: what it waited for in vain is waited for anew, and all that came of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.job import Status, TaskRecord
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.engine.waits import Call
from app.errors import ChildFailed, PermanentError
from tests.support import engine_on, finished

effects: Counter[str] = Counter()
broken: set[str] = set()


class Empty(BaseModel):
    pass


class Name(BaseModel):
    name: str


@task("test.part", retry=RetryPolicy(max_retries=0))
async def part(ctx: TaskContext, params: Name) -> str:
    effects[params.name] += 1
    if params.name in broken:
        raise PermanentError(f"{params.name} is broken")
    return f"{params.name} done"


async def _mark(name: str) -> str:
    effects[name] += 1
    if name in broken:
        raise PermanentError(f"{name} is broken")
    return f"{name} done"


@task("test.journey")
async def journey(ctx: TaskContext, params: Empty) -> list[Any]:
    """Step, call, sleep, event, group, and a step."""
    found: list[Any] = [await ctx.step("first", lambda: _mark("first"))]
    found.append(await ctx.call(part, Name(name="called")))
    await ctx.sleep(timedelta(milliseconds=1))
    found.append(await ctx.wait_event("go", timeout=timedelta(milliseconds=20 if "event" in broken else 60_000)))
    found += await ctx.gather([Call(part, Name(name=name)) for name in ("left", "right")])
    found.append(await ctx.step("last", lambda: _mark("last")))
    return found


@task("test.careful")
async def careful(ctx: TaskContext, params: Empty) -> list[Any]:
    """Goes another way where its child has failed."""
    first = await ctx.step("first", lambda: _mark("first"))
    try:
        second = await ctx.call(part, Name(name="called"))
    except ChildFailed:
        second = await ctx.step("instead", lambda: _mark("instead"))
    return [first, second, await ctx.step("last", lambda: _mark("last"))]


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    effects.clear()
    broken.clear()
    async with engine_on(redis_url, (part, journey, careful)) as running, running.worker():
        yield running


async def failed(engine: Engine, name: str, *events: str) -> str:
    accepted = await engine.tasks.enqueue(Submission(name, {}), user_id="ada")
    for payload in events:
        await engine.inbox.deliver(accepted.task_id, "go", payload, user_id="ada")
    assert (await finished(engine, accepted.task_id)).status is Status.FAILURE
    return accepted.task_id


async def replayed(engine: Engine, task_id: str, *events: str) -> TaskRecord:
    broken.clear()
    made = await engine.dead_letters.replay(task_id, user_id="ada")
    for payload in events:
        await engine.inbox.deliver(made.task_id, "go", payload, user_id="ada")
    return await finished(engine, made.task_id)


WHOLE = ["first done", "called done", "told", "left done", "right done", "last done"]


async def test_what_was_waited_for_is_not_waited_for_again(engine: Engine) -> None:
    broken.add("last")
    record = await replayed(engine, await failed(engine, "test.journey", "told"))
    assert record.result == WHOLE
    assert effects == {"first": 1, "called": 1, "left": 1, "right": 1, "last": 2}
    names = ["first", "call test.part", "sleep", "event go", "gather 2 tasks", "last"]
    assert [step.name for step in record.steps] == names


async def test_a_group_that_failed_is_started_anew(engine: Engine) -> None:
    broken.add("right")
    record = await replayed(engine, await failed(engine, "test.journey", "told"))
    assert record.result == WHOLE
    assert effects == {"first": 1, "called": 1, "left": 2, "right": 2, "last": 1}


async def test_an_event_that_did_not_come_is_waited_for_anew(engine: Engine) -> None:
    broken.add("event")
    record = await replayed(engine, await failed(engine, "test.journey"), "told")
    assert record.result == WHOLE
    assert effects == {"first": 1, "called": 1, "left": 1, "right": 1, "last": 1}


async def test_what_came_of_a_child_that_failed_is_done_anew(engine: Engine) -> None:
    """The replay may go another way behind it, so nothing behind it is taken over."""
    broken.update({"called", "last"})
    record = await replayed(engine, await failed(engine, "test.careful"))
    assert record.result == ["first done", "called done", "last done"]
    assert effects == {"first": 1, "called": 2, "instead": 1, "last": 2}
    assert [step.name for step in record.steps] == ["first", "call test.part", "last"]

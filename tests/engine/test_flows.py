"""Flows in Python: chain, group and map of a task's author."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from pydantic import BaseModel

from app.engine import flows
from app.engine.context import TaskContext
from app.engine.job import Status, TaskRecord
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.engine.waits import Call
from app.errors import ChildFailed, PermanentError, RetryableError
from tests.support import engine_on, finished

effects: Counter[str] = Counter()
running: set[str] = set()
at_once: list[int] = []
"""How many ran, whenever one had begun."""


class Number(BaseModel):
    value: int


class Wanted(BaseModel):
    values: list[int] = [1]
    on_error: str = "fail_fast"
    limit: int | None = None


@pytest.fixture(autouse=True)
def nothing_yet() -> None:
    effects.clear()
    at_once.clear()


@task("test.double", retry=RetryPolicy(max_retries=0))
async def double(ctx: TaskContext, params: Number) -> Number:
    effects[f"{params.value}"] += 1
    running.add(ctx.task_id)
    at_once.append(len(running))
    await asyncio.sleep(0)
    running.discard(ctx.task_id)
    if params.value < 0:
        raise PermanentError(f"{params.value} is negative")
    return Number(value=2 * params.value)


@task("test.text")
async def text(ctx: TaskContext, params: Number) -> str:
    return f"{params.value}"


@task("test.chain", retry=RetryPolicy(base_s=0.01))
async def chained(ctx: TaskContext, params: Wanted) -> str:
    (value,) = params.values
    found = await flows.chain(
        ctx,
        Call(double, Number(value=value)),
        double,
        "test.double",
        lambda result: Call(double, Number(value=result["value"] + 1)),
        text,
    )
    if ctx.attempt == 1:
        raise RetryableError("after the chain")
    return str(found)


@task("test.broken_chain")
async def broken_chain(ctx: TaskContext, params: Wanted) -> None:
    await flows.chain(ctx, Call(text, Number(value=1)), double)


@task("test.group")
async def grouped(ctx: TaskContext, params: Wanted) -> dict[str, int]:
    calls = {f"n{value}": Call(double, Number(value=value)) for value in params.values}
    found = await flows.group(ctx, calls, limit=params.limit)
    return {name: number.value for name, number in found.items()}


@task("test.map")
async def mapped(ctx: TaskContext, params: Wanted) -> list[Any]:
    items = (Number(value=value) for value in params.values)
    found = await flows.map(ctx, double, items, limit=params.limit, on_error=flows.OnError(params.on_error))
    return [str(item) if isinstance(item, ChildFailed) else item.value for item in found]


TASKS = (double, text, chained, broken_chain, grouped, mapped)


async def run(engine: Engine, name: str, **params: Any) -> TaskRecord:
    return await finished(engine, (await engine.tasks.enqueue(Submission(name, params), user_id="ada")).task_id)


async def test_a_chain_hands_each_result_to_the_next_and_is_not_repeated(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.chain", values=[3])
    assert record.result == "50"
    assert record.attempt == 2
    assert effects == {"3": 1, "6": 1, "12": 1, "25": 1}


async def test_a_result_that_is_no_object_cannot_be_handed_on(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.broken_chain")
    assert record.error is not None
    assert "expected an object, got str" in record.error.message


@pytest.mark.parametrize("limit", [None, 1])
async def test_a_group_gives_results_by_name(redis_url: str, limit: int | None) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.group", values=[1, 2, 3], limit=limit)
    assert record.result == {"n1": 2, "n2": 4, "n3": 6}


async def test_a_map_runs_a_task_for_each_and_labels_them(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.map", values=[5, 4, 3], limit=2)
        tree = await engine.trees.read(record.task_id, user_id="ada")
    assert record.result == [10, 8, 6]
    assert [child.record.label for child in tree.root.children] == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["test.group", "test.map"])
async def test_no_more_than_the_limit_run_at_once(redis_url: str, name: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        await run(engine, name, values=list(range(1, 31)))
        assert max(at_once) > 2
        at_once.clear()
        record = await run(engine, name, values=list(range(1, 31)), limit=2)
    assert len(record.result) == 30
    assert max(at_once) <= 2


async def test_a_map_keeps_the_error_policy(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        failed = await run(engine, "test.map", values=[1, -1], on_error="finish")
        collected = await run(engine, "test.map", values=[1, -1], on_error="collect")
    assert failed.status is Status.FAILURE
    assert collected.result[0] == 2
    assert "-1 is negative" in collected.result[1]

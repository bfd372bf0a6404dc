"""Steps happen once: what is stored is not run again, in whichever attempt."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from app.engine.context import TaskContext
from app.engine.job import Status, TaskRecord
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.steps import MAX_STEPS
from app.engine.submissions import Submission
from app.errors import RetryableError
from app.store import keys
from tests.support import engine_on, finished

RETRY = RetryPolicy(max_retries=3, base_s=0.01)
calls: Counter[str] = Counter()


class Page(BaseModel):
    title: str
    words: tuple[int, ...] = ()


class Plan(BaseModel):
    """What to do in each attempt: the names of the steps, `!` before one that fails, `x` at the end to fail after
    it."""

    attempts: list[list[str]]


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


async def effect(name: str) -> str:
    calls[name] += 1
    if name.startswith("!"):
        raise RetryableError(f"{name} failed")
    return f"{name} done"


@task("test.steps", retry=RETRY)
async def steps(ctx: TaskContext, params: Plan) -> list[str]:
    done = []
    for name in params.attempts[ctx.attempt - 1]:
        if name == "x":
            raise RetryableError("after the steps")
        done.append(await ctx.step(name.strip("!"), lambda name=name: effect(name)))
    return done


@task("test.typed", retry=RETRY)
async def typed(ctx: TaskContext, params: Plan) -> list[str]:
    async def page() -> Page:
        return Page(title=f"attempt {ctx.attempt}", words=(1, 2))

    found = await ctx.step("page", page, returns=Page)
    if ctx.attempt == 1:
        raise RetryableError("again")
    return [type(found).__name__, found.title, repr(found.words)]


@task("test.together", retry=RETRY)
async def together(ctx: TaskContext, params: Plan) -> list[str]:
    slow = "slow" if ctx.attempt > 1 else "!slow"
    results = await asyncio.gather(
        ctx.step("slow", lambda: effect(slow)), ctx.step("quick", lambda: effect("quick")), return_exceptions=True
    )
    return [await _or_raise(result) for result in results]


async def _or_raise(result: Any) -> Any:
    if isinstance(result, BaseException):
        raise result
    return result


@task("test.value", retry=RETRY)
async def value(ctx: TaskContext, params: Plan) -> None:
    async def give() -> Any:
        return {"model": Page(title="t"), "tuple": (1,), "nan": math.nan, "large": "x" * 2_000_000}[
            params.attempts[0][0]
        ]

    await ctx.step("value", give)


@task("test.many", retry=RETRY)
async def many(ctx: TaskContext, params: Plan) -> None:
    for number in range(MAX_STEPS + 1):
        await ctx.step(f"step {number}", lambda: effect("many"))


@task("test.large", retry=RETRY)
async def large(ctx: TaskContext, params: Plan) -> list[int]:
    """Steps that are too large to come with a claim."""
    texts = [await ctx.step(name, lambda name=name: effect(name * 90_000)) for name in ("a", "b")]
    if ctx.attempt == 1:
        raise RetryableError("again")
    return [len(text) for text in texts]


TASKS = (steps, typed, together, value, many, large)


async def run(engine: Engine, name: str, attempts: list[list[str]]) -> TaskRecord:
    accepted = await engine.tasks.enqueue(Submission(name, {"attempts": attempts}), user_id="ada")
    return await finished(engine, accepted.task_id)


async def test_a_completed_step_is_not_run_again_by_a_retry(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.steps", [["a", "b", "x"], ["a", "b", "c", "x"], ["a", "b", "c"]])
    assert record.result == ["a done", "b done", "c done"]
    assert calls == {"a": 1, "b": 1, "c": 1}


async def test_a_step_that_failed_is_not_stored_and_runs_again(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.steps", [["a", "!b"], ["a", "b"]])
    assert record.result == ["a done", "b done"]
    assert calls == {"a": 1, "!b": 1, "b": 1}


async def test_a_typed_result_is_the_same_in_the_first_run_and_in_a_replay(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.typed", [])
    assert record.result == ["Page", "attempt 1", "(1, 2)"]


async def test_large_results_are_not_made_again_either(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.large", [])
    assert (record.attempt, record.result) == (2, [90_005, 90_005])
    assert set(calls.values()) == {1}


async def test_steps_in_another_order_fail_the_task_with_both_names(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.steps", [["a", "b", "x"], ["a", "c"]])
    assert (record.status, record.attempt) == (Status.FAILURE, 2)
    assert record.error is not None
    assert record.error.type == "StepOrderChanged"
    assert "was 'b' in an earlier attempt and is 'c' now" in record.error.message
    assert calls == {"a": 1, "b": 1}


async def test_of_steps_at_the_same_time_only_the_failed_one_runs_again(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.together", [])
    assert record.result == ["slow done", "quick done"]
    assert calls == {"!slow": 1, "slow": 1, "quick": 1}


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("model", "returned a Page"),
        ("tuple", "returned a tuple"),
        ("nan", "does not accept"),
        ("large", "exceeds the bound of 1048576 bytes"),
    ],
)
async def test_a_result_that_would_not_come_back_as_it_was_is_refused(
    redis_url: str, kind: str, complaint: str
) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.value", [[kind]])
        stored = await engine.scripts.read_steps(record.task_id)
    assert record.error is not None
    assert complaint in record.error.message
    assert stored == {}


async def test_the_number_of_steps_is_bounded(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        record = await run(engine, "test.many", [])
    assert record.error is not None
    assert f"exceeds the bound of {MAX_STEPS} steps" in record.error.message
    assert calls["many"] == MAX_STEPS


async def test_steps_are_kept_with_names_and_times_and_forgotten_with_the_task(redis_url: str, redis: Redis) -> None:
    async with engine_on(redis_url, TASKS, result_ttl_s=1.0) as engine:
        async with engine.worker():
            record = await run(engine, "test.steps", [["a", "b"]])
        await redis.zadd(keys.PREFIXES["finished"], {record.task_id: 0})
        await engine.sweep()
        assert await redis.exists(keys.steps(record.task_id)) == 0
    assert [(step.number, step.name) for step in record.steps] == [(0, "a"), (1, "b")]
    assert record.started_at is not None
    assert record.finished_at is not None
    assert all(record.started_at <= step.completed_at <= record.finished_at for step in record.steps)

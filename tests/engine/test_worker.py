"""A worker runs what is enqueued: results, failures, retries, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import arq
import pytest
from pydantic import BaseModel

from app.engine import wire
from app.engine import worker as worker_module
from app.engine.context import TaskContext
from app.engine.job import Status
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.engine.submissions import Submission
from app.errors import PermanentError, RetryableError
from app.store import keys
from app.store.connection import arq_redis_settings
from tests.support import PATIENCE_S, engine_on, event_of, finished


class Number(BaseModel):
    n: int = 0


@task("test.double")
async def double(ctx: TaskContext, params: Number) -> Number:
    return Number(n=params.n * 2)


@task("test.flaky", retry=RetryPolicy(max_retries=2, base_s=0.01))
async def flaky(ctx: TaskContext, params: Number) -> int:
    if ctx.attempt <= params.n:
        raise RetryableError(f"attempt {ctx.attempt}")
    return ctx.attempt


@task("test.broken")
async def broken(ctx: TaskContext, params: Number) -> None:
    raise PermanentError("it is broken")


@task("test.forever")
async def forever(ctx: TaskContext, params: Number) -> None:
    await asyncio.Event().wait()


TASKS = (double, flaky, broken, forever)


async def test_a_task_runs_and_its_result_is_kept(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        accepted = await engine.tasks.enqueue(Submission("test.double", {"n": 21}), user_id="ada")
        record = await finished(engine, accepted.task_id)
    assert record.status is Status.SUCCESS
    assert record.result == {"n": 42}
    assert record.attempt == 1


async def test_a_retryable_error_is_tried_again_until_it_passes(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        accepted = await engine.tasks.enqueue(Submission("test.flaky", {"n": 2}), user_id="ada")
        record = await finished(engine, accepted.task_id)
    assert record.status is Status.SUCCESS
    assert record.result == 3


async def test_a_task_that_has_used_its_tries_is_a_dead_letter_with_all_its_errors(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        accepted = await engine.tasks.enqueue(Submission("test.flaky", {"n": 9}), user_id="ada")
        record = await finished(engine, accepted.task_id)
        opened = await engine.dead_letters.get(accepted.task_id, user_id="ada")
    assert record.status is Status.FAILURE
    assert opened.params == {"n": 9}
    assert [past.error["message"] for past in opened.history] == ["attempt 1", "attempt 2"]
    assert opened.letter.error.message == "attempt 3"
    assert "RetryableError: attempt 3" in opened.traceback


async def test_a_permanent_error_fails_at_once(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        accepted = await engine.tasks.enqueue(Submission("test.broken"), user_id="ada")
        record = await finished(engine, accepted.task_id)
    assert (record.status, record.attempt) == (Status.FAILURE, 1)
    assert record.error is not None
    assert record.error.message == "it is broken"


async def test_a_running_task_is_cancelled(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        accepted = await engine.tasks.enqueue(Submission("test.forever"), user_id="ada")
        await event_of(engine, accepted.task_id, "task_started")
        await engine.tasks.cancel(accepted.task_id, user_id="ada")
        record = await finished(engine, accepted.task_id)
    assert record.status is Status.CANCELLED


class RoundedTimer:
    """A timer that says, as uvloop's may by an error of rounding, a moment a little behind the one it fires at."""

    def __init__(self, timer: asyncio.TimerHandle) -> None:
        self.cancel = timer.cancel
        self.cancelled = timer.cancelled
        self._when = timer.when() + 0.005

    def when(self) -> float:
        return self._when


async def test_a_timer_that_fires_before_its_time_does_not_end_the_polling(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "SLOW_POLL_S", 0.03)
    loop = asyncio.get_running_loop()
    call_at = loop.call_at

    def rounded(when: float, call: Callable[..., object], *args: object, **options: object) -> object:
        timer = call_at(when, call, *args, **options)  # type: ignore[arg-type]
        return RoundedTimer(timer) if getattr(call, "__name__", "") == "_tick" else timer

    monkeypatch.setattr(loop, "call_at", rounded)
    # A stock client wakes nobody: only the poll finds its tasks.
    stock = await arq.create_pool(
        arq_redis_settings(redis_url), job_serializer=wire.serializer, job_deserializer=wire.deserializer
    )
    async with engine_on(redis_url, TASKS) as engine, engine.worker():
        for n in range(3):
            job = await stock.enqueue_job("test.double", n=n, _queue_name=keys.QUEUE)
            assert job is not None
            assert await job.result(timeout=PATIENCE_S, poll_delay=0.01) == {"n": n * 2}
    await stock.aclose()

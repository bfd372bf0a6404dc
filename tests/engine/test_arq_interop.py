"""arq stays on the wire: its clients enqueue, wait and abort; its workers drain; both kinds share a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import arq
import pytest
from arq.connections import ArqRedis
from arq.jobs import Job, JobStatus
from arq.worker import Worker as StockWorker
from pydantic import BaseModel
from redis.asyncio import Redis

from app.engine import wire
from app.engine.context import TaskContext
from app.engine.job import Status
from app.engine.policy import RetryPolicy
from app.engine.queue import Filter
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.errors import PermanentError
from app.store import keys
from app.store.connection import arq_redis_settings
from tests.simulated import claim, lapse, server_ms
from tests.support import PATIENCE_S, engine_on, finished

began = asyncio.Event()
go = asyncio.Event()
starts: list[str] = []


@pytest.fixture(autouse=True)
def fresh_events() -> None:
    """Events of the test's own loop."""
    global began, go
    began, go = asyncio.Event(), asyncio.Event()
    starts.clear()


class Pair(BaseModel):
    first: int
    second: int = 10


class Nothing(BaseModel):
    pass


@task("test.add")
async def add_up(ctx: TaskContext, params: Pair) -> int:
    starts.append(ctx.task_id)
    return params.first + params.second


@task("test.add_elsewhere", queue="other")
async def add_elsewhere(ctx: TaskContext, params: Pair) -> int:
    return params.first + params.second


@task("test.broken")
async def broken(ctx: TaskContext, params: Nothing) -> None:
    raise PermanentError("it is broken")


@task("test.waits", retry=RetryPolicy(max_retries=0))
async def waits(ctx: TaskContext, params: Nothing) -> int:
    starts.append(ctx.task_id)
    began.set()
    await go.wait()
    return ctx.attempt


TASKS = (add_up, add_elsewhere, broken, waits)


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    """An engine without a worker."""
    async with engine_on(redis_url, TASKS) as opened:
        yield opened


@pytest.fixture
async def stock(redis_url: str) -> AsyncIterator[ArqRedis]:
    """A stock arq client with the serializer of this project."""
    pool = await arq.create_pool(
        arq_redis_settings(redis_url), job_serializer=wire.serializer, job_deserializer=wire.deserializer
    )
    yield pool
    await pool.aclose()


def job_of(stock: ArqRedis, task_id: str, queue: str = keys.QUEUE) -> Job:
    return Job(task_id, stock, queue, wire.deserializer)


async def result_of(job: Job) -> Any:
    return await job.result(timeout=PATIENCE_S, poll_delay=0.01)


async def enqueue(stock: ArqRedis, *args: Any, **options: Any) -> Job:
    job = await stock.enqueue_job(*args, **options)
    assert job is not None
    return job


async def drain(stock: ArqRedis, *functions: Callable[..., Awaitable[Any]], queue: str = keys.QUEUE) -> None:
    """Let a stock worker work until the queue is empty."""
    named = [arq.func(function, name=f"test.{function.__name__}") for function in functions]
    worker = StockWorker(
        named,  # type: ignore[arg-type]
        redis_pool=stock,
        queue_name=queue,
        burst=True,
        poll_delay=0.01,
        handle_signals=False,
        job_serializer=wire.serializer,
        job_deserializer=wire.deserializer,
    )
    await asyncio.wait_for(worker.async_run(), PATIENCE_S)


# A stock client.


async def test_a_stock_client_enqueues_and_waits(engine: Engine, stock: ArqRedis) -> None:
    async with engine.worker():
        by_name = await enqueue(stock, "test.add", first=1, second=2)
        by_position = await enqueue(stock, "test.add", 5)
        deferred = await enqueue(stock, "test.add", 1, 1, _defer_by=0.05)
        elsewhere = await enqueue(stock, "test.add_elsewhere", 3, _queue_name=keys.queue("other"))
        assert [await result_of(job) for job in (by_name, by_position, deferred, elsewhere)] == [3, 15, 2, 13]
        record = await engine.tasks.get(by_position.job_id, user_id="arq", with_result=True)
    assert (record.status, record.result, record.queue, record.user_id) == (Status.SUCCESS, 15, "default", "arq")


async def test_a_failure_reaches_a_stock_client_as_an_exception(engine: Engine, stock: ArqRedis) -> None:
    async with engine.worker():
        job = await enqueue(stock, "test.broken")
        with pytest.raises(wire.RemoteTaskFailed, match="PermanentError: it is broken"):
            await result_of(job)
        wrong = await enqueue(stock, "test.add", 1, 2, 3)
        with pytest.raises(wire.RemoteTaskFailed, match="3 positional arguments"):
            await result_of(wrong)


async def test_a_stock_client_sees_each_stage_of_a_task(engine: Engine, stock: ArqRedis) -> None:
    queued = await enqueue(stock, "test.waits")
    deferred = await enqueue(stock, "test.add", 1, _defer_by=60)
    assert [await job.status() for job in (queued, deferred)] == [JobStatus.queued, JobStatus.deferred]
    assert await job_of(stock, "nobody").status() is JobStatus.not_found
    info = await queued.info()
    assert info is not None
    assert (info.function, info.kwargs) == ("test.waits", {})
    async with engine.worker():
        async with asyncio.timeout(PATIENCE_S):
            await began.wait()
        assert await queued.status() is JobStatus.in_progress
        assert await queued.result_info() is None
        go.set()
        assert await result_of(queued) == 1
    assert await queued.status() is JobStatus.complete
    result = await queued.result_info()
    assert result is not None
    assert (result.success, result.result, result.function, result.job_try) == (True, 1, "test.waits", 1)
    assert (result.queue_name, result.job_id) == (keys.QUEUE, queued.job_id)
    assert result.start_time <= result.finish_time


async def test_a_task_of_the_api_looks_the_same_to_a_stock_client(engine: Engine, stock: ArqRedis) -> None:
    made = await engine.tasks.enqueue(Submission("test.add", {"first": 1}), user_id="ada")
    job = job_of(stock, made.task_id)
    assert await job.status() is JobStatus.queued
    info = await job.info()
    assert info is not None
    assert (info.function, info.kwargs, info.args) == ("test.add", {"first": 1, "second": 10}, [])
    assert [queued.function for queued in await stock.queued_jobs()] == ["test.add"]
    async with engine.worker():
        assert await result_of(job) == 11


@pytest.mark.parametrize("defer_s", [None, 60])
async def test_a_stock_client_aborts_what_has_not_begun(engine: Engine, stock: ArqRedis, defer_s: int | None) -> None:
    await engine.queues.pause("default")
    job = await enqueue(stock, "test.add", 1, _defer_by=defer_s)
    async with engine.worker():
        assert await job.abort(timeout=PATIENCE_S, poll_delay=0.01) is True
    assert starts == []
    assert (await engine.tasks.get(job.job_id, user_id=None)).status is Status.CANCELLED
    assert await engine.redis.zcard(keys.ABORT) == 0


async def test_a_stock_client_aborts_what_runs_without_a_second_attempt(engine: Engine, stock: ArqRedis) -> None:
    """arq moves the score of a task to be aborted to the front of the queue; a running one's stands in the future."""
    async with engine.worker():
        job = await enqueue(stock, "test.waits")
        async with asyncio.timeout(PATIENCE_S):
            await began.wait()
        assert await job.abort(timeout=PATIENCE_S, poll_delay=0.01) is True
    record = await engine.tasks.get(job.job_id, user_id=None)
    assert (record.status, record.attempt, len(starts)) == (Status.CANCELLED, 1, 1)


async def test_a_cancel_of_ours_is_an_abort_to_a_stock_client(engine: Engine, stock: ArqRedis) -> None:
    job = await enqueue(stock, "test.add", 1)
    await engine.tasks.cancel(job.job_id, user_id=None)
    with pytest.raises(asyncio.CancelledError):
        await result_of(job)


async def test_an_id_may_be_used_again_as_soon_as_its_result_is_gone(engine: Engine, stock: ArqRedis) -> None:
    async with engine.worker():
        assert await result_of(await enqueue(stock, "test.add", 1, _job_id="daily")) == 11
        assert await stock.enqueue_job("test.add", 2, _job_id="daily") is None
        await stock.delete(keys.result("daily"))
        assert await result_of(await enqueue(stock, "test.add", 2, _job_id="daily")) == 12
    page = await engine.tasks.page(Filter(), user_id="arq")
    assert [(record.task_id, record.attempt) for record in page.items] == [("daily", 1)]


async def test_a_task_of_a_stock_client_is_repeated_with_its_positional_arguments(
    engine: Engine, stock: ArqRedis
) -> None:
    async with engine.worker():
        job = await enqueue(stock, "test.add", 4)
        await result_of(job)
        again = await engine.tasks.retry(job.job_id, user_id="arq")
        assert (await finished(engine, again.task_id)).result == 14


async def test_a_task_that_no_worker_has_seen_can_be_read(engine: Engine, stock: ArqRedis) -> None:
    job = await enqueue(stock, "test.add", 1, _defer_by=60)
    record = await engine.tasks.get(job.job_id, user_id="arq")
    assert (record.task, record.status, record.queue) == ("test.add", Status.PENDING, "default")
    assert record.next_attempt_at is not None


async def test_a_ready_task_of_a_stock_client_has_no_time_any_more(engine: Engine, stock: ArqRedis) -> None:
    """Its score is its place then; arq's own client takes it for queued, and no number that is no time is shown."""
    first, second = await enqueue(stock, "test.add", 1), await enqueue(stock, "test.add", 2)
    held = await claim(engine.scripts, want=1)
    left = second if held[0].id == first.job_id else first
    assert await left.status() is JobStatus.queued
    record = await engine.tasks.get(left.job_id, user_id="arq")
    assert (record.status, record.due_at) == (Status.PENDING, None)


# A stock worker.


async def add(ctx: dict[str, Any], first: int, second: int) -> int:
    starts.append(ctx["job_id"])
    return first + second


async def test_a_stock_worker_drains_a_queue_that_our_api_filled(engine: Engine, stock: ArqRedis) -> None:
    async def broken(ctx: dict[str, Any]) -> None:
        raise ValueError("no")

    good = await engine.tasks.enqueue(Submission("test.add", {"first": 1}, priority=3, tags=("a",)), user_id="ada")
    bad = await engine.tasks.enqueue(Submission("test.broken"), user_id="ada")
    await drain(stock, add, broken)
    record = await engine.tasks.get(good.task_id, user_id="ada", with_result=True)
    assert (record.status, record.result, record.attempt, record.tags) == (Status.SUCCESS, 11, 1, ("a",))
    record = await engine.tasks.get(bad.task_id, user_id="ada")
    assert record.status is Status.FAILURE
    assert record.error is not None
    assert (record.error.type, record.error.message) == ("ValueError", "no")
    for task_id, kind in ((good.task_id, "task_complete"), (bad.task_id, "task_failed")):
        # Read twice, it is still one end.
        await engine.tasks.get(task_id, user_id="ada")
        events = await engine.events.read(f"task:{task_id}", f"task:{task_id}")
        assert [event.type for event in events] == ["task_queued", kind]
    stats = await engine.queues.get("default")
    assert (stats.ready, stats.delayed, stats.running) == (0, 0, 0)
    assert await engine.redis.zcard(keys.PREFIXES["finished"]) == 2


async def test_a_task_that_a_stock_worker_aborted_is_cancelled(engine: Engine, redis: Redis) -> None:
    made = await engine.tasks.enqueue(Submission("test.add", {"first": 1}), user_id="ada")
    end = {"t": 1, "f": "test.add", "a": [], "k": {}, "et": 1, "s": False, "st": 2, "ft": 3, "q": "arq:queue"}
    await redis.set(keys.result(made.task_id), wire.serializer({**end, "r": asyncio.CancelledError()}))
    await redis.zrem(keys.QUEUE, made.task_id)
    assert (await engine.tasks.get(made.task_id, user_id="ada")).status is Status.CANCELLED


async def test_a_stock_worker_takes_over_what_a_dead_worker_of_ours_held(
    engine: Engine, stock: ArqRedis, redis: Redis
) -> None:
    made = await engine.tasks.enqueue(Submission("test.add", {"first": 1}), user_id="ada")
    (held,) = await claim(engine.scripts)
    assert held.attempt == 1
    await lapse(redis, held)
    await drain(stock, add)
    record = await engine.tasks.get(made.task_id, user_id="ada", with_result=True)
    assert (record.status, record.result) == (Status.SUCCESS, 11)
    assert (await engine.queues.get("default")).running == 0


async def test_our_tries_are_seen_by_a_stock_worker(engine: Engine, stock: ArqRedis) -> None:
    tries: list[int] = []

    async def flaky(ctx: dict[str, Any]) -> None:
        tries.append(ctx["job_try"])

    await enqueue(stock, "test.flaky", _job_id="f")
    await stock.set(keys.PREFIXES["retry"] + "f", 2)
    await drain(stock, flaky)
    assert tries == [3]


async def test_a_stock_and_our_worker_on_one_queue_run_each_task_once(engine: Engine, stock: ArqRedis) -> None:
    batch = [Submission("test.add", {"first": n}) for n in range(60)]
    made = await engine.tasks.enqueue_many(batch, user_id="ada")
    async with engine.worker():
        await drain(stock, add)
        for n, accepted in enumerate(made):
            assert await result_of(job_of(stock, accepted.task_id)) == n + 10
    assert sorted(starts) == sorted(accepted.task_id for accepted in made)


async def test_retention_sees_what_stock_workers_finished_though_nobody_reads_it(
    engine: Engine, stock: ArqRedis
) -> None:
    submissions = [Submission("test.add", {"first": 1, "second": number}) for number in range(5)]
    accepted = await engine.tasks.enqueue_many(submissions, user_id="ada")
    await drain(stock, add)
    before = await engine.tasks.page(Filter(status=Status.SUCCESS), user_id="ada")
    found = [await engine.tasks.settle_stock_ends(2) for _ in range(3)]
    after = await engine.tasks.page(Filter(status=Status.SUCCESS), user_id="ada")
    assert before.items == []
    assert found == [2, 2, 1]
    assert {record.task_id for record in after.items} == {item.task_id for item in accepted}
    assert await engine.tasks.settle_stock_ends(2) == 0


async def test_a_stock_worker_may_end_a_task_whose_wait_has_lasted_too_long(
    engine: Engine, stock: ArqRedis, redis: Redis
) -> None:
    first = await engine.tasks.enqueue(Submission("test.add_elsewhere", {"first": 1}), user_id="ada")
    waiting = Submission("test.add", {"first": 1}, after=(first.task_id,))
    last = (await engine.tasks.enqueue(waiting, user_id="ada")).task_id
    await redis.zadd(keys.QUEUE, {last: await server_ms(redis) - 1}, xx=True)
    await drain(stock, add)
    assert await engine.tasks.settle_stock_ends(10) == 1
    assert await redis.hget(keys.task(last), "status") == b"SUCCESS"
    assert (await engine.queues.get("default")).waiting == 0

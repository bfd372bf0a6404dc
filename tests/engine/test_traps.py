"""What stock arq does wrong, one test or more for each row of the table "arq's traps". Every docstring says what stock
arq 0.28 does; where it is cheap, the test shows it."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import arq
import pytest
from arq.connections import ArqRedis
from arq.worker import Worker as StockWorker
from pydantic import BaseModel
from redis.asyncio import Redis

from app.engine import attempt as attempt_module
from app.engine import leases as leases_module
from app.engine import wire
from app.engine import worker as worker_module
from app.engine.context import TaskContext
from app.engine.job import Status, TaskRecord
from app.engine.lane import LaneSettings
from app.engine.leases import Lease, LeaseKeeper
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.errors import LeaseLost, PermanentError, RetryableError, SoftTimeLimit
from app.store import keys
from app.store.connection import arq_redis_settings, connect, connect_sync
from app.store.embedded import EmbeddedServer
from app.store.scripts import Scripts, lua_source
from tests.simulated import DAY_MS, claim, end_of, event_of, lapse, new_task, put, server_ms
from tests.support import PATIENCE_S, engine_on, finished
from tests.support import event_of as wait_for_event

QUICK = RetryPolicy(max_retries=2, base_s=0.01)


class Stage:
    """Where a test and the tasks of its worker meet."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.go = asyncio.Event()
        self.ended = asyncio.Event()
        self.starts = 0
        self.seen: list[BaseException] = []


stage = Stage()


@pytest.fixture(autouse=True)
def fresh_stage() -> None:
    """A stage of its own for each test."""
    global stage  # noqa: PLW0603
    stage = Stage()


class Nothing(BaseModel):
    pass


@task("test.quick")
async def quick(ctx: TaskContext, params: Nothing) -> int:
    return ctx.attempt


@task("test.elsewhere", queue="other")
async def elsewhere(ctx: TaskContext, params: Nothing) -> int:
    return ctx.attempt


@task("test.waits", retry=QUICK)
async def waits(ctx: TaskContext, params: Nothing) -> int:
    """Waits for the test in its first run, and says what was raised in it."""
    stage.starts += 1
    if stage.starts > 1:
        return ctx.attempt
    stage.began.set()
    try:
        await stage.go.wait()
        await ctx.emit("late", {})
    except BaseException as error:
        stage.seen.append(error)
        raise
    finally:
        stage.ended.set()
    return ctx.attempt


@task("test.times_out_first", retry=QUICK)
async def times_out_first(ctx: TaskContext, params: Nothing) -> int:
    if ctx.attempt == 1:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    return ctx.attempt


@task("test.group_fails_first", retry=QUICK)
async def group_fails_first(ctx: TaskContext, params: Nothing) -> int:
    async def fail() -> None:
        if ctx.attempt == 1:
            raise RetryableError("one of several")

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())
    return ctx.attempt


@task("test.wrong", retry=QUICK)
async def wrong(ctx: TaskContext, params: Nothing) -> int:
    raise KeyError("a mistake in the code")


@task("test.blocks")
async def blocks(ctx: TaskContext, params: Nothing) -> int:
    stage.began.set()
    time.sleep(1.7)
    return ctx.attempt


@task("test.saves", soft_limit=timedelta(milliseconds=50), timeout=timedelta(seconds=30), retry=QUICK)
async def saves(ctx: TaskContext, params: Nothing) -> str:
    try:
        await asyncio.Event().wait()
    except SoftTimeLimit:
        await ctx.emit("saved", {})
        return "what there was"
    return "everything"


@task("test.slow_once", soft_limit=timedelta(milliseconds=50), timeout=timedelta(seconds=30), retry=QUICK)
async def slow_once(ctx: TaskContext, params: Nothing) -> int:
    if ctx.attempt == 1:
        await asyncio.Event().wait()
    return ctx.attempt


@task("test.slow_group", soft_limit=timedelta(milliseconds=50), timeout=timedelta(seconds=30), retry=RetryPolicy(0))
async def slow_group(ctx: TaskContext, params: Nothing) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.Event().wait())
        await asyncio.Event().wait()


@task("test.deaf", soft_limit=timedelta(milliseconds=20), timeout=timedelta(milliseconds=60), retry=RetryPolicy(0))
async def deaf(ctx: TaskContext, params: Nothing) -> None:
    while not stage.go.is_set():
        try:
            await stage.go.wait()
        except asyncio.CancelledError as error:
            stage.seen.append(error)
            if len(stage.seen) > 1:
                raise


@task("test.stubborn", retry=QUICK)
async def stubborn(ctx: TaskContext, params: Nothing) -> int:
    stage.starts += 1
    stage.began.set()
    while stage.starts == 1 and not stage.go.is_set():
        try:
            await stage.go.wait()
        except asyncio.CancelledError as error:
            stage.seen.append(error)
    stage.ended.set()
    return ctx.attempt


@task("test.cleans_up")
async def cleans_up(ctx: TaskContext, params: Nothing) -> None:
    stage.began.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        # Longer than two renewals, each of which reports the cancel again.
        await asyncio.sleep(0.8)
        await ctx.emit("cleaned", {})
        raise


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@task("test.dies_badly")
async def dies_badly(ctx: TaskContext, params: Nothing) -> None:
    raise Unprintable


@task("test.dies_of_a_file_name")
async def dies_of_a_file_name(ctx: TaskContext, params: Nothing) -> None:
    raise PermanentError("no such file: \udcff.txt")


@task("test.once", retry=RetryPolicy(max_retries=1, base_s=0.01))
async def once(ctx: TaskContext, params: Nothing) -> int:
    return ctx.attempt


TASKS = (
    *(
        quick,
        elsewhere,
        waits,
        times_out_first,
        group_fails_first,
        wrong,
        blocks,
        saves,
        slow_once,
        slow_group,
        deaf,
        stubborn,
    ),
    *(cleans_up, dies_badly, dies_of_a_file_name, once),
)


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    """An engine with the shortest lease, without a worker."""
    async with engine_on(redis_url, TASKS, lease_s=1.0, shutdown_grace_s=0) as opened:
        yield opened


@pytest.fixture
async def stock(redis_url: str) -> AsyncIterator[ArqRedis]:
    """A stock arq client."""
    pool = await arq.create_pool(
        arq_redis_settings(redis_url), job_serializer=wire.serializer, job_deserializer=wire.deserializer
    )
    yield pool
    await pool.aclose()


@pytest.fixture
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is found now was announced; the poll that finds what was not comes in an hour."""
    monkeypatch.setattr(worker_module, "SLOW_POLL_S", 3_600.0)


async def add(engine: Engine, name: str, **changes: Any) -> str:
    return (await engine.tasks.enqueue(Submission(name, **changes), user_id="ada")).task_id


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that says nothing when it comes about."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            await asyncio.sleep(0.005)


async def asleep(redis: Redis, *queues: str, count: int = 1) -> None:
    """Wait until workers sleep on queues."""
    for queue in queues:

        async def sleeps(queue: str = queue) -> bool:
            return int(await redis.zcard(keys.sleepers(queue))) >= count

        await until(sleeps)


async def began() -> None:
    async with asyncio.timeout(PATIENCE_S):
        await stage.began.wait()


async def ended() -> None:
    async with asyncio.timeout(PATIENCE_S):
        await stage.ended.wait()


async def kinds(engine: Engine, task_id: str) -> list[str]:
    return [event.type for event in await engine.events.read(f"task:{task_id}", f"task:{task_id}")]


async def wakes(redis: Redis) -> list[str]:
    """Workers that have been sent a wake-up and have not read it."""
    return sorted([name.decode() async for name in redis.scan_iter(match=keys.wake("*"))])


@contextmanager
def thief(url: str) -> Iterator[list[str]]:
    """Another worker, in a thread of its own, that claims whatever it can get; yields the ids it got."""
    stolen: list[str] = []
    stop = threading.Event()

    def steal() -> None:
        client = connect_sync(url)
        script = client.register_script(lua_source("claim"))
        while not stop.wait(0.02):
            stolen.extend(row[0].decode() for row in script(args=["thief", 60_000, 100, "default", 100])[2])
        client.close()

    thread = threading.Thread(target=steal)
    thread.start()
    try:
        yield stolen
    finally:
        stop.set()
        thread.join()


# A dead worker's task runs again only after the longest timeout + 10 s.


async def test_a_dead_workers_task_runs_elsewhere_when_its_lease_ends(engine: Engine, redis: Redis) -> None:
    """Stock: the mark of a task in progress lives for the longest timeout of all functions and 10 s more."""

    async def short(ctx: dict[str, Any]) -> None: ...

    async def long(ctx: dict[str, Any]) -> None: ...

    functions = [arq.func(short, timeout=5), arq.func(long, timeout=3_600)]
    assert StockWorker(functions, redis_pool=ArqRedis(), handle_signals=False).in_progress_timeout_s == 3_610  # type: ignore[arg-type]
    task_id = await add(engine, "test.quick")
    (dead,) = await claim(engine.scripts, "dead", lease_ms=200)
    async with engine.worker():
        record = await finished(engine, task_id)
    assert (record.status, record.attempt, record.result) == (Status.SUCCESS, 2, 2)
    assert await engine.scripts.finish([end_of(dead)]) == [0]


async def test_a_dead_worker_that_comes_back_can_write_nothing(redis_url: str, redis: Redis) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        task_id = await add(engine, "test.quick")
        (dead,) = await claim(engine.scripts, "dead")
        await lapse(redis, dead)
        async with engine.worker():
            record = await finished(engine, task_id)
        client = connect(redis_url)
        scripts = Scripts(client)
        assert await scripts.emit([event_of(dead)]) == [0]
        assert await scripts.finish([end_of(dead, "FAILURE")]) == [0]
        await client.aclose()
        assert await engine.tasks.get(task_id, user_id="ada", with_result=True) == record


async def test_a_lease_is_renewed_for_as_long_as_the_task_runs(engine: Engine, redis: Redis, redis_url: str) -> None:
    async with engine.worker():
        task_id = await add(engine, "test.waits")
        await began()
        first = await redis.zscore(keys.queue("default"), task_id)

        async def is_past_its_first_end() -> bool:
            return await server_ms(redis) > first + 300

        with thief(redis_url) as stolen:
            await until(is_past_its_first_end)
        stage.go.set()
        assert (await finished(engine, task_id)).attempt == 1
    assert stolen == []


async def _started(engine: Engine, task_id: str) -> bool:
    return (await engine.tasks.get(task_id, user_id=None)).status is Status.STARTED


async def test_an_attempt_that_lost_its_lease_is_stopped_and_writes_nothing(engine: Engine, redis: Redis) -> None:
    """Stock: no token; a worker that comes back from a pause overwrites whatever the next one wrote."""
    async with engine.worker():
        task_id = await add(engine, "test.waits")
        await began()
        await engine.queues.pause("default")
        record = await redis.hgetall(keys.task(task_id))
        # Another worker has taken over: its token stands in the record.
        await redis.hset(keys.task(task_id), "lease", int(record[b"lease"]) + 1)
        await ended()
        await asyncio.sleep(0)
    assert [type(error).__name__ for error in stage.seen] == ["_LeaseGone"]
    assert (await kinds(engine, task_id))[-1] == "task_started"
    assert (await engine.tasks.get(task_id, user_id="ada")).status is Status.STARTED


async def test_an_attempt_that_writes_under_a_lost_lease_is_told_so(redis_url: str, redis: Redis) -> None:
    async with engine_on(redis_url, TASKS, lease_s=300, shutdown_grace_s=0) as engine, engine.worker():
        task_id = await add(engine, "test.waits")
        await began()
        await engine.queues.pause("default")
        await redis.hincrby(keys.task(task_id), "lease", 1)
        stage.go.set()
        await ended()
        assert [type(error) for error in stage.seen] == [LeaseLost]
        assert "late" not in await kinds(engine, task_id)


async def test_a_task_that_its_own_process_lost_and_claimed_again_runs_once_more_and_only_once(
    redis_url: str, redis: Redis
) -> None:
    """After a pause of the whole process its claim loop may come before its renewals."""
    async with engine_on(redis_url, TASKS, lease_s=300, shutdown_grace_s=0) as engine, engine.worker():
        task_id = await add(engine, "test.waits")
        await began()
        await redis.delete(keys.PREFIXES["in_progress"] + task_id)
        await redis.zadd(keys.queue("default"), {task_id: await server_ms(redis) - 1})
        record = await finished(engine, task_id)
        await ended()
        assert (record.status, record.attempt) == (Status.SUCCESS, 2)
        assert [type(error).__name__ for error in stage.seen] == ["_LeaseGone"]
        assert (await kinds(engine, task_id)).count("task_complete") == 1
        assert (await engine.queues.get("default")).running == 0


async def test_what_is_taken_ahead_keeps_its_lease_while_a_long_task_holds_the_slot(redis_url: str) -> None:
    lanes = {"default": LaneSettings(1, prefetch=4), "other": LaneSettings(1)}
    async with engine_on(redis_url, TASKS, lanes=lanes, lease_s=1.0) as engine, engine.worker():
        # Until the lane takes its tasks for short ones.
        warm = await engine.tasks.enqueue_many([Submission("test.quick")] * 80, user_id="ada")
        await finished(engine, warm[-1].task_id)
        batch = [Submission("test.waits"), *[Submission("test.quick")] * 3]
        made = [item.task_id for item in await engine.tasks.enqueue_many(batch, user_id="ada")]
        await began()
        for task_id in made:
            await until(lambda task_id=task_id: _started(engine, task_id))  # type: ignore[misc]
        with thief(redis_url) as stolen:
            await asyncio.sleep(1.3)
        stage.go.set()
        records = [await finished(engine, task_id) for task_id in made]
    assert stolen == []
    assert [record.attempt for record in records] == [1, 1, 1, 1]


# Polls twice a second.


@pytest.mark.usefixtures("no_polls")
async def test_an_idle_worker_is_woken_by_the_enqueue(engine: Engine, redis: Redis) -> None:
    """Stock: every worker reads its queue every `poll_delay`, 0.5 s, and nothing tells it to."""
    async with engine.worker():
        for name, queue in (("test.quick", "default"), ("test.elsewhere", "other"), ("test.quick", "default")):
            await asleep(redis, queue)
            assert (await finished(engine, await add(engine, name))).status is Status.SUCCESS


@pytest.mark.usefixtures("no_polls")
async def test_a_delayed_task_is_found_when_it_is_due_and_so_is_an_earlier_one(engine: Engine, redis: Redis) -> None:
    async with engine.worker():
        await asleep(redis, "default")
        await add(engine, "test.quick", delay_s=3_000)
        await asleep(redis, "default")
        assert (await finished(engine, await add(engine, "test.quick", delay_s=0.05))).status is Status.SUCCESS


async def test_one_task_wakes_one_sleeper(engine: Engine, redis: Redis) -> None:
    """Stock: all workers on the queue see it at their next poll and race for it."""
    for worker in ("w1", "w2", "w3"):
        await claim(engine.scripts, worker)
    await put(engine.scripts, new_task("t1"))
    assert len(await wakes(redis)) == 1
    await put(engine.scripts, new_task("t2"))
    assert len(await wakes(redis)) == 2


async def test_a_worker_that_fills_up_and_leaves_tasks_wakes_the_next(engine: Engine, redis: Redis) -> None:
    for worker in ("w1", "w2", "w3"):
        await claim(engine.scripts, worker)
    await engine.scripts.enqueue([[new_task(f"t{n}") for n in range(3)]], 100)
    woken = await wakes(redis)
    assert len(woken) == 1
    await claim(engine.scripts, woken[0].removeprefix(keys.wake("")), want=1)
    assert len(await wakes(redis)) == 2


async def test_while_all_are_busy_nothing_is_sent(engine: Engine, redis: Redis) -> None:
    await claim(engine.scripts, "w1")
    await put(engine.scripts, new_task("t1"), new_task("t2"))
    await redis.delete(*await wakes(redis))
    await claim(engine.scripts, "w1", want=1)
    await put(engine.scripts, new_task("t3"))
    assert await wakes(redis) == []


async def test_a_sleeper_that_died_is_not_counted_on(engine: Engine, redis: Redis) -> None:
    for worker in ("alive", "dead"):
        await claim(engine.scripts, worker)
    await redis.zadd(keys.sleepers("default"), {"dead": await server_ms(redis) - 6_000})
    await put(engine.scripts, new_task("t1"))
    assert await wakes(redis) == [keys.wake("alive")]


@pytest.mark.usefixtures("no_polls")
@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_bound_on_the_process_costs_no_pauses(redis_url: str, redis: Redis, concurrency: int) -> None:
    async with engine_on(redis_url, TASKS, concurrency=concurrency) as engine, engine.worker():
        await asleep(redis, "default", "other")
        batch = [Submission("test.quick"), Submission("test.elsewhere")] * 10
        made = await engine.tasks.enqueue_many(batch, user_id="ada")
        for accepted in made:
            assert (await finished(engine, accepted.task_id)).status is Status.SUCCESS


# Running tasks fill the head of the queue.


async def test_running_tasks_do_not_stand_in_the_way_of_ready_ones(
    engine: Engine, redis: Redis, stock: ArqRedis
) -> None:
    """Stock: reads the first 100 ids, and those that run keep their place; a worker that finds only them does
    nothing."""
    ran: list[str] = []

    async def job(ctx: dict[str, Any]) -> None:
        ran.append(ctx["job_id"])

    for n in range(100):
        await stock.enqueue_job("job", _job_id=f"running{n}")
        await redis.psetex(f"arq:in-progress:running{n}", 60_000, b"1")
    await stock.enqueue_job("job", _job_id="ready")
    worker = StockWorker([arq.func(job, name="job")], redis_pool=stock, handle_signals=False)
    await worker._poll_iteration()
    await asyncio.gather(*worker.tasks.values())
    assert ran == []

    await redis.flushall()
    await put(engine.scripts, *(new_task(f"running{n}") for n in range(100)))
    assert len(await claim(engine.scripts, "busy")) == 100
    await put(engine.scripts, new_task("ready"))
    assert [held.id for held in await claim(engine.scripts, "idle", want=1)] == ["ready"]


# One queue per worker process; WATCH/MULTI per task.


async def test_one_process_runs_several_queues_and_claims_them_in_one_call(engine: Engine, redis: Redis) -> None:
    """Stock: a worker has one `queue_name`, and each task costs it a WATCH, a MULTI and four more commands."""
    await put(
        engine.scripts, *(new_task(f"a{n}") for n in range(5)), *(new_task(f"b{n}", queue="other") for n in range(5))
    )
    await redis.config_resetstat()
    _, _, rows, _ = await engine.scripts.claim("w1", 60_000, 100, [("default", 5), ("other", 5)])
    stats = await redis.info("commandstats")
    assert len(rows) == 10
    assert stats["cmdstat_evalsha"]["calls"] == 1
    assert "cmdstat_watch" not in stats
    assert "cmdstat_multi" not in stats


# A Redis restart, or an error in a hook, ends the worker.


async def test_a_worker_outlives_restarts_of_redis(own_server: EmbeddedServer) -> None:
    """Stock: the ConnectionError leaves the poll loop and ends the process."""
    async with engine_on(own_server.url, TASKS, lease_s=10.0) as engine, engine.worker():
        task_id = await add(engine, "test.waits")
        await began()
        await asyncio.to_thread(own_server.kill)
        await asyncio.to_thread(own_server.start)
        stage.go.set()
        record = await finished(engine, task_id)
        assert (record.status, record.attempt) == (Status.SUCCESS, 1)
        assert (await finished(engine, await add(engine, "test.elsewhere"))).status is Status.SUCCESS


async def test_an_error_in_a_service_of_the_worker_ends_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock: an error in `on_job_start`, `on_job_end` or `after_job_end` is raised out of the poll loop."""
    claims, failures = engine.scripts.claim, []

    async def fail_once(*args: Any) -> Any:
        if not failures:
            failures.append(1)
            raise RuntimeError("a mistake in the engine")
        return await claims(*args)

    monkeypatch.setattr(engine.scripts, "claim", fail_once)
    async with engine.worker():
        assert (await finished(engine, await add(engine, "test.quick"))).status is Status.SUCCESS
    assert failures == [1]


# A timeout or an ordinary error is final.


@pytest.mark.parametrize("name", ["test.times_out_first", "test.group_fails_first", "test.slow_once"])
async def test_an_error_that_may_pass_is_tried_again(engine: Engine, name: str) -> None:
    """Stock: everything but `arq.Retry` is final, timeouts too."""
    async with engine.worker():
        task_id = await add(engine, name)
        record = await finished(engine, task_id)
    assert (record.status, record.attempt) == (Status.SUCCESS, 2)
    assert "task_retrying" in await kinds(engine, task_id)


async def test_a_mistake_in_the_code_is_not_tried_again(engine: Engine) -> None:
    async with engine.worker():
        record = await finished(engine, await add(engine, "test.wrong"))
    assert (record.status, record.attempt) == (Status.FAILURE, 1)


# Expired, undecodable, unknown and over-tried tasks end without any hook.


async def dead_letter_of(engine: Engine, task_id: str) -> TaskRecord:
    """The record of a task that must end with one event and a dead letter that can be read and listed."""
    record = await finished(engine, task_id)
    assert record.status is Status.FAILURE
    assert (await kinds(engine, task_id)).count("task_failed") == 1
    opened = await engine.dead_letters.get(task_id, user_id=None)
    assert opened.letter.error == record.error
    assert task_id in [item.task_id for item in (await engine.dead_letters.page(user_id=None)).items]
    assert (await engine.queues.get("default")).running == 0
    return record


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (None, "TaskExpired"),
        (pickle.dumps({"f": "test.quick"}), "UndecodablePayload"),
        (b"", "TaskExpired"),
        (b"[1, 2]", "UndecodablePayload"),
        (b'"test.quick"', "UndecodablePayload"),
        (b'{"f":"test.quick"}', "UndecodablePayload"),
        (b'{"f":"test.quick","a":[],"k":[1],"et":1}', "UndecodablePayload"),
        (b'{"f":"test.quick","a":7,"k":{},"et":1}', "UndecodablePayload"),
        (b'{"f":"test.quick","a":[],"k":{},"et":"soon"}', "UndecodablePayload"),
        (b'{"f":"test.quick","a":[1],"k":{},"et":1}', "InvalidInput"),
        (b'{"f":"test.\xff","a":[],"k":{},"et":1}', "UnknownTask"),
        (b'{"f":"test.nobody","a":[],"k":{},"et":1}', "UnknownTask"),
    ],
)
async def test_what_cannot_run_ends_with_an_event_and_a_dead_letter(
    redis_url: str, redis: Redis, payload: bytes | None, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock: writes a failed result and calls no hook, so nobody hears of it. One that it cannot even read must not
    hold up its neighbours here either."""
    monkeypatch.setattr(attempt_module, "UNKNOWN_TASK_DELAY_S", (0.01, 0.01))
    if payload is not None:
        await redis.set(keys.job("bad"), payload)
    await redis.zadd(keys.QUEUE, {"bad": 1})
    async with engine_on(redis_url, TASKS, unknown_task_ttl_s=0) as engine, engine.worker():
        neighbour = await add(engine, "test.quick")
        record = await dead_letter_of(engine, "bad")
        assert record.error is not None
        assert record.error.type == error
        assert (await finished(engine, neighbour)).attempt == 1


@pytest.mark.parametrize("name", ["test.dies_badly", "test.dies_of_a_file_name"])
async def test_an_error_that_cannot_be_written_as_it_is_ends_the_task_all_the_same(engine: Engine, name: str) -> None:
    async with engine.worker():
        record = await dead_letter_of(engine, await add(engine, name))
    assert record.attempt == 1


async def test_a_task_whose_workers_die_is_dead_lettered_after_its_tries(engine: Engine, redis: Redis) -> None:
    """Stock: counts its tries too, but its `max retries exceeded` reaches no hook."""
    task_id = await add(engine, "test.once")
    for worker in ("w1", "w2"):
        await lapse(redis, *await claim(engine.scripts, worker))
    async with engine.worker():
        record = await dead_letter_of(engine, task_id)
    assert record.error is not None
    assert record.error.type == "WorkerLost"
    opened = await engine.dead_letters.get(task_id, user_id="ada")
    assert [past.error["type"] for past in opened.history] == ["WorkerLost", "WorkerLost"]


# A shutdown costs the task one of its tries.


async def test_a_shutdown_costs_no_try(engine: Engine, redis: Redis) -> None:
    """Stock: cancels the task and leaves `arq:retry` counted up."""
    async with engine.worker():
        task_id = await add(engine, "test.waits")
        await began()
    record = await engine.tasks.get(task_id, user_id="ada")
    assert (record.status, record.attempt) == (Status.PENDING, 0)
    assert await redis.get(keys.PREFIXES["retry"] + task_id) == b"0"
    async with engine.worker():
        assert (await finished(engine, task_id)).attempt == 1


async def test_what_ends_within_the_grace_is_not_handed_back(redis_url: str) -> None:
    async with engine_on(redis_url, TASKS, shutdown_grace_s=PATIENCE_S) as engine:
        async with engine.worker():
            task_id = await add(engine, "test.waits")
            await began()
            asyncio.get_running_loop().call_later(0.05, stage.go.set)
        assert (await engine.tasks.get(task_id, user_id="ada")).status is Status.SUCCESS


async def test_what_was_taken_ahead_goes_back_at_once(redis_url: str) -> None:
    lanes = {"default": LaneSettings(1, prefetch=4), "other": LaneSettings(1)}
    async with engine_on(redis_url, TASKS, lanes=lanes, shutdown_grace_s=0) as engine:
        async with engine.worker():
            warm = await engine.tasks.enqueue_many([Submission("test.quick")] * 80, user_id="ada")
            await finished(engine, warm[-1].task_id)
            batch = [Submission("test.waits"), *[Submission("test.quick")] * 3]
            made = [item.task_id for item in await engine.tasks.enqueue_many(batch, user_id="ada")]
            for task_id in made:
                await until(lambda task_id=task_id: _started(engine, task_id))  # type: ignore[misc]
        for task_id in made:
            record = await engine.tasks.get(task_id, user_id="ada")
            assert (record.status, record.attempt) == (Status.PENDING, 0)
        assert (await engine.queues.get("default")).running == 0


async def test_a_task_that_does_not_stop_is_handed_back_without_waiting_for_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "STUBBORN_S", 0.05)
    async with engine.worker():
        task_id = await add(engine, "test.stubborn")
        await began()
    record = await engine.tasks.get(task_id, user_id="ada")
    assert (record.status, record.attempt) == (Status.PENDING, 0)
    stage.go.set()
    await ended()
    async with engine.worker():
        assert (await finished(engine, task_id)).attempt == 1


async def test_a_worker_that_drains_wakes_another_and_not_itself(engine: Engine, redis: Redis) -> None:
    async with engine.worker():
        await add(engine, "test.waits")
        await began()
        await claim(engine.scripts, "other worker", want=1)
        await redis.zadd(keys.sleepers("default"), {"other worker": await server_ms(redis) - 2_000})
    assert await wakes(redis) == [keys.wake("other worker")]


async def test_a_loop_that_ends_takes_no_try_either(engine: Engine) -> None:
    async with engine.worker() as worker:
        task_id = await add(engine, "test.waits")
        await began()
        for lifetime in tuple(worker.lanes["default"]._lifetimes):
            lifetime.cancel()
        record = await finished(engine, task_id)
    assert (record.status, record.attempt) == (Status.SUCCESS, 1)


# An unknown task name is deleted.


async def test_an_unknown_task_is_left_for_a_worker_that_knows_it(
    redis_url: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock: `function 'x' not found`, and the task is gone; rolling deploys lose work."""
    monkeypatch.setattr(attempt_module, "UNKNOWN_TASK_DELAY_S", (0.05, 0.05))
    task_id = await add(engine, "test.quick")
    async with engine_on(redis_url, (elsewhere,)) as old, old.worker():
        await wait_for_event(old, task_id, "task_retrying", count=2)
    async with engine.worker():
        record = await finished(engine, task_id)
    assert (record.status, record.attempt) == (Status.SUCCESS, 1)


async def test_the_patience_with_an_unknown_task_begins_when_it_is_first_seen(
    redis_url: str, engine: Engine, redis: Redis
) -> None:
    """A task that was enqueued last week for tonight must not die of tonight's deploy."""
    task_id = await add(engine, "test.quick")
    await redis.hset(keys.task(task_id), "enqueued_at", await server_ms(redis) - 7 * DAY_MS)
    async with engine_on(redis_url, (elsewhere,), unknown_task_ttl_s=600) as old, old.worker():
        await wait_for_event(old, task_id, "task_retrying")
    assert (await engine.tasks.get(task_id, user_id="ada")).status is Status.PENDING


# Cancel marks never expire; a finished id blocks reuse.


async def test_an_abort_mark_of_nothing_is_shown_once_and_goes(engine: Engine, redis: Redis) -> None:
    """Stock: removes marks that are *newer* than the maximum age, so old ones stay for ever."""
    now = await server_ms(redis)
    await redis.zadd(keys.ABORT, {"old": now - 61_000, "new": now})
    assert await engine.scripts.heartbeat("w1", b"{}", 10_000) == [b"old", b"new"]
    assert await engine.scripts.heartbeat("w1", b"{}", 10_000) == [b"new"]


async def test_a_cancel_belongs_to_its_task_and_not_to_an_id(engine: Engine) -> None:
    async with engine.worker():
        first = await add(engine, "test.waits")
        await began()
        await engine.tasks.cancel(first, user_id="ada")
        assert (await finished(engine, first)).status is Status.CANCELLED
        again = (await engine.tasks.retry(first, user_id="ada")).task_id
        assert (await finished(engine, again)).status is Status.SUCCESS


async def test_cleaning_up_after_a_cancel_is_not_cancelled_again(engine: Engine) -> None:
    async with engine.worker():
        task_id = await add(engine, "test.cleans_up")
        await began()
        await engine.tasks.cancel(task_id, user_id="ada")
        record = await finished(engine, task_id)
    assert record.status is Status.CANCELLED
    assert "cleaned" in await kinds(engine, task_id)


# The payload is gone after 24 h.


async def test_a_payload_lives_as_long_as_its_task(engine: Engine, redis: Redis, stock: ArqRedis) -> None:
    """Stock: sets it to expire a day after the task is due, whatever happens to the task."""
    job = await stock.enqueue_job("test.quick")
    assert job is not None
    assert await redis.ttl(keys.job(job.job_id)) > 0
    own = await add(engine, "test.quick")
    assert len(await claim(engine.scripts)) == 2
    assert [await redis.ttl(keys.job(task_id)) for task_id in (job.job_id, own)] == [-1, -1]


# A task that blocks the loop loses its lease.


async def test_a_task_that_blocks_the_loop_keeps_its_lease(engine: Engine, redis_url: str) -> None:
    """Stock: has no lease to lose, and pays with the hour of the first row."""
    task_id = await add(engine, "test.blocks")
    async with engine.worker():
        await began()
        # The loop is blocked from here on, for longer than the lease; the thief is not.
        with thief(redis_url) as stolen:
            record = await finished(engine, task_id)
    assert stolen == []
    assert (record.status, record.attempt) == (Status.SUCCESS, 1)


async def test_a_blocked_loop_is_measured(redis_url: str) -> None:
    keeper = _keeper(redis_url, lambda reason: None)
    keeper.start()
    time.sleep(0.4)
    await until(lambda: _as_async(keeper.loop_lag_s > 0.05))
    keeper.stop()


async def _as_async(value: bool) -> bool:
    return value


async def test_a_wedged_loop_ends_the_process(redis_url: str) -> None:
    reasons: list[str] = []
    keeper = _keeper(redis_url, reasons.append, wedged_s=0.2)
    keeper.start()
    time.sleep(1.0)
    keeper.stop()
    assert len(reasons) == 1
    assert "has not answered" in reasons[0]


async def test_a_task_that_outlives_its_hard_limit_ends_the_process(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases_module, "OVERDUE_S", 0.0)
    reasons: list[str] = []
    keeper = _keeper(redis_url, reasons.append)
    keeper.add(Lease("fine", 2, "default"))
    keeper.add(Lease("late", 2, "default", hard_deadline=time.monotonic()))
    keeper.start()
    await until(lambda: _as_async(bool(reasons)))
    keeper.stop()
    assert "late" in reasons[0]


def _keeper(url: str, end_process: Callable[[str], None], wedged_s: float = 60.0) -> LeaseKeeper:
    def forget(lease: Lease) -> None: ...

    return LeaseKeeper(
        lambda: connect_sync(url),
        lease_s=0.2,
        on_lost=forget,
        on_cancelled=forget,
        end_process=end_process,
        wedged_s=wedged_s,
    )


# Limits.


async def test_at_its_soft_limit_a_task_may_save_and_return(engine: Engine) -> None:
    """Stock: has one limit, cancels at it, and the failure is final."""
    async with engine.worker():
        task_id = await add(engine, "test.saves")
        record = await finished(engine, task_id)
    assert (record.status, record.result, record.attempt) == (Status.SUCCESS, "what there was", 1)
    assert "saved" in await kinds(engine, task_id)


async def test_a_soft_limit_in_a_task_group_is_told_as_what_it_is(engine: Engine) -> None:
    async with engine.worker():
        record = await finished(engine, await add(engine, "test.slow_group"))
    assert record.error is not None
    assert (record.status, record.error.type, record.error.retryable) == (Status.FAILURE, "SoftTimeLimit", True)


async def test_the_hard_limit_stops_a_task_that_swallowed_the_soft_one(engine: Engine) -> None:
    async with engine.worker():
        record = await finished(engine, await add(engine, "test.deaf"))
    assert isinstance(stage.seen[0], SoftTimeLimit)
    assert record.status is Status.FAILURE
    assert record.error is not None
    assert (record.error.type, record.error.retryable) == ("HardTimeLimit", True)

"""Worker processes that die, stop, hang and differ: nothing accepted is lost, and the dead write nothing."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import httpx
import pytest

from app.engine.job import Status
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.store.embedded import EmbeddedServer
from tests.acceptance.effects import TASKS
from tests.acceptance.effects_v2 import new
from tests.acceptance.processes import Process, answering, free_port, worker
from tests.support import PATIENCE_S, engine_on, event_of, events_of, finished

pytestmark = pytest.mark.acceptance

LEASE_S = 2.0
"""Short, so that a takeover is quick; the default is 10 s."""


async def trace(engine: Engine, name: str) -> list[str]:
    """What the tasks have noted."""
    return [line.decode() for line in await engine.redis.execute_command("LRANGE", f"trace:{name}", 0, -1)]


async def noted(engine: Engine, name: str, count: int) -> None:
    """Wait until tasks have left so many traces."""
    async with asyncio.timeout(PATIENCE_S):
        while len(await trace(engine, name)) < count:
            await asyncio.sleep(0.01)


async def alive(engine: Engine, count: int) -> None:
    """Wait until so many workers have a heartbeat."""
    async with asyncio.timeout(PATIENCE_S):
        while len(await engine.workers()) < count:
            await asyncio.sleep(0.02)


async def running(engine: Engine, count: int) -> None:
    """Wait until so many tasks run."""
    async with asyncio.timeout(PATIENCE_S):
        while sum(stats.running for stats in await engine.queues.stats()) < count:
            await asyncio.sleep(0.02)


async def test_a_killed_workers_task_is_finished_by_another_as_attempt_2(redis_url: str, tmp_path: Path) -> None:
    async with (
        engine_on(redis_url, TASKS) as engine,
        worker("first", tmp_path, redis_url, lease_s=LEASE_S) as first,
    ):
        accepted = await engine.tasks.enqueue(Submission("effect.stubborn_first", {"name": "kill"}), user_id="ada")
        await noted(engine, "kill", 1)
        await first.kill()
        async with worker("second", tmp_path, redis_url, lease_s=LEASE_S) as second:
            record = await finished(engine, accepted.task_id)
            begun = await trace(engine, "kill")
        lost = await event_of(engine, accepted.task_id, "task_retrying")
    assert (record.status, record.attempt, record.result) == (Status.SUCCESS, 2, 2)
    assert begun == [f"begin 1 {first.pid}", f"begin 2 {second.pid}"]
    assert lost["error"]["type"] == "WorkerLost"


async def test_a_frozen_worker_that_wakes_up_later_writes_nothing(redis_url: str, tmp_path: Path) -> None:
    async with (
        engine_on(redis_url, TASKS) as engine,
        worker("first", tmp_path, redis_url, lease_s=LEASE_S) as first,
    ):
        accepted = await engine.tasks.enqueue(
            Submission("effect.once", {"name": "freeze", "seconds": 1}), user_id="ada"
        )
        await noted(engine, "freeze", 1)
        first.send(signal.SIGSTOP)
        async with worker("second", tmp_path, redis_url, lease_s=LEASE_S):
            record = await finished(engine, accepted.task_id)
            before = [event.id async for event in _until_final(engine, accepted.task_id)]
            first.send(signal.SIGCONT)
            await _notes_its_lost_lease(first)
            after = await engine.tasks.get(accepted.task_id, user_id="ada", with_result=True)
        events = await engine.events.read(f"task:{accepted.task_id}", "task")
    assert (record.status, record.attempt) == (Status.SUCCESS, 2)
    assert after == record
    assert [event.id for event in events] == before


async def _until_final(engine: Engine, task_id: str):
    async for event in events_of(engine, task_id):
        yield event
        if event.type in ("task_complete", "task_failed", "task_cancelled"):
            return


async def _notes_its_lost_lease(process: Process) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while "its lease is lost" not in process.output():
            await asyncio.sleep(0.02)


async def test_sigterm_loses_no_task_and_costs_none_of_them_a_try(redis_url: str, tmp_path: Path) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        async with worker("first", tmp_path, redis_url, shutdown_grace_s=0.2) as first:
            long = [Submission("effect.once", {"name": "term", "seconds": 30}) for _ in range(3)]
            short = [Submission("effect.once", {"name": "term", "seconds": 0.01}) for _ in range(20)]
            accepted = await engine.tasks.enqueue_many(long, user_id="ada")
            await running(engine, 3)
            more = await engine.tasks.enqueue_many(short, user_id="ada")
            assert await first.stop() == 0
        records = [await engine.tasks.get(item.task_id, user_id="ada") for item in accepted]
        assert {(record.status, record.attempt) for record in records} == {(Status.PENDING, 0)}
        async with worker("second", tmp_path, redis_url):
            ended = [await finished(engine, item.task_id) for item in more]
            for item in accepted:
                await event_of(engine, item.task_id, "task_started", count=2)
            again = [await engine.tasks.get(item.task_id, user_id="ada") for item in accepted]
    assert {(record.status, record.attempt) for record in ended} == {(Status.SUCCESS, 1)}
    assert {record.attempt for record in again} == {1}


async def test_a_task_that_blocks_the_loop_longer_than_its_lease_keeps_it(redis_url: str, tmp_path: Path) -> None:
    async with (
        engine_on(redis_url, TASKS) as engine,
        worker("first", tmp_path, redis_url, lease_s=1) as first,
        worker("second", tmp_path, redis_url, lease_s=1) as second,
    ):
        await alive(engine, 2)
        accepted = await engine.tasks.enqueue(
            Submission("effect.block", {"name": "block", "seconds": 3}), user_id="ada"
        )
        record = await finished(engine, accepted.task_id)
        begun = await trace(engine, "block")
    assert (record.status, record.attempt) == (Status.SUCCESS, 1)
    assert begun in ([f"begin 1 {first.pid}"], [f"begin 1 {second.pid}"])


async def test_a_worker_whose_task_ignores_its_hard_limit_ends_and_the_task_is_dead_lettered(
    redis_url: str, tmp_path: Path
) -> None:
    async with (
        engine_on(redis_url, TASKS) as engine,
        worker("first", tmp_path, redis_url, lease_s=1) as first,
    ):
        accepted = await engine.tasks.enqueue(Submission("effect.deaf", {"name": "deaf"}), user_id="ada")
        assert await first.exit_code() == 70
        async with worker("second", tmp_path, redis_url, lease_s=1):
            record = await finished(engine, accepted.task_id)
        opened = await engine.dead_letters.get(accepted.task_id, user_id="ada")
    assert record.status is Status.FAILURE
    assert opened.letter.error.type == "WorkerLost"


async def test_a_task_that_only_the_newer_version_knows_waits_for_it(redis_url: str, tmp_path: Path) -> None:
    async with (
        engine_on(redis_url, (*TASKS, new)) as engine,
        worker("old", tmp_path, redis_url) as old,
    ):
        await alive(engine, 1)
        accepted = await engine.tasks.enqueue(Submission("effect.new", {"name": "hello"}), user_id="ada")
        left = await event_of(engine, accepted.task_id, "task_retrying")
        async with worker("new", tmp_path, redis_url, module="tests.acceptance.effects_v2"):
            record = await finished(engine, accepted.task_id)
            assert old.running
    assert left["error"]["type"] == "UnknownTask"
    assert (record.status, record.attempt, record.result) == (Status.SUCCESS, 1, "hello")


async def test_nothing_is_lost_when_redis_is_killed_and_restarted_under_load(
    own_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        engine_on(own_server.url, TASKS) as engine,
        worker("first", tmp_path, own_server.url, lease_s=LEASE_S, log_level="WARNING") as first,
        worker("second", tmp_path, own_server.url, lease_s=LEASE_S, log_level="WARNING") as second,
    ):
        await alive(engine, 2)
        accepted: list[str] = []
        feeding = asyncio.create_task(_feed(engine, accepted))
        for mark in (200, 600):
            async with asyncio.timeout(PATIENCE_S):
                while len(accepted) < mark:
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(own_server.kill)
            await asyncio.to_thread(own_server.start)
        await feeding
        records = [await finished(engine, task_id) for task_id in accepted]
        assert first.running
        assert second.running
        stats = await engine.queues.get("default")
    assert len(records) == 1_000
    assert {record.status for record in records} == {Status.SUCCESS}
    assert (stats.ready, stats.running, stats.delayed) == (0, 0, 0)


async def _feed(engine: Engine, accepted: list[str]) -> None:
    """1,000 tasks, one after the other; one that could not be taken because Redis is away is posted again."""
    while len(accepted) < 1_000:
        try:
            item = await engine.tasks.enqueue(
                Submission("effect.none", {"name": "load", "seconds": 0.005}), user_id="ada"
            )
        except (ConnectionError, OSError):
            await asyncio.sleep(0.01)
        else:
            accepted.append(item.task_id)


async def test_a_worker_serves_its_own_metrics(redis_url: str, tmp_path: Path) -> None:
    port = free_port()
    async with (
        engine_on(redis_url, TASKS) as engine,
        worker("first", tmp_path, redis_url, metrics_port=port) as first,
        httpx.AsyncClient() as client,
    ):
        await alive(engine, 1)
        accepted = await engine.tasks.enqueue(Submission("effect.none", {"name": "counted"}), user_id="ada")
        await finished(engine, accepted.task_id)
        await answering(f"http://127.0.0.1:{port}/metrics", first)
        metrics = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
        assert await first.stop() == 0
    assert 'nightshift_tasks_finished_total{queue="default",status="SUCCESS",task="effect.none"} 1.0' in metrics


async def written(engine: Engine) -> None:
    """Wait until all that the server has done is in its file, which is written up to two seconds later."""
    async with engine.redis.pipeline(transaction=False) as pipe:
        pipe.set("written", 1)
        pipe.execute_command("WAITAOF", 1, 0, 30_000)
        assert (await pipe.execute())[1][0] == 1


async def test_a_worker_can_be_stopped_while_redis_is_away(own_server: EmbeddedServer, tmp_path: Path) -> None:
    async with (
        engine_on(own_server.url, TASKS) as engine,
        worker("first", tmp_path, own_server.url, lease_s=1, shutdown_grace_s=0.1) as first,
    ):
        accepted = await engine.tasks.enqueue(Submission("effect.none", {"name": "away", "seconds": 60}), user_id="ada")
        await event_of(engine, accepted.task_id, "task_started")
        await written(engine)
        await asyncio.to_thread(own_server.kill)
        assert await first.stop() == 0
        await asyncio.to_thread(own_server.start)
        async with worker("second", tmp_path, own_server.url, lease_s=1):
            await event_of(engine, accepted.task_id, "task_started", count=2)
    assert "run again when their leases end" in first.output()


async def test_a_task_whose_worker_is_killed_between_steps_goes_on_after_the_last_one(
    redis_url: str, tmp_path: Path
) -> None:
    """Each kill comes when a step is stored and the next one has begun: that one runs again, no other does."""
    async with engine_on(redis_url, TASKS) as engine:
        accepted = await engine.tasks.enqueue(
            Submission("effect.steps", {"name": "ten", "seconds": 0.2}), user_id="ada"
        )
        for number, begun in enumerate((3, 7), 1):
            async with worker(f"worker {number}", tmp_path, redis_url, lease_s=1) as running_now:
                await noted(engine, "ten", begun + number - 1)
                await running_now.kill()
        async with worker("last", tmp_path, redis_url, lease_s=1):
            record = await finished(engine, accepted.task_id)
        marks = await trace(engine, "ten")
    assert record.result == [f"step {number}" for number in range(10)]
    assert record.attempt == 3
    assert marks == [f"step {number}" for number in (0, 1, 2, 2, 3, 4, 5, 6, 6, 7, 8, 9)]

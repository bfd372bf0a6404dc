"""Workers that are killed and stopped, and servers that are killed, while tasks wait: each effect happens once."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request

from app.engine.job import Status, TaskRecord
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.store.embedded import EmbeddedServer
from tests.acceptance.effects_waits import TASKS
from tests.acceptance.processes import free_port, worker
from tests.bench.waits import measure_waiting
from tests.support import PATIENCE_S, engine_on, event_of, events_of, finished

pytestmark = pytest.mark.acceptance

MODULE = "tests.acceptance.effects_waits"
EFFECTS = ("order", "called", "pack", "left", "middle", "right", "ship", "started", "tell")


async def trace(engine: Engine, name: str) -> list[str]:
    """What the tasks have noted."""
    return [line.decode() for line in await engine.redis.execute_command("LRANGE", f"trace:{name}", 0, -1)]


async def noted(engine: Engine, name: str, count: int) -> None:
    """Wait until tasks have left so many traces."""
    async with asyncio.timeout(PATIENCE_S):
        while len(await trace(engine, name)) < count:
            await asyncio.sleep(0.01)


async def waiting(engine: Engine, count: int) -> None:
    """Wait until so many tasks wait."""
    async with asyncio.timeout(PATIENCE_S):
        while (await engine.queues.get("default")).waiting != count:
            await asyncio.sleep(0.02)


async def put(engine: Engine, task: str, **params: object) -> str:
    return (await engine.tasks.enqueue(Submission(task, params), user_id="ada")).task_id


@asynccontextmanager
async def workers(count: int, directory: Path, url: str, **settings: object) -> AsyncIterator[list]:
    """So many worker processes, which start at the same time."""
    settings = {"lease_s": 1, "log_level": "WARNING", **settings}
    async with AsyncExitStack() as stack:
        made = [worker(f"worker{number}", directory, url, module=MODULE, **settings) for number in range(count)]
        yield [await stack.enter_async_context(one) for one in made]


async def _travel(engine: Engine, dies_before: int) -> TaskRecord:
    """One journey to its end. It is paid when it waits for that."""
    name = f"journey {dies_before}"
    task_id = await put(engine, "wait.journey", name=name, dies_before=dies_before)
    async for event in events_of(engine, task_id):
        if event.type == "task_waiting" and event.data()["waiting_for"]["kind"] == "event":
            break
    await engine.inbox.deliver(task_id, "paid", "by card", user_id="ada", key="payment")
    return await finished(engine, task_id)


@pytest.mark.parametrize("positions", [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10)])
async def test_a_worker_that_is_killed_between_any_two_steps_repeats_no_effect(
    redis_url: str, tmp_path: Path, positions: tuple[int, ...]
) -> None:
    """Ten steps, calls and waits; the worker is killed before each of them in turn, and once behind the last."""
    async with (
        engine_on(redis_url, TASKS) as engine,
        workers(len(positions) + 1, tmp_path, redis_url) as running,
    ):
        for position in positions:
            name = f"journey {position}"
            record = await _travel(engine, position)
            assert record.status is Status.SUCCESS, record.error
            assert record.result == ["order", "called", ["left", "middle", "right"], "by card", "tell"]
            assert Counter(await trace(engine, name)) == dict.fromkeys(EFFECTS, 1)
            assert len(record.steps) == 10
            # To be killed counts as a try, to wait does not.
            assert record.attempt == 2
            (killed,) = [one for one in running if not one.running]
            assert await trace(engine, f"{name}:ended") != [str(killed.pid)]
            assert await killed.exit_code() == -signal.SIGKILL
            running.remove(killed)


@asynccontextmanager
async def till(port: int) -> AsyncIterator[tuple[list[str], Counter[str]]]:
    """A receiver of payments that honours Idempotency-Key: the keys of all requests, and charges by key."""
    requests: list[str] = []
    charges: Counter[str] = Counter()
    app = FastAPI()

    @app.post("/charges")
    async def charge(request: Request) -> str:
        key = request.headers.get("idempotency-key", "")
        requests.append(key)
        if not key or key not in charges:
            charges[key] += 1
        return "charged"

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not server.started:
                await asyncio.sleep(0.01)
        yield requests, charges
    finally:
        server.should_exit = True
        await serving


async def test_what_is_killed_between_an_effect_and_its_record_does_it_again_unless_a_key_says_so(
    redis_url: str, tmp_path: Path
) -> None:
    """The window that remains, and how the receiver closes it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/charges"
    async with (
        till(port) as (requests, charges),
        engine_on(redis_url, TASKS) as engine,
        workers(3, tmp_path, redis_url),
    ):
        without = await finished(engine, await put(engine, "wait.charge", url=url, has_key=False))
        with_key = await finished(engine, await put(engine, "wait.charge", url=url, has_key=True))
    key = f"{with_key.task_id}/charge"
    assert (without.result, with_key.result) == ('"charged"', '"charged"')
    assert (without.attempt, with_key.attempt) == (2, 2)
    assert requests == ["", "", key, key]
    assert charges == {"": 2, key: 1}


async def test_a_parent_killed_while_it_waits_and_a_child_killed_while_it_runs_go_on_elsewhere(
    redis_url: str, tmp_path: Path
) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        async with (
            worker("parents", tmp_path, redis_url, module=MODULE, lease_s=1, queues="default:8") as parents,
            worker("children", tmp_path, redis_url, module=MODULE, lease_s=1, queues="other:2") as children,
        ):
            task_id = await put(engine, "wait.call", name="family", effect="done", seconds=0.5)
            await event_of(engine, task_id, "task_waiting")
            await noted(engine, "family:begun", 1)
            await parents.kill()
            await children.kill()
            record = await engine.tasks.get(task_id, user_id="ada")
            assert record.status is Status.WAITING
        async with worker("second", tmp_path, redis_url, module=MODULE, lease_s=1) as second:
            record = await finished(engine, task_id)
        begun = await trace(engine, "family:begun")
        entered = await trace(engine, "family:entered")
        assert (record.result, record.attempt) == ("done", 1)
        assert entered == [str(parents.pid), str(second.pid)]
        assert begun == [f"done 1 {children.pid}", f"done 2 {second.pid}"]
        assert await trace(engine, "family") == ["done"]


async def test_a_hundred_tasks_wait_through_a_kill_of_redis(own_server: EmbeddedServer, tmp_path: Path) -> None:
    async with (
        engine_on(own_server.url, TASKS) as engine,
        workers(2, tmp_path, own_server.url) as running,
    ):
        ids = [await put(engine, "wait.event", name="hundred") for _ in range(100)]
        await waiting(engine, 100)
        await asyncio.to_thread(own_server.kill)
        await asyncio.to_thread(own_server.start)
        for task_id in ids:
            await _deliver_once(engine, task_id)
        records = [await finished(engine, task_id) for task_id in ids]
        stats = await engine.queues.get("default")
        effects = Counter(await trace(engine, "hundred"))
        assert all(one.running for one in running)
    assert {(record.status, record.attempt) for record in records} == {(Status.SUCCESS, 1)}
    assert effects == dict.fromkeys((f"{when} {task_id}" for task_id in ids for when in ("before", "after")), 1)
    assert (stats.waiting, stats.running, stats.ready) == (0, 0, 0)


async def _deliver_once(engine: Engine, task_id: str) -> None:
    """Deliver through a restart of the server, with a key, so that to repeat it is safe."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(ConnectionError, OSError):
                await engine.inbox.deliver(task_id, "go", "now", user_id="ada", key="go")
                return
            await asyncio.sleep(0.02)


async def test_a_worker_that_is_stopped_does_not_wait_for_tasks_that_wait(redis_url: str, tmp_path: Path) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        async with workers(1, tmp_path, redis_url, shutdown_grace_s=60) as (first,):
            ids = [await put(engine, "wait.event", name="stopped") for _ in range(20)]
            await waiting(engine, 20)
            assert await first.stop() == 0
        records = [await engine.tasks.get(task_id, user_id="ada") for task_id in ids]
        assert {(record.status, record.attempt) for record in records} == {(Status.WAITING, 1)}
        for task_id in ids:
            await engine.inbox.deliver(task_id, "go", "now", user_id="ada")
        async with workers(2, tmp_path, redis_url) as both:
            ended = [await finished(engine, task_id) for task_id in ids]
        effects = Counter(await trace(engine, "stopped"))
    assert {(record.status, record.attempt) for record in ended} == {(Status.SUCCESS, 1)}
    assert {record.result.split()[1] for record in ended} <= {str(one.pid) for one in both}
    assert set(effects.values()) == {1}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
async def test_ten_thousand_waiting_tasks_cost_their_worker_next_to_nothing_and_all_go_on() -> None:
    seen = await measure_waiting(10_000, idle_s=2.0)
    before, after = (rss / 2**20 for rss in seen.rss_bytes)
    print(f"memory {before:.1f} MB, with 10,000 waiting {after:.1f} MB; CPU {seen.cpu_s[0]:.2%}, {seen.cpu_s[1]:.2%}")
    print(f"gone on within {max(seen.alone_s):.3f} s alone, {max(seen.at_once_s):.3f} s of 200 at once")
    assert seen.held == 0
    assert (len(seen.alone_s), len(seen.at_once_s)) == (20, 200)
    # A generous bound: a coroutine with its context takes some 10 KB, which would be 100 MB.
    assert after - before < 32

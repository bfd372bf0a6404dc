"""What steps and waits cost: a step, a call and its return, a thousand children, and ten thousand tasks that wait."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from app.engine.queue import MAX_BATCH
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.store import keys
from tests.bench.plan import Plan
from tests.bench.processes import BenchError, Child, module
from tests.bench.rows import Aim, Row, percentile
from tests.bench.server import Server, fresh_server
from tests.bench.waiters import waiting_engine
from tests.bench.watch import Watch

USER = "bench"
CONCURRENCY = 32
STEPS = 10
PATIENCE_S = 60.0
POLL_S = 0.01
WARM_UP = 300
WARM_UP_WAITING = 2_000
SETTLE_S = 1.0
RESUMED_AT_ONCE = 200
MB = 2**20


@dataclass(frozen=True)
class Waiting:
    """What tasks that wait cost their worker process, and how soon they go on (s), one alone and some at once."""

    tasks: int
    rss_bytes: tuple[int, int]
    """Before they came, and when all wait."""
    cpu_s: tuple[float, float]
    """Per second of idling, before and while they wait."""
    alone_s: list[float]
    at_once_s: list[float]
    held: int
    """Attempts that the process held while all waited, by its heartbeat."""


async def step_overhead(plan: Plan, watch: Watch) -> list[Row]:
    """What a step adds to a task when a worker is busy."""
    watch.say("steps")
    runs_us: list[float] = []
    async with _bench() as (engine, _, _):
        await _drained_s(engine, 0, WARM_UP)
        for _ in range(plan.runs):
            without_s = await _drained_s(engine, 0, plan.step_tasks)
            with_s = await _drained_s(engine, STEPS, plan.step_tasks)
            runs_us.append((with_s - without_s) / (STEPS * plan.step_tasks) * 1e6)
    note = (
        f"{plan.step_tasks:,} tasks with {STEPS} steps that do nothing against as many with none, {CONCURRENCY} at once"
    )
    return [Row("step_us", "a step, its result stored", "us", statistics.median(runs_us), note=note,
                runs={"nightshift": runs_us})]  # fmt: skip


async def call_and_return(plan: Plan, watch: Watch) -> list[Row]:
    """From `ctx.call` of a child that does nothing until its result is there, on an idle worker."""
    watch.say("calls of a child")
    async with _bench() as (engine, _, _):
        await _results(engine, "bench.call", 0, WARM_UP // 10)
        took_ms = [(await _results(engine, "bench.call", 0, 1))[0] / 1e6 for _ in range(plan.call_samples)]
    note = f"{len(took_ms)} calls one after the other; the task leaves its worker and comes back"
    return [
        Row(f"call_p{share}", f"a child called and its result back, p{share}", "ms", percentile(took_ms, share / 100),
            note=note)
        for share in (50, 99)
    ]  # fmt: skip


async def fan_out(plan: Plan, watch: Watch) -> list[Row]:
    """From `ctx.gather` of many children until all results are there."""
    watch.say(f"{plan.children:,} children of one task")
    async with _bench() as (engine, _, _):
        await _results(engine, "bench.gather", WARM_UP, 1)
        runs_s = [(await _results(engine, "bench.gather", plan.children, 1))[0] / 1e9 for _ in range(plan.runs)]
    took_s = statistics.median(runs_s)
    note = f"{plan.children / took_s:,.0f} children/s, one worker, {CONCURRENCY} at once"
    return [Row("gather_s", f"{plan.children:,} children of one task, out and in", "s", took_s, note=note,
                runs={"nightshift": runs_s})]  # fmt: skip


async def many_waiting(plan: Plan, watch: Watch) -> list[Row]:
    """Memory and CPU of a worker while many tasks wait, and how soon they go on."""
    watch.say(f"{plan.waiting:,} tasks wait")
    seen = await measure_waiting(plan.waiting, idle_s=plan.waiting_idle_s)
    what = f"{seen.tasks:,} tasks waiting in one worker"
    before, after = (rss / MB for rss in seen.rss_bytes)
    idle, waiting = (cpu_s * 100 for cpu_s in seen.cpu_s)
    within = Aim("within a second", "ours", "most", 1.0)
    return [
        Row("waiting_mb", f"{what}: memory", "MB", after - before,
            note=f"{before:.1f} MB before, {after:.1f} MB with them"),
        Row("waiting_cpu", f"{what}: CPU", "% of a core", waiting - idle,
            note=f"{idle:.2f} % before, {waiting:.2f} % with them, over {plan.waiting_idle_s:g} s each"),
        Row("resume_p50", "a waiting task goes on after its event, p50", "s", percentile(seen.alone_s, 0.5), aim=within,
            note=f"{len(seen.alone_s)} events one after the other, {seen.tasks:,} tasks waiting"),
        Row("resume_most", f"the last of {len(seen.at_once_s)} that go on at once", "s", max(seen.at_once_s),
            aim=within),
    ]  # fmt: skip


async def measure_waiting(tasks: int, *, idle_s: float, alone: int = 20) -> Waiting:
    """Have so many tasks wait in one worker process, and some of them go on."""
    async with _bench() as (engine, _, worker):
        # What the process needs to run tasks at its full speed is not what waiting costs.
        warm = await _waiting(engine, WARM_UP_WAITING)
        await _resumed_s(engine, warm)
        idle = await _cpu_share(worker, idle_s)
        before = _rss_bytes(worker)
        ids = await _waiting(engine, tasks)
        await asyncio.sleep(SETTLE_S)
        after, waiting = _rss_bytes(worker), await _cpu_share(worker, idle_s)
        held = sum(one["running"] for one in await engine.workers())
        chosen = random.Random(tasks).sample(ids, min(alone + RESUMED_AT_ONCE, tasks))
        alone_s = [(await _resumed_s(engine, [task_id]))[0] for task_id in chosen[:alone]]
        at_once_s = await _resumed_s(engine, chosen[alone:])
    return Waiting(tasks, (before, after), (idle, waiting), alone_s, at_once_s, held)


@asynccontextmanager
async def _bench() -> AsyncIterator[tuple[Engine, Server, Child]]:
    async with (
        fresh_server(file=False) as server,
        waiting_engine(server.url, CONCURRENCY) as engine,
        module("tests.bench.waiters", server.url, str(CONCURRENCY)) as worker,
    ):
        await _until(lambda stats: stats.ready == 0, engine, await _put(engine, "bench.nothing", 0, 1))
        yield engine, server, worker


async def _put(engine: Engine, task: str, count: int, times: int) -> list[str]:
    ids: list[str] = []
    for first in range(0, times, MAX_BATCH):
        items = [Submission(task, {"count": count}) for _ in range(min(MAX_BATCH, times - first))]
        ids += [made.task_id for made in await engine.tasks.enqueue_many(items, user_id=USER)]
    return ids


async def _drained_s(engine: Engine, steps: int, tasks: int) -> float:
    """How long so many tasks take, from the start of the first to the end of the last."""
    ids = await _put(engine, "bench.steps", steps, tasks)
    await _ends(engine, ids)
    records = [await engine.tasks.get(task_id, user_id=USER) for task_id in ids]
    began = min(record.started_at for record in records if record.started_at)
    return (max(record.finished_at for record in records if record.finished_at) - began).total_seconds()


async def _waiting(engine: Engine, tasks: int) -> list[str]:
    before = (await engine.queues.get(keys.DEFAULT_QUEUE)).waiting
    ids = await _put(engine, "bench.wait", 0, tasks)
    await _until(lambda stats: stats.waiting == before + tasks, engine)
    return ids


async def _resumed_s(engine: Engine, ids: Sequence[str]) -> list[float]:
    """Deliver an event to each, and how long each says that it took to come."""
    deliveries = (engine.inbox.deliver(task_id, "go", time.monotonic_ns(), user_id=USER) for task_id in ids)
    await asyncio.gather(*deliveries)
    return [result / 1e9 for result in await _ends(engine, ids)]


async def _results(engine: Engine, task: str, count: int, times: int) -> list[int]:
    return await _ends(engine, await _put(engine, task, count, times))


async def _ends(engine: Engine, ids: Sequence[str]) -> list[int]:
    """The results of tasks, once all have ended well."""
    results: list[int] = []
    async with asyncio.timeout(PATIENCE_S):
        for task_id in ids:
            while not (record := await engine.tasks.get(task_id, user_id=USER, with_result=True)).status.is_finished:
                await asyncio.sleep(POLL_S)
            if record.error is not None:
                raise BenchError(f"a task ended as {record.status}: {record.error.message}")
            results.append(record.result)
    return results


async def _until(fits: Callable[..., bool], engine: Engine, ids: Sequence[str] = ()) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not fits(await engine.queues.get(keys.DEFAULT_QUEUE)):
            await asyncio.sleep(POLL_S)
    await _ends(engine, ids)


async def _cpu_share(worker: Child, seconds: float) -> float:
    """CPU seconds of the process per second of idling."""
    before_s = worker.cpu_s()
    await asyncio.sleep(seconds)
    return (worker.cpu_s() - before_s) / seconds


def _rss_bytes(worker: Child) -> int:
    for line in Path(f"/proc/{worker.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchError("the memory of another process is read from /proc, which only Linux has")

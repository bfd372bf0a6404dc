"""Cost per task as the backlog grows, and as workers are added: CPU time, not wall, since workers and server share the
machine's cores."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

from app.engine.service import Engine
from app.store import keys
from tests.bench.peers.nightshift import bench_engine
from tests.bench.plan import Plan
from tests.bench.processes import Child, module
from tests.bench.rows import Aim, Row
from tests.bench.server import Server, fresh_server
from tests.bench.watch import Watch

PEER = "tests.bench.peers.nightshift"
FILL_AT_ONCE = 50_000
MEMORY_SHARE = 0.6
"""Of the machine's free memory that a backlog may take."""
TOLERANCE = 1.25
BUSY_S = 120.0
START_S = 30.0
POLL_S = 0.02
FLAT = Aim(f"flat: at most {TOLERANCE} times the first", "ratio", "most", TOLERANCE)


@dataclass(frozen=True)
class Cost:
    """CPU microseconds of one task."""

    worker_us: float
    server_us: float

    @property
    def total_us(self) -> float:
        """Both together."""
        return self.worker_us + self.server_us


async def backlog_growth(plan: Plan, watch: Watch) -> list[Row]:
    """A row for each backlog: what a task costs while at least so many others wait."""
    rows: list[Row] = []
    queued_bytes = task_s = 0.0
    for backlog in plan.backlogs:
        watch.say(f"backlog of {backlog:,}")
        # The largest takes half a minute to fill.
        runs = 1 if backlog == max(plan.backlogs) else plan.runs
        refusal = _too_much(backlog * queued_bytes) or _too_long(backlog * task_s, watch.left_s)
        began_s, costs = watch.took_s, []
        for _ in range(0 if refusal else runs):
            cost, queued_bytes = await _at_backlog(plan, backlog)
            costs.append(cost)
        note = refusal or f"{queued_bytes:.0f} bytes a queued task"
        rows.append(_row("backlog", f"{backlog:,} waiting", costs, rows, note))
        task_s = (watch.took_s - began_s) / runs / backlog
    return rows


async def worker_growth(plan: Plan, watch: Watch) -> list[Row]:
    """A row for each number of worker processes on one queue."""
    rows: list[Row] = []
    for count in plan.workers:
        watch.say(f"{count} worker{'s' * (count > 1)}")
        costs = [await _with_workers(plan, count) for _ in range(plan.runs)]
        rows.append(_row("workers", f"{count} worker{'s' * (count > 1)}", costs, rows, ""))
    return rows


def _row(group: str, what: str, costs: list[Cost], before: list[Row], note: str) -> Row:
    figure = f"CPU a task, {what}"
    key = f"{group}_{what.split(maxsplit=1)[0].replace(',', '')}"
    if not costs:
        return Row(key, figure, "us", None, aim=FLAT, note=note)
    cost = sorted(costs, key=lambda item: item.total_us)[len(costs) // 2]
    first = before[0].ours if before else None
    split = f"worker {cost.worker_us:.0f}, server {cost.server_us:.0f}"
    return Row(
        key, figure, "us", cost.total_us, ratio=cost.total_us / first if first else None, aim=FLAT if first else None,
        note=f"{split}. {note}".strip(), runs={"nightshift": [item.total_us for item in costs]},
    )  # fmt: skip


def _too_much(needed_bytes: float) -> str | None:
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    if needed_bytes <= MEMORY_SHARE * available:
        return None
    return f"not measured: takes about {needed_bytes / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free"


def _too_long(needed_s: float, left_s: float) -> str | None:
    return f"not measured: takes about {needed_s:.0f} s, and {left_s:.0f} s are left" if needed_s > left_s else None


async def _at_backlog(plan: Plan, backlog: int) -> tuple[Cost, float]:
    """What a task costs with `backlog` others left in the end; and the bytes of a queued one."""
    async with fresh_server(file=False) as server, _client(server) as client:
        await client.read("ready")
        before_bytes = await server.memory_bytes()
        await _fill(client, backlog + plan.backlog_tasks)
        queued_bytes = (await server.memory_bytes() - before_bytes) / (backlog + plan.backlog_tasks)
        before_s = await server.cpu_s()
        async with _worker(plan, server, plan.backlog_tasks) as worker:
            done = await worker.read("done", timeout_s=BUSY_S)
            server_s = await server.cpu_s() - before_s
        worker_s = done["cpu_s"] - done["first_cpu_s"]
        return _cost(worker_s, server_s, plan.backlog_tasks), queued_bytes


async def _with_workers(plan: Plan, count: int) -> Cost:
    """All workers begin at once: the queue is paused while it fills."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(fresh_server(file=False))
        engine = await stack.enter_async_context(bench_engine(server.url, plan.concurrency))
        client = await stack.enter_async_context(_client(server))
        await client.read("ready")
        await engine.queues.pause(keys.DEFAULT_QUEUE)
        await _fill(client, plan.workers_tasks)
        workers = [await stack.enter_async_context(_worker(plan, server, 0)) for _ in range(count)]
        await _until(lambda: _alive(engine, count))
        before_s = [await _cpu_of(worker) for worker in workers]
        before_server_s = await server.cpu_s()
        await engine.queues.resume(keys.DEFAULT_QUEUE)
        await client.ask("await_empty", timeout_s=BUSY_S)
        server_s = await server.cpu_s() - before_server_s
        worker_s = sum([await _cpu_of(worker) for worker in workers]) - sum(before_s)
        return _cost(worker_s, server_s, plan.workers_tasks)


async def _alive(engine: Engine, count: int) -> bool:
    return len(await engine.workers()) == count


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(START_S):
        while not await condition():
            await asyncio.sleep(POLL_S)


async def _cpu_of(worker: Child) -> float:
    return float((await worker.report())["cpu_s"])


async def _fill(client: Child, count: int) -> None:
    for start in range(0, count, FILL_AT_ONCE):
        await client.ask("fill", count=min(FILL_AT_ONCE, count - start))


def _client(server: Server) -> AbstractAsyncContextManager[Child]:
    return module(PEER, "client", server.url)


def _worker(plan: Plan, server: Server, expect: int) -> AbstractAsyncContextManager[Child]:
    return module(PEER, "worker", server.url, str(plan.concurrency), str(expect))


def _cost(worker_s: float, server_s: float, tasks: int) -> Cost:
    return Cost(worker_s / tasks * 1e6, server_s / tasks * 1e6)

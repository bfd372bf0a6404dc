"""How soon the first task of a user starts while another user has many waiting.

One worker is kept busy with tasks of `TASK_S` of one user, of whom so many more wait all the time; now and then a new
user comes with a single one. Its time runs from the enqueue to the claim, by the server's clock, to the millisecond.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.engine.job import TaskRecord
from app.engine.queue import MAX_BATCH, Submission
from app.engine.service import Engine
from app.store import keys
from tests.bench.plan import Plan
from tests.bench.processes import BenchError, module
from tests.bench.rows import Aim, Row, percentile
from tests.bench.scaling import FLAT
from tests.bench.server import fresh_server
from tests.bench.ticker import ticking_engine
from tests.bench.watch import Watch

CONCURRENCY = 4
TASK_S = (0.025, 0.075)
"""The shortest and the longest task."""
REFILL_S = 0.005
BUSY_S = 30.0
"""The longest that the worker may take to come up, or the last tasks to end."""
WITHIN = Aim(f"within the longest task, {TASK_S[1] * 1000:.0f} ms", "ours", "most", TASK_S[1] * 1000)


async def first_tasks(plan: Plan, watch: Watch) -> list[Row]:
    """Two rows for each backlog: p50, against that of the smallest, and p99 over all runs."""
    found: dict[int, list[list[float]]] = {backlog: [] for backlog in plan.fairness_backlogs}
    for number in range(plan.runs):
        for backlog in plan.fairness_backlogs:
            watch.say(f"first tasks of users, {backlog:,} of another waiting, run {number + 1} of {plan.runs}")
            found[backlog].append(await _waits_ms(plan, backlog, seed=number))
    rows: list[Row] = []
    for backlog, runs in found.items():
        rows += _rows(backlog, runs, rows[0].ours if rows else None)
    return rows


def _rows(backlog: int, runs: list[list[float]], first: float | None) -> list[Row]:
    what = f"first task of a user, {backlog:,} of another waiting"
    medians = [statistics.median(run) for run in runs]
    p50, p99 = statistics.median(medians), percentile([wait for run in runs for wait in run], 0.99)
    longest = max(max(run) for run in runs)
    return [
        Row(f"fairness_{backlog}_p50", f"{what}, p50", "ms", p50, ratio=p50 / first if first else None,
            aim=FLAT if first else None, runs={"nightshift": medians},
            note=f"{CONCURRENCY} tasks at once, of {TASK_S[0] * 1000:.0f} to {TASK_S[1] * 1000:.0f} ms"),
        Row(f"fairness_{backlog}_p99", f"{what}, p99", "ms", p99, aim=WITHIN, note=f"the longest {longest:.0f} ms"),
    ]  # fmt: skip


async def _waits_ms(plan: Plan, backlog: int, *, seed: int) -> list[float]:
    chance = random.Random(seed)
    async with (
        fresh_server(file=False) as server,
        ticking_engine(server.url, CONCURRENCY) as engine,
        _kept_busy(engine, backlog, chance),
        module("tests.bench.ticker", server.url, str(CONCURRENCY)),
    ):
        await _until_running(engine)
        ids = []
        for number in range(plan.fairness_samples):
            await asyncio.sleep(chance.uniform(*TASK_S))
            ids.append((await engine.tasks.enqueue(_work(chance), user_id=f"user-{number}")).task_id)
        return [_wait_ms(await _finished(engine, task_id)) for task_id in ids]


def _work(chance: random.Random) -> Submission:
    return Submission("bench.tick", {"after_s": chance.uniform(*TASK_S), "every_s": 0.0, "count": 1})


@asynccontextmanager
async def _kept_busy(engine: Engine, backlog: int, chance: random.Random) -> AsyncIterator[None]:
    """Keep `backlog` tasks of one user waiting behind those that run."""
    await _refill(engine, backlog, chance)
    refilling = asyncio.create_task(_keep_refilling(engine, backlog, chance))
    try:
        yield
    finally:
        refilling.cancel()
        await asyncio.wait({refilling})


async def _keep_refilling(engine: Engine, backlog: int, chance: random.Random) -> None:
    while True:
        await _refill(engine, backlog, chance)
        await asyncio.sleep(REFILL_S)


async def _refill(engine: Engine, backlog: int, chance: random.Random) -> None:
    missing = backlog + CONCURRENCY - int(await engine.redis.zcard(keys.queue(keys.DEFAULT_QUEUE)))
    while missing > 0:
        await engine.tasks.enqueue_many([_work(chance) for _ in range(min(missing, MAX_BATCH))], user_id="busy")
        missing -= MAX_BATCH


async def _until_running(engine: Engine) -> None:
    try:
        async with asyncio.timeout(BUSY_S):
            while (await engine.queues.get(keys.DEFAULT_QUEUE)).running < CONCURRENCY:
                await asyncio.sleep(REFILL_S)
    except TimeoutError:
        raise BenchError(f"the worker was not busy within {BUSY_S:.0f} s") from None


async def _finished(engine: Engine, task_id: str) -> TaskRecord:
    try:
        async with asyncio.timeout(BUSY_S):
            while not (record := await engine.tasks.get(task_id, user_id=None)).status.is_finished:
                await asyncio.sleep(REFILL_S)
    except TimeoutError:
        raise BenchError(f"the first task of a user did not end within {BUSY_S:.0f} s") from None
    return record


def _wait_ms(record: TaskRecord) -> float:
    if record.started_at is None:
        raise BenchError(f"task {record.task_id} ended without a start")
    return (record.started_at - record.enqueued_at).total_seconds() * 1000

"""The worker process as it is deployed, `arq worker.WorkerSettings`.

How soon the tasks of a killed one run again, and what one costs that has nothing to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.catalogue import LANES, catalogue
from app.engine.service import Engine, open_engine
from app.engine.submissions import Submission
from app.settings import load_settings
from tests.bench.plan import Plan
from tests.bench.processes import BenchError, Child, cpu_s, module
from tests.bench.rows import Aim, Row
from tests.bench.server import Server, fresh_server
from tests.bench.watch import Watch

USER = "bench"
START_S = 30.0
AGAIN_S = 40.0
POLL_S = 0.05
SETTLE_S = 2.0
LEASE_S = 10.0
TASKS = 3
"""That the killed worker runs; the last of them to run again counts."""


async def killed_worker(plan: Plan, watch: Watch) -> list[Row]:
    """Seconds from SIGKILL until the tasks of the killed worker run on another one."""
    watch.say("a worker is killed")
    # At different moments of the renewals, which come every 3 s.
    took_s = await asyncio.gather(*(_kill_one(after_s=float(number)) for number in range(plan.kills)))
    aim = Aim("within the lease, 10 s, plus 2 s", "ours", "most", LEASE_S + 2.0)
    note = f"the longest of {len(took_s)} kills, {TASKS} tasks each"
    return [Row("killed_worker", "a killed worker's task runs again", "s", max(took_s), aim=aim, note=note,
                runs={"nightshift": took_s})]  # fmt: skip


async def idle_worker(plan: Plan, watch: Watch) -> list[Row]:
    """CPU of an idle worker with all lanes, in per cent of a core."""
    watch.say("an idle worker")
    async with fresh_server(file=True) as server, _engine(server) as engine, _arq_worker(server) as worker:
        await _until_alive(engine, 1)
        await asyncio.sleep(SETTLE_S)
        before_s, server_before_s = cpu_s(worker.pid), await server.cpu_s()
        await asyncio.sleep(plan.idle_s)
        percent = (cpu_s(worker.pid) - before_s) / plan.idle_s * 100
        server_percent = (await server.cpu_s() - server_before_s) / plan.idle_s * 100
    aim = Aim("under 1 % of a core", "ours", "most", 1.0)
    note = f"over {plan.idle_s:.0f} s, {len(LANES)} lanes; the server {server_percent:.2f} %"
    return [Row("idle_worker", "an idle process with all lanes", "% of a core", percent, aim=aim, note=note)]


async def _kill_one(after_s: float) -> float:
    async with fresh_server(file=False) as server, _engine(server) as engine, _arq_worker(server) as first:
        await _until_alive(engine, 1)
        ids = [await _hold(engine) for _ in range(TASKS)]
        for task_id in ids:
            await _started_ms(engine, task_id, 1)
        async with _arq_worker(server):
            await _until_alive(engine, 2)
            await asyncio.sleep(after_s)
            killed_ms = await _now_ms(server)
            first.kill()
            again_ms = [await _started_ms(engine, task_id, 2) for task_id in ids]
    return (max(again_ms) - killed_ms) / 1000


async def _hold(engine: Engine) -> str:
    accepted = await engine.tasks.enqueue(Submission("system.sleep", {"seconds": 3600}), user_id=USER)
    return accepted.task_id


async def _started_ms(engine: Engine, task_id: str, attempt: int) -> int:
    """When an attempt of a task began, on the server's clock."""
    channel = f"task:{task_id}"
    async with asyncio.timeout(AGAIN_S):
        while True:
            for event in await engine.events.read(channel, channel):
                if event.type == "task_started" and event.data()["attempt"] == attempt:
                    return event.key[0]
            await asyncio.sleep(POLL_S)


async def _until_alive(engine: Engine, count: int) -> None:
    try:
        async with asyncio.timeout(START_S):
            while len(await engine.workers()) < count:
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise BenchError(f"the worker did not come up within {START_S:.0f} s") from None


async def _now_ms(server: Server) -> int:
    seconds, microseconds = await server.redis.time()
    return int(seconds * 1000 + microseconds // 1000)


@asynccontextmanager
async def _arq_worker(server: Server) -> AsyncIterator[Child]:
    env = {"NIGHTSHIFT_REDIS_URL": server.url, "NIGHTSHIFT_LEASE_S": str(LEASE_S)}
    async with module("tests.bench.leash", "arq", "worker.WorkerSettings", env=env) as worker:
        yield worker


@asynccontextmanager
async def _engine(server: Server) -> AsyncIterator[Engine]:
    settings = load_settings(_env_file=None, redis_url=server.url)
    async with open_engine(settings, catalogue(), LANES) as engine:
        yield engine

"""One quota and several real processes: its limit under load, and what one that is killed leaves."""

from __future__ import annotations

import asyncio
import sys
import time
from asyncio.subprocess import PIPE

from redis.asyncio import Redis

from app.engine.limits import Quotas
from app.settings import QuotaLimits
from app.store.scripts import Scripts
from tests.acceptance.processes import ROOT
from tests.bench.quotas import limits, measure
from tests.support import PATIENCE_S

WINDOW_S = 3.0
LEASE_S = 1.0
ONE_SLOT = {"llm": QuotaLimits(concurrency=1)}


async def test_four_processes_never_get_more_than_the_limit_and_use_nearly_all_of_it() -> None:
    _, granted = await measure(WINDOW_S, 2.2 * WINDOW_S)
    most, mean = granted.shares(limits(WINDOW_S)["llm"])
    assert most <= 1.0
    # How much exactly is measured by the benchmark, and by a test on a clock of its own.
    assert mean > 0.8
    assert granted.calls[-1][0] - granted.calls[0][0] > WINDOW_S


HOLDER = f"""
import asyncio, sys
from app.engine.limits import Quotas
from app.settings import QuotaLimits
from app.store.connection import connect
from app.store.scripts import Scripts

async def main():
    quotas = Quotas(Scripts(connect(sys.argv[1])), {{"llm": QuotaLimits(concurrency=1)}}, lease_s={LEASE_S})
    renewing = asyncio.create_task(quotas.run())
    async with quotas.hold("llm"):
        print("held", flush=True)
        await renewing

asyncio.run(main())
"""


async def test_the_slot_of_a_killed_process_is_free_after_its_lease_and_not_before(
    redis_url: str, redis: Redis
) -> None:
    quotas = Quotas(Scripts(redis), ONE_SLOT, lease_s=LEASE_S)
    holder = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, redis_url, cwd=ROOT, stdout=PIPE)
    try:
        assert holder.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            assert await holder.stdout.readline() == b"held\n"
        waiting = asyncio.create_task(_held(quotas))
        done, _ = await asyncio.wait({waiting}, timeout=2 * LEASE_S)
        assert not done, "it lives and renews"
    finally:
        holder.kill()
        await holder.wait()
    killed = time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        assert await waiting > killed


async def _held(quotas: Quotas) -> float:
    async with quotas.hold("llm"):
        return time.monotonic()

"""How exactly a quota is kept over four processes that ask for more than there is: never above it, nearly all of it
used.

The calls are counted where a provider would count them: when they arrive, after the reservation has been granted. What
a window holds is what the calls in it really used; a third of them use less than they reserved. `python -m
tests.bench.quotas URL WINDOW_S BEGIN_S END_S` (the last two by the clock of the server) is one of the processes.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from itertools import accumulate

import uvloop
from redis.asyncio import Redis

from app.engine.limits import Quotas
from app.settings import QuotaLimits
from app.store import keys
from app.store.connection import connect
from app.store.scripts import Scripts
from tests.bench.leash import watch_input
from tests.bench.peers.contract import say
from tests.bench.plan import Plan
from tests.bench.processes import module
from tests.bench.rows import Aim, Row
from tests.bench.server import fresh_server
from tests.bench.watch import Watch

PROCESSES = 4
CALLERS = 24
"""At once in each process."""
CALL_S = 0.03
TOKENS = 90
"""That a call reserves, on average."""
REQUESTS_PER_S, TOKENS_PER_S = 60, 40 * TOKENS
SAVED_SHARE = 1 / 3
"""Of the calls, which use half of what they reserved."""
START_S = 3.0
REPLY_S = 30.0
WAKE_S = 5
SAMPLES = 1_000

Call = tuple[float, float, int, int]
"""When it arrived and when it was granted (seconds), requests, tokens."""


@dataclass(frozen=True)
class Load:
    """Calls: times in seconds, in order, with requests and tokens."""

    window_s: float
    calls: Sequence[tuple[float, int, int]]

    def shares(self, limit: QuotaLimits) -> tuple[float, float]:
        """The most that a window held, and what windows held on average once the first was over: shares of the limit,
        by requests or by tokens, whichever is the larger."""
        return (
            max(max(self._held(which, self._ends())) / bound for which, bound in _bounds(limit)),
            max(_mean(self._held(which, self._samples())) / bound for which, bound in _bounds(limit)),
        )

    def _held(self, which: int, ends_s: Sequence[float]) -> list[int]:
        times = [call[0] for call in self.calls]
        sums = [0, *accumulate(call[which] for call in self.calls)]
        return [sums[bisect_right(times, end)] - sums[bisect_right(times, end - self.window_s)] for end in ends_s]

    def _ends(self) -> list[float]:
        return [call[0] for call in self.calls]

    def _samples(self) -> list[float]:
        first, last = self.calls[0][0] + self.window_s, self.calls[-1][0]
        return [first + (last - first) * number / SAMPLES for number in range(SAMPLES)]


def _bounds(limit: QuotaLimits) -> list[tuple[int, int]]:
    return [(1, limit.requests_per_minute or 1), (2, limit.tokens_per_minute or 1)]


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def limits(window_s: float) -> dict[str, QuotaLimits]:
    """Those of the one key; its minute takes `window_s`."""
    return {"llm": QuotaLimits(int(REQUESTS_PER_S * window_s), int(TOKENS_PER_S * window_s))}


async def quota_accuracy(plan: Plan, watch: Watch) -> list[Row]:
    """What the windows of a quota hold, in per cent of its limit."""
    watch.say("four processes share a quota")
    load, _ = await measure(plan.quota_window_s, plan.quota_windows * plan.quota_window_s)
    most, mean = load.shares(limits(plan.quota_window_s)["llm"])
    what = f"a quota over {PROCESSES} processes"
    note = (
        f"the minute is one of {plan.quota_window_s:g} s; {len(load.calls):,} calls over {plan.quota_windows:g} of "
        f"them, by the time of their arrival; {PROCESSES * CALLERS} callers ask all the time"
    )
    above = Aim("never above the limit in any minute", "ours", "most", 100.0)
    used = Aim("at least 95 % of it used under load", "ours", "least", 95.0)
    return [
        Row("quota_most", f"{what}: the fullest minute", "% of the limit", most * 100, aim=above, note=note),
        Row("quota_used", f"{what}: used under load", "% of the limit", mean * 100, aim=used, note=note),
    ]


async def measure(window_s: float, seconds: float) -> tuple[Load, Load]:
    """Have four processes call for so many seconds: the calls by the time of their arrival, and by that of their
    grant."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(fresh_server(file=False))
        begin_s = await _now_s(server.redis) + START_S
        arguments = (server.url, str(window_s), repr(begin_s), repr(begin_s + seconds))
        callers = [await stack.enter_async_context(module("tests.bench.quotas", *arguments)) for _ in range(PROCESSES)]
        told = [await caller.read("done", timeout_s=START_S + seconds + REPLY_S) for caller in callers]
    calls = [call for one in told for call in one["calls"]]
    arrived = sorted((arrived_s, requests, tokens) for arrived_s, _, requests, tokens in calls)
    granted = sorted((granted_s, requests, tokens) for _, granted_s, requests, tokens in calls)
    return Load(window_s, arrived), Load(window_s, granted)


async def _run(url: str, window_s: float, begin_s: float, end_s: float) -> None:
    redis, worker_id = connect(url), f"caller-{os.getpid()}"
    quotas = Quotas(Scripts(redis), limits(window_s), worker_id=worker_id, window_s=window_s)
    woken = asyncio.create_task(_wake(redis, worker_id, quotas))
    calls: list[Call] = []
    await asyncio.sleep(begin_s - await _now_s(redis))
    with suppress(TimeoutError):
        async with asyncio.timeout(end_s - begin_s), asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(_call(redis, quotas, calls))
    woken.cancel()
    say(event="done", calls=calls)
    await redis.aclose()


async def _call(redis: Redis, quotas: Quotas, calls: list[Call]) -> None:
    chance = random.Random()
    while True:
        estimate = chance.randint(TOKENS - 30, TOKENS + 30)
        used = estimate if chance.random() > SAVED_SHARE else estimate // 2
        async with quotas.hold("llm", tokens=estimate) as quota:
            calls.append((await _now_s(redis), (quota.granted_ms or 0) / 1000, 1, used))
            await asyncio.sleep(CALL_S)
            quota.used(used)


async def _wake(redis: Redis, worker_id: str, quotas: Quotas) -> None:
    """What a worker does with its wake list."""
    while True:
        message = await redis.blpop([keys.wake(worker_id)], timeout=WAKE_S)
        if message is not None:
            quotas.wake(message[1].decode()[1:])


async def _now_s(redis: Redis) -> float:
    seconds, microseconds = await redis.time()
    return float(seconds) + float(microseconds) / 1e6


if __name__ == "__main__":
    watch_input()
    url, *numbers = sys.argv[1:]
    uvloop.run(_run(url, *map(float, numbers)))

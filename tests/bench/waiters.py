"""A worker whose tasks do nothing but steps and waits.

    python -m tests.bench.waiters URL CONCURRENCY

`waits` starts it as a process.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import uvloop
from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.lane import LaneSettings
from app.engine.registry import Catalogue, task
from app.engine.service import Engine, open_engine
from app.engine.waits import Call
from app.settings import load_settings
from app.store import keys
from app.telemetry import configure_logging
from tests.bench.leash import watch_input

LONG = timedelta(days=1)

began_ns: dict[str, int] = {}
"""When this process came to a task for the first time, by its id, on the machine's monotonic clock."""


class Count(BaseModel):
    """How many."""

    count: int = 0


@task("bench.nothing")
async def nothing(ctx: TaskContext, params: Count) -> None:
    """Do nothing."""


@task("bench.steps")
async def steps(ctx: TaskContext, params: Count) -> None:
    """Steps that do nothing."""
    for number in range(params.count):
        await ctx.step(f"step {number}", _nothing)


async def _nothing() -> None:
    pass


@task("bench.call")
async def call(ctx: TaskContext, params: Count) -> int:
    """How long a child that does nothing takes to be called and to return, in ns."""
    began_ns.setdefault(ctx.task_id, time.monotonic_ns())
    await ctx.call(nothing, Count())
    return time.monotonic_ns() - began_ns.pop(ctx.task_id)


@task("bench.gather")
async def gather(ctx: TaskContext, params: Count) -> int:
    """The same for so many children at once."""
    began_ns.setdefault(ctx.task_id, time.monotonic_ns())
    await ctx.gather([Call(nothing, Count()) for _ in range(params.count)])
    return time.monotonic_ns() - began_ns.pop(ctx.task_id)


@task("bench.wait")
async def wait(ctx: TaskContext, params: Count) -> int:
    """Wait for an event that says when it was sent (ns, monotonic); how long it took to come."""
    sent_ns: int = await ctx.wait_event("go", timeout=LONG, returns=int)
    return time.monotonic_ns() - sent_ns


@asynccontextmanager
async def waiting_engine(url: str, concurrency: int) -> AsyncIterator[Engine]:
    """An engine that knows these tasks."""
    lanes = {keys.DEFAULT_QUEUE: LaneSettings(concurrency)}
    catalogue = Catalogue((nothing, steps, call, gather, wait), lanes)
    async with open_engine(load_settings(_env_file=None, redis_url=url), catalogue, lanes) as engine:
        yield engine


async def _work(url: str, concurrency: int) -> None:
    configure_logging("WARNING")
    async with waiting_engine(url, concurrency) as engine, engine.worker():
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    watch_input()
    uvloop.run(_work(sys.argv[1], int(sys.argv[2])))

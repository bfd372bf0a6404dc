"""A worker whose tasks do nothing but emit, each about once a second.

    python -m tests.bench.ticker URL CONCURRENCY

`sockets` starts it as a process.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvloop
from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.lane import LaneSettings
from app.engine.registry import Catalogue, task
from app.engine.service import Engine, open_engine
from app.settings import load_settings
from app.store import keys
from app.telemetry import configure_logging
from tests.bench.leash import watch_input


class Ticks(BaseModel):
    """When to begin, how often to emit and for how long, in seconds."""

    after_s: float
    every_s: float
    count: int


@task("bench.tick")
async def tick(ctx: TaskContext, params: Ticks) -> None:
    """Emit events that carry the time of the machine's monotonic clock."""
    loop = asyncio.get_running_loop()
    next_s = loop.time() + params.after_s
    for _ in range(params.count):
        await asyncio.sleep(max(0.0, next_s - loop.time()))
        await ctx.emit("tick", {"sent_ns": time.monotonic_ns()})
        next_s += params.every_s


@asynccontextmanager
async def ticking_engine(url: str, concurrency: int) -> AsyncIterator[Engine]:
    """An engine that knows this one task."""
    lanes = {keys.DEFAULT_QUEUE: LaneSettings(concurrency)}
    async with open_engine(load_settings(_env_file=None, redis_url=url), Catalogue((tick,), lanes), lanes) as engine:
        yield engine


async def _work(url: str, concurrency: int) -> None:
    configure_logging("WARNING")
    async with ticking_engine(url, concurrency) as engine, engine.worker():
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    watch_input()
    uvloop.run(_work(sys.argv[1], int(sys.argv[2])))

"""A worker whose tasks leave traces in Redis, so that tests can count what really happened.

Run as `arq tests.acceptance.effects.WorkerSettings`; `NIGHTSHIFT_REDIS_URL` says where.
"""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta

from arq import cron
from pydantic import BaseModel

from app.engine import wire
from app.engine.context import TaskContext
from app.engine.lane import LaneSettings
from app.engine.policy import RetryPolicy
from app.engine.registry import Catalogue, task
from app.engine.timetable import Schedule
from app.host import HEALTH_CHECK_INTERVAL_S, Host, host_redis_settings, retention
from app.schedule_jobs import schedule_jobs
from app.settings import load_settings
from app.store.connection import connect
from app.store.keys import HOST_QUEUE
from app.telemetry import configure_logging

LANES = {"default": LaneSettings(8), "other": LaneSettings(2)}
SETTINGS = load_settings(_env_file=None)


class Effect(BaseModel):
    """What to leave a trace of; `seconds` for how long."""

    name: str
    seconds: float = 0.0


async def note(trace: str, value: str) -> None:
    """Append to a list that the test reads."""
    assert SETTINGS.redis_url is not None
    redis = connect(SETTINGS.redis_url.get_secret_value())
    await redis.execute_command("RPUSH", f"trace:{trace}", value)
    await redis.aclose()


@task("effect.once")
async def once(ctx: TaskContext, params: Effect) -> int:
    """Note that an attempt began, wait, note that it ended."""
    await note(params.name, f"begin {ctx.attempt} {os.getpid()}")
    await asyncio.sleep(params.seconds)
    await note(params.name, f"end {ctx.attempt} {os.getpid()}")
    return ctx.attempt


@task("effect.none")
async def none(ctx: TaskContext, params: Effect) -> int:
    """Wait, and leave no trace."""
    await asyncio.sleep(params.seconds)
    return ctx.attempt


@task("effect.stubborn_first", retry=RetryPolicy(max_retries=3, base_s=0.01))
async def stubborn_first(ctx: TaskContext, params: Effect) -> int:
    """The first attempt waits for ever; a later one ends at once."""
    await note(params.name, f"begin {ctx.attempt} {os.getpid()}")
    if ctx.attempt == 1:
        await asyncio.Event().wait()
    return ctx.attempt


@task("effect.block")
async def block(ctx: TaskContext, params: Effect) -> int:
    """Block the event loop, as no task should."""
    await note(params.name, f"begin {ctx.attempt} {os.getpid()}")
    time.sleep(params.seconds)
    return ctx.attempt


@task("effect.steps", retry=RetryPolicy(max_retries=9, base_s=0.01))
async def steps(ctx: TaskContext, params: Effect) -> list[str]:
    """Ten steps, each of which leaves its mark."""

    async def step(name: str) -> str:
        await note(params.name, name)
        await asyncio.sleep(params.seconds)
        return name

    return [await ctx.step(f"step {number}", lambda number=number: step(f"step {number}")) for number in range(10)]


@task("effect.deaf", timeout=timedelta(seconds=1), retry=RetryPolicy(max_retries=0))
async def deaf(ctx: TaskContext, params: Effect) -> None:
    """Ignore every interruption."""
    await note(params.name, f"begin {ctx.attempt} {os.getpid()}")
    while True:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            await note(params.name, f"ignored {ctx.attempt} {os.getpid()}")


TASKS = (once, none, steps, stubborn_first, block, deaf)


SCHEDULES = (
    Schedule("every-second", "effect.once", cron="* * * * * *", params={"name": "tick"}, overlap=True),
    Schedule("no-overlap", "effect.once", cron="* * * * * *", params={"name": "alone", "seconds": 2.5}),
    Schedule("weekly", "effect.once", cron="0 0 * * SUN", params={"name": "missed"}, catch_up="once"),
)
"""Of a worker of `tests.acceptance.effects_scheduled`."""


def worker_settings(*tasks: object, schedules: tuple[Schedule, ...] = ()) -> dict[str, object]:
    """arq worker settings for a catalogue, composed as `worker.py` does."""
    configure_logging(SETTINGS.log_level, SETTINGS.log_format)
    host = Host(SETTINGS, Catalogue(tasks, LANES), LANES, schedules)  # type: ignore[arg-type]
    return {
        "redis_settings": host_redis_settings(SETTINGS),
        "queue_name": HOST_QUEUE,
        "cron_jobs": [cron(retention, name="maintenance.retention", second=0), *schedule_jobs(host.timetable)],
        "on_startup": host.on_startup,
        "on_shutdown": host.on_shutdown,
        "job_serializer": wire.serializer,
        "job_deserializer": wire.deserializer,
        "keep_result": 0,
        "poll_delay": 0.5,
        "health_check_interval": HEALTH_CHECK_INTERVAL_S,
    }


# The test imports the tasks too, and must not start an embedded server by that.
WorkerSettings = worker_settings(*TASKS) if SETTINGS.redis_url else {}

"""Schedules in real worker processes, started as people start them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.engine.queue import Filter
from app.engine.service import Engine
from app.store import keys
from tests.acceptance.effects import SCHEDULES, TASKS
from tests.acceptance.processes import worker
from tests.acceptance.test_workers import alive, noted
from tests.simulated import server_ms
from tests.support import PATIENCE_S, engine_on

pytestmark = pytest.mark.acceptance

MODULE = "tests.acceptance.effects_scheduled"


async def tasks_of(engine: Engine, name: str) -> list[str]:
    page = await engine.tasks.page(Filter(tag=f"schedule:{name}"), user_id=None, limit=200)
    return [record.task_id for record in page.items]


async def decided(engine: Engine, name: str) -> int:
    """The last tick that is decided, Unix seconds; 0: the schedule has not begun."""
    return int(await engine.redis.hget(keys.PREFIXES["schedule"] + name, "seen") or 0) // 1000


async def decided_until(engine: Engine, name: str, until_s: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await decided(engine, name) < until_s:
            await asyncio.sleep(0.05)


async def test_two_workers_fire_each_tick_once_and_one_goes_on_when_the_other_is_killed(
    redis_url: str, tmp_path: Path
) -> None:
    async with engine_on(redis_url, TASKS, schedules=SCHEDULES) as engine:
        await engine.schedules.look()
        begun_s = await decided(engine, "every-second")
        async with (
            worker("first", tmp_path, redis_url, module=MODULE, lease_s=2.0) as first,
            worker("second", tmp_path, redis_url, module=MODULE, lease_s=2.0) as second,
        ):
            await alive(engine, 2)
            await decided_until(engine, "every-second", await decided(engine, "every-second") + 2)
            await first.kill()
            await decided_until(engine, "every-second", await decided(engine, "every-second") + 4)
            await engine.schedules.pause("every-second")
            ticks = await decided(engine, "every-second") - begun_s
            assert len(await tasks_of(engine, "every-second")) == ticks
            await noted(engine, "tick", 2 * ticks)
            # Each of these runs for 2.5 s, so that the ticks meanwhile are passed over.
            assert 1 <= len(await tasks_of(engine, "no-overlap")) <= ticks // 2
            # arq's own cron brings them, not only the look that comes every few seconds.
            assert "schedule.every-second" in second.output()


async def test_a_worker_that_comes_back_catches_up_at_once(redis_url: str, tmp_path: Path) -> None:
    async with engine_on(redis_url, TASKS, schedules=SCHEDULES) as engine:
        await engine.schedules.look()
        long_ago_ms = await server_ms(engine.redis) - 8 * 86_400_000
        await engine.redis.hset(keys.PREFIXES["schedule"] + "weekly", "seen", long_ago_ms)
        async with worker("back", tmp_path, redis_url, module=MODULE):
            await noted(engine, "missed", 2)
        assert len(await tasks_of(engine, "weekly")) == 1

"""What engine, API and acceptance tests share: an engine over the test's server, and waiting for what events say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

from app.engine.events import Event
from app.engine.job import TaskRecord
from app.engine.lane import LaneSettings
from app.engine.registry import Catalogue, Task
from app.engine.service import Engine, open_engine
from app.engine.timetable import Schedule, Timetable
from app.settings import Settings, load_settings
from app.store import keys

LANES = {"default": LaneSettings(8), "other": LaneSettings(2)}
PATIENCE_S = 60.0
"""How long a test waits for something that must come; it is never what is measured."""


def settings_for(url: str, **overrides: Any) -> Settings:
    """Settings for a test, independent of the developer's environment and `.env`."""
    return load_settings(_env_file=None, redis_url=url, **overrides)


@asynccontextmanager
async def engine_on(
    url: str,
    tasks: Iterable[Task[Any, Any]] = (),
    *,
    lanes: Mapping[str, LaneSettings] = LANES,
    schedules: Iterable[Schedule] = (),
    **overrides: Any,
) -> AsyncIterator[Engine]:
    """An engine with the given tasks on the server at `url`."""
    settings, catalogue = settings_for(url, **overrides), Catalogue(tasks, lanes)
    timetable = Timetable(schedules, catalogue, settings.zone)
    async with open_engine(settings, catalogue, lanes, timetable) as engine:
        yield engine


async def event_of(engine: Engine, task_id: str, kind: str, *, count: int = 1) -> dict[str, Any]:
    """Wait for the `count`-th event of a kind in a task's channel; its payload."""
    async with aclosing(events_of(engine, task_id)) as events:
        async for event in events:
            if event.type == kind:
                count -= 1
                if count == 0:
                    return dict(event.data())
    raise AssertionError("the stream of events ended")


async def events_of(engine: Engine, task_id: str) -> AsyncGenerator[Event, None]:
    """All events of a task's channel, those to come included. Fails when it takes longer than `PATIENCE_S`."""
    channel, after = f"task:{task_id}", "0-0"
    async with asyncio.timeout(PATIENCE_S), engine.redis.pubsub() as live:
        await live.subscribe(keys.events(channel))
        while True:
            for event in await engine.events.read(channel, channel, after):
                after = event.id
                yield event
            await live.get_message(timeout=0.5)


async def finished(engine: Engine, task_id: str) -> TaskRecord:
    """Wait until a task is finished; its record with its result."""
    async with aclosing(events_of(engine, task_id)) as events:
        async for _ in events:
            record = await engine.tasks.get(task_id, user_id=None, with_result=True)
            if record.status.is_finished:
                return record
    raise AssertionError("the stream of events ended")

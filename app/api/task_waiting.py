"""Holding a request until a task is finished, without asking Redis again and again.

The order closes the gap in which an end could be missed: follow the task's channel, then read the task, then wait. An
end before the read is read, one after it is an event, and when the subscription was lost for a moment the task is read
again. Where no event will come (a plain arq worker ends a task without one), or the time is over, the last read tells
how the task stands.
"""

from __future__ import annotations

import asyncio

from app.api.lifecycle import Shutdown
from app.engine.events import FINAL_TYPES, Event
from app.engine.job import TaskRecord
from app.engine.service import Engine


async def wait_until_finished(
    engine: Engine, shutdown: Shutdown, task_id: str, *, user_id: str | None, wait_s: float
) -> TaskRecord:
    """The task with its result, as soon as it is finished; after `wait_s`, or when the process stops, as it is then.

    Raises `NotFound`, or `Unavailable` when the events cannot be followed.
    """
    record = await engine.tasks.get(task_id, user_id=user_id, with_result=True)
    if record.status.is_finished or wait_s <= 0 or shutdown.begun:
        return record
    try:
        async with shutdown.limit(wait_s):
            return await _end(engine, task_id, user_id)
    except TimeoutError:
        return await engine.tasks.get(task_id, user_id=user_id, with_result=True)


class _Watch:
    """A listener that only wants to know when to read the task again."""

    def __init__(self) -> None:
        self.news = asyncio.Event()

    def take(self, stream: str, event: Event) -> None:
        if event.type in FINAL_TYPES:
            self.news.set()

    def resync(self, stream: str) -> None:
        self.news.set()


async def _end(engine: Engine, task_id: str, user_id: str | None) -> TaskRecord:
    channel = f"task:{task_id}"
    watch = _Watch()
    try:
        await engine.hub.attach(channel, channel, watch)
        while True:
            watch.news.clear()
            record = await engine.tasks.get(task_id, user_id=user_id, with_result=True)
            if record.status.is_finished:
                return record
            await watch.news.wait()
    finally:
        engine.hub.detach(channel, watch)

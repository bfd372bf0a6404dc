"""Queues as their operators see them: what stands in them, and whether they are paused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from app.engine.lane import LaneSettings
from app.errors import NotFound
from app.store import keys
from app.store.scripts import Scripts


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What stands in a queue. `oldest_ready_age_s` is None when nothing is ready, and otherwise the age of the oldest
    among those next to be taken, 20 of each priority; `concurrency` is that of one worker."""

    name: str
    ready: int
    delayed: int
    running: int
    waiting: int
    dead: int
    oldest_ready_age_s: float | None
    finished_per_minute: int
    concurrency: int | None
    paused: bool

    @property
    def has_work(self) -> bool:
        """Whether a worker is needed."""
        return self.ready > 0 or self.running > 0


class Queues:
    """Look at queues, pause and resume them."""

    def __init__(self, scripts: Scripts, lanes: Mapping[str, LaneSettings]) -> None:
        self._scripts = scripts
        self._lanes = lanes

    async def stats(self) -> list[QueueStats]:
        """All queues that have a lane or ever held a task, by name."""
        stored = {name.decode() for name in await self._scripts.redis.execute_command("SMEMBERS", keys.QUEUES)}
        rows = await self._scripts.queue_stats(sorted(stored | set(self._lanes)))
        return [self._row(row) for row in rows]

    async def get(self, name: str) -> QueueStats:
        """One queue. Raises `NotFound`."""
        for stats in await self.stats():
            if stats.name == name:
                return stats
        raise NotFound(f"no queue {name!r}; known are {', '.join(sorted(self._lanes))}")

    async def pause(self, name: str) -> QueueStats:
        """Start no more tasks of the queue, on any worker. What runs goes on. Raises `NotFound`."""
        await self.get(name)
        await self._scripts.redis.execute_command("SADD", keys.PAUSED, name)
        return await self.get(name)

    async def resume(self, name: str) -> QueueStats:
        """Start tasks of the queue again; workers notice within a second. Raises `NotFound`."""
        await self.get(name)
        await self._scripts.redis.execute_command("SREM", keys.PAUSED, name)
        return await self.get(name)

    def _row(self, row: list[object]) -> QueueStats:
        name, ready, delayed, running, waiting, dead, age_ms, finished, paused = row
        queue = bytes(name).decode()  # type: ignore[call-overload]
        lane = self._lanes.get(queue)
        return QueueStats(
            name=queue,
            ready=_number(ready),
            delayed=_number(delayed),
            running=_number(running),
            waiting=_number(waiting),
            dead=_number(dead),
            oldest_ready_age_s=None if _number(age_ms) < 0 else _number(age_ms) / 1000,
            finished_per_minute=_number(finished),
            concurrency=lane.concurrency if lane else None,
            paused=bool(paused),
        )


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value

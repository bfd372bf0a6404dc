"""What `nightshift doctor` makes of what it sees."""

from __future__ import annotations

from typing import Any

import pytest

from app.cli_doctor import left_lying
from app.engine.queues import QueueStats


def queue(name: str = "chat", *, age_s: float | None = 60.0, paused: bool = False) -> QueueStats:
    return QueueStats(
        name=name,
        ready=1,
        delayed=0,
        running=0,
        waiting=0,
        dead=0,
        oldest_ready_age_s=age_s,
        finished_per_minute=0,
        concurrency=4,
        paused=paused,
    )


def worker(running: int = 0, capacity: int = 8, lane: str = "chat") -> dict[str, Any]:
    return {"running": running, "capacity": capacity, "lanes": {lane: {"concurrency": 4, "running": min(running, 4)}}}


@pytest.mark.parametrize(
    ("stats", "alive", "stuck"),
    [
        (queue(), [worker()], ["chat"]),
        (queue(), [worker(4), worker(3)], ["chat"]),
        (queue(), [worker(4)], []),
        (queue(), [worker(2, capacity=2)], []),
        (queue(), [worker(lane="git")], []),
        (queue(), [], []),
        (queue(age_s=5.0), [worker()], []),
        (queue(age_s=None), [worker()], []),
        (queue(paused=True), [worker()], []),
    ],
)
def test_a_queue_that_nobody_takes_from_although_there_is_room_is_named(
    stats: QueueStats, alive: list[dict[str, Any]], stuck: list[str]
) -> None:
    assert left_lying([stats], alive) == stuck

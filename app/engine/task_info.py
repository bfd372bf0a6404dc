"""What an attempt knows of its task from the beginning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What is known of the task when its attempt begins. `attempt` counts from 1, `steps` are those that came with
    it."""

    task_id: str
    task: str
    queue: str
    user_id: str
    project_id: str | None
    parent_id: str | None
    root_id: str | None
    correlation_id: str | None
    tags: tuple[str, ...]
    attempt: int
    max_attempts: int
    enqueued_at: datetime
    token: int
    claimed_ms: int = 0
    percent: float = 0.0
    steps: Mapping[str, bytes] | None = None
    after: tuple[str, ...] = ()

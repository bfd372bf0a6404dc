"""The record of a task that was just accepted, without reading it back."""

from __future__ import annotations

from datetime import datetime, timedelta

from app.engine.job import Status, TaskRecord, moment
from app.engine.queue import Accepted
from app.engine.registry import TaskSpec
from app.engine.submissions import Submission


def record_of_new(
    accepted: Accepted, item: Submission, spec: TaskSpec, *, user_id: str, correlation_id: str | None
) -> TaskRecord:
    """The record as `TaskQueue.get` would have read it right after the enqueue.

    Raises ValueError for a task whose time of enqueue is not known (`Accepted.enqueued_at`): that one must be read.
    """
    if accepted.enqueued_at is None:
        raise ValueError(f"task {accepted.task_id}: expected one that was just made")
    return TaskRecord(
        task_id=accepted.task_id,
        task=spec.name,
        queue=spec.queue,
        status=Status.PENDING,
        user_id=user_id,
        attempt=0,
        max_attempts=spec.retry.max_attempts,
        project_id=item.project_id,
        parent_id=item.parent_id,
        root_id=item.root_id or item.parent_id,
        retry_of=item.retry_of,
        correlation_id=correlation_id,
        tags=item.tags,
        priority=item.priority,
        progress=None,
        error=None,
        enqueued_at=accepted.enqueued_at,
        due_at=_due_at(accepted.enqueued_at, item),
        started_at=None,
        finished_at=None,
        key=item.key,
    )


def _due_at(enqueued_at: datetime, item: Submission) -> datetime | None:
    """When a delayed task is due, in whole milliseconds as it is stored; None for one that is due at once."""
    if item.run_at is not None:
        due_at = moment(int(item.run_at.timestamp() * 1000))
    elif item.delay_s:
        due_at = enqueued_at + timedelta(milliseconds=int(item.delay_s * 1000))
    else:
        return None
    return due_at if due_at > enqueued_at else None

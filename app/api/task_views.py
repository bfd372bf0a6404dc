"""Tasks as clients read them.

The models describe the shapes; what is sent is made from the record directly (`task_view`), since a task is posted and
polled far too often to be validated a second time. A test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict
from pydantic_core import to_json
from starlette.responses import Response

from app.engine.job import ErrorInfo, Progress, Status, Step, TaskRecord

_SHORTEST_POLL_MS = 250
_LONGEST_POLL_MS = 10_000
_POLLS_PER_AGE = 10
"""A client that polls as it is told learns of the end at most a tenth of the task's age late."""

EXAMPLE: JsonDict = {
    "task_id": "019ab3f0c1d2004f8b6d4e1c9a7f0325",
    "task": "system.echo",
    "queue": "default",
    "status": "SUCCESS",
    "progress": None,
    "result": {"value": "hello"},
    "error": None,
    "attempt": 1,
    "max_attempts": 4,
    "next_attempt_at": None,
    "waiting_for": None,
    "key": None,
    "behind": None,
    "user_id": "ada",
    "project_id": "apollo",
    "parent_id": None,
    "root_id": None,
    "retry_of": None,
    "correlation_id": "8a1f0c52d6e34b7f9d20c1e5b7a64f13",
    "priority": 0,
    "tags": ["demo"],
    "enqueued_at": "2026-11-21T20:15:00.120Z",
    "started_at": "2026-11-21T20:15:00.121Z",
    "finished_at": "2026-11-21T20:15:00.124Z",
    "steps": [],
}


class ProgressView(BaseModel):
    """How far a task has come."""

    current: float
    total: float
    percent: float = Field(ge=0, le=100, description="It never goes back.")
    label: str
    updated_at: AwareDatetime | None


class StepView(BaseModel):
    """A part of the task that has completed and will not run again."""

    name: str = Field(description="That of `ctx.step`, or what was waited for.")
    completed_at: AwareDatetime
    duration_s: float = Field(description="From its begin to its end; of a wait, as long as the task waited.")


class WaitingForView(BaseModel):
    """What a task waits for. It holds no worker meanwhile."""

    kind: Literal["tasks", "time", "event", "approval"] = Field(
        description="Other tasks, a moment, an event from outside, or a person's answer."
    )
    step: str = Field(description="The name of the wait among the task's steps.")
    until: AwareDatetime = Field(description="When it waits no longer.")
    task_ids: list[str] = Field([], description="Of `tasks`: the first twenty of them.")
    count: int | None = Field(None, description="Of `tasks`: how many when the wait began.")
    name: str | None = Field(None, description="Of `event`: its name.")
    approval_id: str | None = Field(None, description="Of `approval`: which.")


class TaskErrorView(BaseModel):
    """What the last attempt died of. Some errors carry further members."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="The name of the error's class.")
    message: str = Field(description="At most 4,000 characters, without secrets.")
    retryable: bool = Field(description="Whether running the same task again may help.")


class TaskView(BaseModel):
    """A task. Times are RFC 3339 in UTC. Lists leave `result` and `steps` out."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    task_id: str
    task: str = Field(description="Its type, one of `GET /api/task-types`.")
    queue: str
    status: Status
    progress: ProgressView | None
    result: Any = Field(None, description="What the task returned; null until it has succeeded, and left out of lists.")
    error: TaskErrorView | None = Field(description="Of the last attempt that failed.")
    attempt: int = Field(description="Which attempt this is or was; 0 before the first.")
    max_attempts: int | None = Field(description="Null for a task that a plain arq client enqueued.")
    next_attempt_at: AwareDatetime | None = Field(description="When a delayed task, or its next attempt, is due.")
    waiting_for: WaitingForView | None = Field(description="What a task in WAITING waits for.")
    key: str | None = Field(description="What it is under: of its user's tasks of one key, one runs at a time.")
    behind: int | None = Field(
        description="How many tasks must end before its key or its group lets it run; null in lists."
    )
    user_id: str
    project_id: str | None
    parent_id: str | None = Field(description="The task that started it.")
    root_id: str | None = Field(description="The first of its ancestors.")
    retry_of: str | None = Field(description="The finished task that it is a repetition of.")
    correlation_id: str | None = Field(description="`X-Correlation-ID` of the request that posted it.")
    priority: int
    tags: list[str]
    enqueued_at: AwareDatetime
    started_at: AwareDatetime | None = Field(description="When the last attempt began; it waits within it.")
    finished_at: AwareDatetime | None
    steps: list[StepView] = Field([], description="Completed steps, in order; left out of lists.")


class TaskList(BaseModel):
    """A page of tasks, newest first, without their results."""

    items: list[TaskView]
    next_cursor: str | None = Field(description="For the next page; null at the end. A page before it may be short.")


def task_view(record: TaskRecord) -> dict[str, Any]:
    """A task as `TaskView` describes it, without its result and its steps."""
    return {
        "task_id": record.task_id,
        "task": record.task,
        "queue": record.queue,
        "status": record.status,
        "progress": record.progress and _progress_view(record.progress),
        "error": record.error and error_view(record.error),
        "attempt": record.attempt,
        "max_attempts": record.max_attempts,
        "next_attempt_at": record.next_attempt_at,
        "waiting_for": record.waiting_for,
        "key": record.key,
        "behind": record.behind,
        "user_id": record.user_id,
        "project_id": record.project_id,
        "parent_id": record.parent_id,
        "root_id": record.root_id,
        "retry_of": record.retry_of,
        "correlation_id": record.correlation_id,
        "priority": record.priority,
        "tags": record.tags,
        "enqueued_at": record.enqueued_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
    }


def task_json(record: TaskRecord) -> bytes:
    """A task with its result and its steps, as JSON."""
    return json_bytes({**task_view(record), "result": record.result, "steps": step_views(record.steps)})


def step_views(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """Completed steps, as `StepView` describes them."""
    return [{"name": step.name, "completed_at": step.completed_at, "duration_s": step.duration_s} for step in steps]


def error_view(error: ErrorInfo) -> dict[str, Any]:
    """A task's error as `TaskErrorView` describes it."""
    return {**error.extra, "type": error.type, "message": error.message, "retryable": error.retryable}


def json_bytes(value: Any) -> bytes:
    """`value` as JSON. Numbers that JSON cannot hold, which only plain arq workers store, become null."""
    return to_json(value, inf_nan_mode="null")


def json_response(value: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`value` as a JSON response."""
    return Response(json_bytes(value), status_code, headers, "application/json")


def list_response(items: Sequence[Any], next_cursor: str | None = None) -> Response:
    """A page, in the shape that all lists have."""
    return json_response({"items": items, "next_cursor": next_cursor})


def poll_interval_ms(record: TaskRecord, now: datetime | None = None) -> int:
    """When a client should ask for the task again, in ms: 0 when it is finished.

    It grows with the age of the task, from 250 ms to 10 s; a task that is not due yet need not be asked for before.
    """
    if record.status.is_finished:
        return 0
    now = now or datetime.now(UTC)
    due_at = record.next_attempt_at
    if due_at is not None and due_at > now:
        wanted_ms = (due_at - now).total_seconds() * 1000 + _SHORTEST_POLL_MS
    else:
        wanted_ms = (now - (record.started_at or record.enqueued_at)).total_seconds() * 1000 / _POLLS_PER_AGE
    return int(min(max(wanted_ms, _SHORTEST_POLL_MS), _LONGEST_POLL_MS))


def _progress_view(progress: Progress) -> dict[str, Any]:
    return {
        "current": progress.current,
        "total": progress.total,
        "percent": progress.percent,
        "label": progress.label,
        "updated_at": progress.updated_at,
    }

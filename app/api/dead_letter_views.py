"""Dead letters as their owners see them: narrowed, listed, whole, and what was done with many at once."""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from app.api.dependencies import Cursor, Label, Limit
from app.api.task_requests import Instant
from app.api.task_views import StepView, TaskErrorView, error_view, step_views
from app.engine.dead_letters import MAX_BULK
from app.engine.letters import DeadLetter, LetterFilter, OpenedLetter

_EXAMPLE: JsonDict = {
    "task_id": "019ab3f0c1d2004f8b6d4e1c9a7f0325",
    "task": "system.fail",
    "queue": "default",
    "user_id": "ada",
    "project_id": None,
    "correlation_id": "8a1f0c52d6e34b7f9d20c1e5b7a64f13",
    "tags": [],
    "error": {"type": "PermanentError", "message": "attempt 1 fails as it was asked to", "retryable": False},
    "attempts": 1,
    "enqueued_at": "2026-11-21T20:15:00.120Z",
    "failed_at": "2026-11-21T20:15:00.124Z",
}


class DeadLetterItem(BaseModel):
    """A task that failed for good, as lists show it."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    task_id: str
    task: str
    queue: str
    user_id: str
    project_id: str | None
    correlation_id: str | None
    tags: list[str]
    error: TaskErrorView = Field(description="What its last attempt died of.")
    attempts: int
    enqueued_at: AwareDatetime
    failed_at: AwareDatetime


class PastAttemptView(BaseModel):
    """An attempt that failed and was followed by another."""

    attempt: int
    at: AwareDatetime
    error: TaskErrorView


class DeadLetterView(DeadLetterItem):
    """A task that failed for good, whole."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {**_EXAMPLE, "params": {"times": None}, "traceback": "Traceback …", "history": [], "steps": []}
            ]
        }
    )

    params: dict[str, Any] | None = Field(description="Null where they could not be read.")
    traceback: str = Field(description="Of the last attempt.")
    history: list[PastAttemptView] = Field(description="The attempts before the last, oldest first.")
    steps: list[StepView] = Field(description="Completed steps; a replay does not run them again.")


class DeadLetterList(BaseModel):
    """A page of dead letters, newest first."""

    items: list[DeadLetterItem]
    next_cursor: str | None = Field(description="For the next page; null at the end. A page before it may be short.")


class _Filters(BaseModel):
    model_config = ConfigDict(extra="forbid")

    queue: Label | None = None
    task: Label | None = None
    project_id: Label | None = None
    tag: Label | None = None
    error_type: Label | None = Field(None, description="The name of the class of the last attempt's error.")
    failed_after: Instant | None = Field(None, description="Those that failed then or later.")
    failed_before: Instant | None = Field(None, description="Those that failed before.")

    def wanted(self) -> LetterFilter:
        """What the engine takes."""
        return LetterFilter(
            queue=self.queue,
            task=self.task,
            project_id=self.project_id,
            tag=self.tag,
            error_type=self.error_type,
            failed_after=self.failed_after,
            failed_before=self.failed_before,
        )


class DeadLetterQuery(_Filters):
    """What a list of dead letters is narrowed to."""

    cursor: Cursor = ""
    limit: Limit = 50

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, values: Any) -> Any:
        # A query parameter that is there without a value does not narrow.
        return {name: value for name, value in values.items() if value != ""} if isinstance(values, dict) else values


class ReplayRequest(BaseModel):
    """What to change when a dead letter is replayed."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"params": {"value": "again"}}]})

    params: dict[str, Any] | None = Field(None, description="Instead of the old ones.")


class BulkRequest(_Filters):
    """Which dead letters to replay or to discard. At least one filter, or `all`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"task": "system.fail", "limit": 100}]})

    all: bool = Field(False, strict=True, description="Without a filter, this must say that every one is meant.")
    cursor: Cursor = Field("", description="`next_cursor` of the call before.")
    limit: int = Field(MAX_BULK, ge=1, le=MAX_BULK, strict=True, description="Dead letters looked at, at most.")


class ReplayedView(BaseModel):
    """A dead letter and the task that it became."""

    task_id: str
    replayed_as: str


class NotReplayedView(BaseModel):
    """A dead letter that could not be replayed, and stays."""

    task_id: str
    error: str = Field(description="The name of the class of the reason.")
    detail: str


class BulkReplayView(BaseModel):
    """What a replay in bulk did."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "replayed": [{"task_id": "019ab3f0c1d2004f", "replayed_as": "019ab3f0c1d2005a"}],
                    "failed": [
                        {"task_id": "019ab3f0c1d20050", "error": "UnknownTask", "detail": "no task is called …"}
                    ],
                    "next_cursor": None,
                }
            ]
        }
    )

    replayed: list[ReplayedView]
    failed: list[NotReplayedView]
    next_cursor: str | None = Field(description="To go on with the rest; null when nothing is left.")


class BulkDiscardView(BaseModel):
    """What a discard in bulk did."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"discarded": 100, "next_cursor": None}]})

    discarded: int
    next_cursor: str | None = Field(description="To go on with the rest; null when nothing is left.")


def opened_view(opened: OpenedLetter) -> dict[str, Any]:
    """A dead letter as `DeadLetterView` describes it."""
    history = [{"attempt": past.attempt, "at": past.at, "error": past.error} for past in opened.history]
    rest = {"params": opened.params, "traceback": opened.traceback, "history": history}
    return letter_view(opened.letter) | rest | {"steps": step_views(opened.steps)}


def letter_view(letter: DeadLetter) -> dict[str, Any]:
    """A dead letter as `DeadLetterItem` describes it."""
    return {
        "task_id": letter.task_id,
        "task": letter.task,
        "queue": letter.queue,
        "user_id": letter.user_id,
        "project_id": letter.project_id,
        "correlation_id": letter.correlation_id,
        "tags": letter.tags,
        "error": error_view(letter.error),
        "attempts": letter.attempts,
        "enqueued_at": letter.enqueued_at,
        "failed_at": letter.failed_at,
    }

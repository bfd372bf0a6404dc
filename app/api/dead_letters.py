"""Dead letters: tasks that failed for good, with all that is known of why."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict
from starlette.responses import Response

from app.api.auth import Caller
from app.api.dependencies import Cursor, EngineDep, Label, Limit, NoneIfEmpty, TaskId, owner_of
from app.api.openapi import problem_responses
from app.api.task_views import TaskErrorView, error_view, json_response, list_response
from app.engine.dead_letters import DeadLetter

router = APIRouter(prefix="/api/dead-letters", tags=["operation"], responses=problem_responses(401, 403, 422, 503))

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
            "examples": [{**_EXAMPLE, "params": {"times": None}, "traceback": "Traceback …", "history": []}]
        }
    )

    params: dict[str, Any] | None = Field(description="Null where they could not be read.")
    traceback: str = Field(description="Of the last attempt.")
    history: list[PastAttemptView] = Field(description="The attempts before the last, oldest first.")


class DeadLetterList(BaseModel):
    """A page of dead letters, newest first."""

    items: list[DeadLetterItem]
    next_cursor: str | None = Field(description="For the next page; null at the end. A page before it may be short.")


class DeadLetterQuery(BaseModel):
    """What a list of dead letters is narrowed to."""

    model_config = ConfigDict(extra="forbid")

    queue: Annotated[Label | None, NoneIfEmpty] = None
    task: Annotated[Label | None, NoneIfEmpty] = None
    cursor: Cursor = ""
    limit: Limit = 50


@router.get("", summary="List dead letters", response_model=DeadLetterList)
async def list_dead_letters(query: Annotated[DeadLetterQuery, Query()], caller: Caller, engine: EngineDep) -> Response:
    """The caller's dead letters (an admin's: everybody's), newest first, without parameters and tracebacks."""
    page = await engine.dead_letters.page(
        user_id=owner_of(caller), queue=query.queue, task=query.task, cursor=query.cursor, limit=query.limit
    )
    return list_response([_item(letter) for letter in page.items], page.next_cursor)


@router.get("/{task_id}", summary="Read a dead letter", response_model=DeadLetterView, responses=problem_responses(404))
async def read_dead_letter(task_id: TaskId, caller: Caller, engine: EngineDep) -> Response:
    """One of them with its parameters, its traceback and the errors of all attempts."""
    opened = await engine.dead_letters.get(task_id, user_id=owner_of(caller))
    history = [{"attempt": past.attempt, "at": past.at, "error": past.error} for past in opened.history]
    rest = {"params": opened.params, "traceback": opened.traceback, "history": history}
    return json_response(_item(opened.letter) | rest)


def _item(letter: DeadLetter) -> dict[str, Any]:
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

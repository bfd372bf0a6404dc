"""Dead letters: tasks that failed for good, with all that is known of why; replay and discard them.

One belongs to whoever posted its task. To everybody else but admins it does not exist.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from app.api.auth import Caller
from app.api.dead_letter_views import (
    BulkDiscardView,
    BulkReplayView,
    BulkRequest,
    DeadLetterList,
    DeadLetterQuery,
    DeadLetterView,
    ReplayRequest,
    letter_view,
    opened_view,
)
from app.api.dependencies import EngineDep, TaskId, owner_of
from app.api.json_route import JsonRoute
from app.api.openapi import problem_responses
from app.api.task_views import TaskView, json_response, list_response
from app.api.tasks import accepted_response, task_answer
from app.telemetry import current_correlation_id

router = APIRouter(
    prefix="/api/dead-letters",
    tags=["operation"],
    route_class=JsonRoute,
    responses=problem_responses(401, 403, 422, 503),
)


@router.get("", summary="List dead letters", response_model=DeadLetterList)
async def list_dead_letters(query: Annotated[DeadLetterQuery, Query()], caller: Caller, engine: EngineDep) -> Response:
    """The caller's dead letters (an admin's: everybody's), newest first, without parameters and tracebacks."""
    page = await engine.dead_letters.page(
        query.wanted(), user_id=owner_of(caller), cursor=query.cursor, limit=query.limit
    )
    return list_response([letter_view(letter) for letter in page.items], page.next_cursor)


@router.post(
    "/replay", summary="Replay many dead letters", response_model=BulkReplayView, responses=problem_responses(413)
)
async def replay_dead_letters(body: BulkRequest, caller: Caller, engine: EngineDep) -> Response:
    """Replay those of the caller (an admin: of everybody) that match, the newest first, up to `limit` of them.

    Each is replayed with its own parameters, as a single one is. What cannot be is told under `failed`, and stays. To
    go on, repeat the request with `next_cursor` as its `cursor`.

    Problems: 422 for neither a filter nor `all`.
    """
    bulk = await engine.dead_letters.replay_many(
        body.wanted(),
        user_id=owner_of(caller),
        everything=body.all,
        cursor=body.cursor,
        limit=body.limit,
        correlation_id=current_correlation_id(),
    )
    return json_response({"replayed": bulk.replayed, "failed": bulk.failed, "next_cursor": bulk.next_cursor})


@router.post(
    "/discard", summary="Discard many dead letters", response_model=BulkDiscardView, responses=problem_responses(413)
)
async def discard_dead_letters(body: BulkRequest, caller: Caller, engine: EngineDep) -> Response:
    """Discard those of the caller (an admin: of everybody) that match, the newest first, up to `limit` of them.

    To go on, repeat the request with `next_cursor` as its `cursor`. Problems: 422 for neither a filter nor `all`.
    """
    bulk = await engine.dead_letters.discard_many(
        body.wanted(), user_id=owner_of(caller), everything=body.all, cursor=body.cursor, limit=body.limit
    )
    return json_response({"discarded": bulk.discarded, "next_cursor": bulk.next_cursor})


@router.get("/{task_id}", summary="Read a dead letter", response_model=DeadLetterView, responses=problem_responses(404))
async def read_dead_letter(task_id: TaskId, caller: Caller, engine: EngineDep) -> Response:
    """One of them with its parameters, its traceback, the errors of all attempts and its completed steps."""
    return json_response(opened_view(await engine.dead_letters.get(task_id, user_id=owner_of(caller))))


@router.post(
    "/{task_id}/replay",
    status_code=202,
    summary="Replay a dead letter",
    response_model=TaskView,
    responses={202: accepted_response("The new task."), **problem_responses(404, 409, 413)},
)
async def replay_dead_letter(
    task_id: TaskId, caller: Caller, engine: EngineDep, body: ReplayRequest | None = None
) -> Response:
    """Make a new task of the same owner, project, tags and priority; its `retry_of` names the old one. The dead letter
    is gone then.

    With the old parameters the new task goes on behind the finished steps of the old one; with `params` of another
    value it runs all of them.

    Problems: 404 no such dead letter, or no such task any more; 409 it was replayed already, with the id of the task
    that it became as `replayed_as`; 422 wrong parameters, with a JSON pointer to the field; 503 with `Retry-After` when
    the queue is full. The dead letter stays then.
    """
    accepted = await engine.dead_letters.replay(
        task_id,
        user_id=owner_of(caller),
        params=body.params if body else None,
        correlation_id=current_correlation_id(),
    )
    record = await engine.tasks.get(accepted.task_id, user_id=owner_of(caller), with_result=True)
    return task_answer(record, 202)


@router.delete(
    "/{task_id}",
    status_code=204,
    summary="Discard a dead letter",
    response_model=None,
    responses={204: {"description": "It is gone."}, **problem_responses(404)},
)
async def discard_dead_letter(task_id: TaskId, caller: Caller, engine: EngineDep) -> Response:
    """Take it away for good, with its parameters and its steps. The record of its task lives on for its time."""
    await engine.dead_letters.discard(task_id, user_id=owner_of(caller))
    return Response(status_code=204)

"""Tasks: post them, read them, wait for them, cancel them, run them again.

A task belongs to whoever posted it. To everybody else but admins it does not exist.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict
from starlette.responses import Response

from app.api.auth import Caller
from app.api.dependencies import (
    Cursor,
    EngineDep,
    Label,
    Limit,
    NoneIfEmpty,
    TaskId,
    engine_of,
    owner_of,
    shutdown_of,
)
from app.api.etags import etag_of, matches
from app.api.json_route import JsonRoute
from app.api.openapi import problem_responses
from app.api.principal import Principal
from app.api.task_requests import BatchAccepted, BatchRequest, EventAccepted, EventRequest, RetryRequest, TaskRequest
from app.api.task_views import (
    TaskList,
    TaskView,
    error_view,
    json_response,
    list_response,
    poll_interval_ms,
    task_json,
    task_view,
)
from app.api.task_waiting import wait_until_finished
from app.engine.job import Status, TaskRecord
from app.engine.queue import Filter
from app.engine.receipt import record_of_new
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.errors import Conflict, Gone, InvalidInput, NotFound
from app.telemetry import current_correlation_id

MAX_WAIT_S = 30

router = APIRouter(
    prefix="/api/tasks", tags=["tasks"], route_class=JsonRoute, responses=problem_responses(401, 403, 503)
)

LOCATION = {"Location": {"description": "Where the task can be read.", "schema": {"type": "string"}}}
"""OpenAPI of the header of a new task."""
READ_HEADERS = {
    "ETag": {"description": "Of this state of the task.", "schema": {"type": "string"}},
    "X-Poll-Interval": {
        "description": "In how many milliseconds to ask again; 0: it is finished.",
        "schema": {"type": "integer"},
    },
}
IdempotencyKey = Annotated[
    Label | None, Header(description="The same key and request again give the first task, for a day by default.")
]


class TaskQuery(BaseModel):
    """What a list of tasks is narrowed to."""

    model_config = ConfigDict(extra="forbid")

    status: Annotated[Status | None, NoneIfEmpty] = None
    queue: Annotated[Label | None, NoneIfEmpty] = None
    task: Annotated[Label | None, NoneIfEmpty] = None
    project_id: Annotated[Label | None, NoneIfEmpty] = None
    tag: Annotated[Label | None, NoneIfEmpty] = None
    cursor: Cursor = ""
    limit: Limit = 50


class NoResult(Gone):
    """The task failed, so that there is no result."""

    title = "Task failed"

    def __init__(self, task_id: str, error: dict[str, Any]) -> None:
        super().__init__(f"task {task_id} failed: {error['type']}: {error['message']}")
        self.error = error

    def extra(self) -> dict[str, Any]:
        """The task's error."""
        return {"error": self.error}


def accepted_response(description: str) -> dict[str, Any]:
    """OpenAPI of an answer that names a new task."""
    return {"description": description, "headers": LOCATION}


@router.post(
    "",
    status_code=202,
    summary="Post a task",
    response_model=TaskView,
    responses={
        202: accepted_response("The task is stored and will run."),
        200: {
            **accepted_response("The task that this idempotency key made before, or that stands for it under its key."),
            "model": TaskView,
        },
        **problem_responses(404, 409, 410, 413, 422),
    },
)
async def post_task(
    body: TaskRequest, request: Request, caller: Caller, idempotency_key: IdempotencyKey = None
) -> Response:
    """Accept a task and answer at once; it runs when a worker has room for it.

    Problems: 404 no such task; 422 wrong parameters, with a JSON pointer to the field; 409 the idempotency key was used
    for another request, or the `key` is busy; 410 the task it made is forgotten; 503 with `Retry-After` when the queue
    is full.
    """
    return await accept(engine_of(request), body.submission(idempotency_key), caller)


async def accept(engine: Engine, item: Submission, caller: Principal) -> Response:
    """Enqueue a task of the caller, and answer with its view."""
    correlation_id = current_correlation_id()
    accepted = await engine.tasks.enqueue(item, user_id=caller.user_id, correlation_id=correlation_id)
    if accepted.enqueued_at is None or item.after:
        # What stands there already, or waits, only the store knows.
        record = await _made_before(engine, accepted.task_id, caller.user_id)
    else:
        spec = engine.catalogue[item.task].spec
        record = record_of_new(accepted, item, spec, user_id=caller.user_id, correlation_id=correlation_id)
    return task_answer(record, 202 if accepted.created else 200)


@router.post(
    "/batch",
    status_code=202,
    summary="Post up to 1,000 tasks at once",
    response_model=BatchAccepted,
    responses=problem_responses(404, 409, 413, 422),
)
async def post_batch(body: BatchRequest, request: Request, caller: Caller, engine: EngineDep) -> Response:
    """Accept all of the tasks or none of them. The problems are those of a single task, with pointers into `tasks`."""
    if "idempotency-key" in request.headers:
        raise InvalidInput("Idempotency-Key: expected the member idempotency_key of each task of a batch instead")
    accepted = await engine.tasks.enqueue_many(
        body.submissions(), user_id=caller.user_id, correlation_id=current_correlation_id(), then=body.last()
    )
    return json_response({"task_ids": [item.task_id for item in accepted]}, 202)


@router.get("", summary="List tasks", response_model=TaskList, responses=problem_responses(422))
async def list_tasks(query: Annotated[TaskQuery, Query()], caller: Caller, engine: EngineDep) -> Response:
    """The caller's tasks (an admin's: everybody's), newest first, without their results.

    A page may hold fewer items than `limit` and still have a next one: `next_cursor` alone says where the list ends.
    """
    wanted = Filter(status=query.status, queue=query.queue, task=query.task, project_id=query.project_id, tag=query.tag)
    page = await engine.tasks.page(wanted, user_id=owner_of(caller), cursor=query.cursor, limit=query.limit)
    return list_response([task_view(record) for record in page.items], page.next_cursor)


@router.get(
    "/{task_id}",
    summary="Read a task, or wait for its end",
    response_model=TaskView,
    responses={
        200: {"description": "The task as it stands.", "headers": READ_HEADERS},
        304: {"description": "It is as the ETag in If-None-Match says.", "headers": READ_HEADERS},
        **problem_responses(404, 422),
    },
)
async def read_task(
    task_id: TaskId,
    request: Request,
    caller: Caller,
    *,
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="Seconds to hold until it is finished.")] = 0,
    if_none_match: Annotated[str | None, Header(description="An ETag of before.")] = None,
) -> Response:
    """The task with its progress, result and error.

    With `wait` the answer comes as soon as the task is finished, or after that time as it then stands. Without,
    `X-Poll-Interval` says when to ask again.
    """
    record = await wait_until_finished(
        engine_of(request), shutdown_of(request), task_id, user_id=owner_of(caller), wait_s=wait
    )
    content = task_json(record)
    etag = etag_of(content)
    headers = {"etag": etag, "x-poll-interval": str(poll_interval_ms(record))}
    if matches(etag, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type="application/json")


@router.get(
    "/{task_id}/result",
    summary="Read the result alone",
    response_model=Any,
    responses={200: {"description": "What the task returned."}, **problem_responses(404, 409, 410)},
)
async def read_result(task_id: TaskId, caller: Caller, engine: EngineDep) -> Response:
    """What the task returned, as it is.

    Problems: 409 while it is unfinished; 410 when there is none and never will be: it failed (`error` says how), was
    cancelled, or its result is not kept any more.
    """
    record = await engine.tasks.get(task_id, user_id=owner_of(caller), with_result=True)
    return json_response(_result_of(record))


@router.post(
    "/{task_id}/cancel",
    status_code=202,
    summary="Cancel a task and its children",
    response_model=TaskView,
    responses=problem_responses(404, 409),
)
async def cancel_task(task_id: TaskId, caller: Caller, engine: EngineDep) -> Response:
    """Cancel what waits at once, and what runs within a second. 409 when the task is finished."""
    record = await engine.tasks.cancel(task_id, user_id=owner_of(caller))
    return Response(task_json(record), 202, media_type="application/json")


@router.post(
    "/{task_id}/retry",
    status_code=202,
    summary="Run a finished task again",
    response_model=TaskView,
    responses={202: accepted_response("The new task."), **problem_responses(404, 409, 413, 422)},
)
async def retry_task(task_id: TaskId, caller: Caller, engine: EngineDep, body: RetryRequest | None = None) -> Response:
    """Make a new task of the same owner with the same or other parameters; its `retry_of` names the old one.

    It runs from its beginning, whatever the old one has done. To go on behind the finished steps of one that failed for
    good, replay its dead letter (`POST /api/dead-letters/{id}/replay`).

    Problems: 409 while the old one is unfinished; those of posting a task.
    """
    accepted = await engine.tasks.retry(
        task_id,
        user_id=owner_of(caller),
        params=body.params if body else None,
        correlation_id=current_correlation_id(),
    )
    return task_answer(await engine.tasks.get(accepted.task_id, user_id=owner_of(caller)), 202)


@router.post(
    "/{task_id}/events",
    status_code=202,
    summary="Deliver an event to a task",
    response_model=EventAccepted,
    responses=problem_responses(404, 409, 413, 422),
)
async def deliver_event(
    task_id: TaskId,
    body: EventRequest,
    caller: Caller,
    engine: EngineDep,
    idempotency_key: Annotated[Label | None, Header(description="The same key again delivers nothing more.")] = None,
) -> Response:
    """Give a task something that it waits for, or will wait for; events of one name are taken in their order.

    Problems: 409 when the task is finished; 413 when the payload is larger than 64 KiB, or the task has 1,000 events
    that it did not take.
    """
    delivered = await engine.inbox.deliver(
        task_id, body.name, body.payload, user_id=owner_of(caller), key=idempotency_key
    )
    return json_response({"delivered": delivered}, 202)


async def _made_before(engine: Engine, task_id: str, user_id: str) -> TaskRecord:
    try:
        return await engine.tasks.get(task_id, user_id=user_id, with_result=True)
    except NotFound:
        raise Gone(f"task {task_id}, which was made under this idempotency key, is not kept any more") from None


def task_answer(record: TaskRecord, status_code: int) -> Response:
    """A task that was made, with where it can be read."""
    headers = {"location": f"{router.prefix}/{record.task_id}"}
    return Response(task_json(record), status_code, headers, "application/json")


def _result_of(record: TaskRecord) -> Any:
    if not record.status.is_finished:
        raise Conflict(f"task {record.task_id} is not finished ({record.status})")
    if record.status is Status.CANCELLED:
        raise Gone(f"task {record.task_id} was cancelled; it has no result")
    if record.error is not None and record.status is Status.FAILURE:
        raise NoResult(record.task_id, error_view(record.error))
    if not record.has_result:
        raise Gone(f"the result of task {record.task_id} is not kept any more")
    return record.result

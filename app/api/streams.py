"""Events over HTTP: of a task, of a project, of the caller. As a stream, or as pages of what is past."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import to_json
from starlette.responses import Response

from app.api.auth import Caller
from app.api.dependencies import EngineDep, Label, TaskId, owner_of, shutdown_of
from app.api.event_stream import EVENT_STREAM, EventStream, Place, followed, stored
from app.api.openapi import problem_responses
from app.api.principal import Principal
from app.api.problems import STORE_ERRORS
from app.engine.events import PAGE, START, event_key, stream_name
from app.engine.listeners import Listener
from app.engine.service import Engine
from app.errors import NotFound

router = APIRouter(tags=["events"], responses=problem_responses(401, 403, 404, 503))

_EVENT_ID = r"^([0-9]{1,15}(-[0-9]{1,15})?)?$"
LastId = Annotated[str, Field(pattern=_EVENT_ID, description="The id of the last event that was seen; `0`: none.")]


class EventView(BaseModel):
    """An event, as it also stands in `data:` of a stream and in a frame of the WebSocket."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "task_started",
                    "id": "1763760000123-2",
                    "channel": "user:ada",
                    "task_id": "019ab3f0c1d2004f8b6d4e1c9a7f0325",
                    "at": "2026-11-21T20:15:00.121Z",
                    "payload": {"attempt": 1},
                }
            ]
        }
    )

    type: str = Field(description="What has happened; the tag `events` lists the types of every task.")
    id: str = Field(description="It orders the events of a channel: `<ms>-<number>`.", examples=["1763760000123-1"])
    channel: str = Field(description="`task:<id>`, `project:<id>` or `user:<id>`.")
    task_id: str | None = Field(None, description="Left out of events that concern no task.")
    at: AwareDatetime
    payload: Any = Field(description="What it says more; its members depend on the type.")


class EventList(BaseModel):
    """A page of past events, oldest first."""

    items: list[EventView]
    next_cursor: str | None = Field(description="For the next page; null at the end.")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for: from behind which event on (None: it does not say), and in which form."""

    after: str | None
    limit: int
    as_page: bool


async def _wanted(
    last_event_id: Annotated[LastId | None, Header()] = None,
    after: Annotated[LastId | None, Query(alias="last_event_id")] = None,
    cursor: Annotated[LastId, Query(description="`next_cursor` of the page before.")] = "",
    limit: Annotated[int, Query(ge=1, le=PAGE, description="Events of a page, at most.")] = 100,
    accept: Annotated[str, Header(description="`application/json`: a page of past events.")] = EVENT_STREAM,
) -> Wanted:
    # A header wins over the query: a browser that comes again calls the URL that it called first.
    as_page = "application/json" in accept and EVENT_STREAM not in accept
    return Wanted(cursor or last_event_id or after or None, limit, as_page)


WantedDep = Annotated[Wanted, Depends(_wanted)]
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The events; with `Accept: application/json` a page of past ones.",
        "model": EventList,
        "content": {EVENT_STREAM: {"schema": {"type": "string"}}},
    }
}
_OVER: dict[int | str, dict[str, Any]] = {
    204: {"description": "The task is finished and all its events were seen: do not come again."}
}


@router.get(
    "/api/tasks/{task_id}/events",
    summary="Follow the events of a task",
    response_class=Response,
    responses=_RESPONSES | _OVER,
)
async def task_events(
    task_id: TaskId, request: Request, caller: Caller, engine: EngineDep, wanted: WantedDep
) -> Response:
    """The events of a task, from its first or behind the last that was seen, until its final one; then the end."""

    async def is_over() -> bool:
        return await _is_finished(engine, task_id)

    record = await engine.tasks.get(task_id, user_id=owner_of(caller))
    place = Place(f"task:{task_id}", stream_name(f"task:{task_id}", record.user_id))
    if wanted.as_page:
        return await _page(engine, place, wanted)
    after = wanted.after or START
    if not record.status.is_finished:
        return await _follow(request, caller, engine, place, after, is_over=is_over)
    start = await engine.events.start(place.stream, after)
    if wanted.after is not None and start.last_id == await engine.events.last_id(place.stream):
        # What the standard gives a server to tell a browser that would come again for ever.
        return Response(status_code=204, media_type=EVENT_STREAM)
    return EventStream(stored(engine.events, place, start), shutdown=shutdown_of(request), expires_at=caller.expires_at)


@router.get(
    "/api/projects/{project_id}/events",
    summary="Follow the events of a project",
    response_class=Response,
    responses=_RESPONSES,
)
async def project_events(
    project_id: Label, request: Request, caller: Caller, engine: EngineDep, wanted: WantedDep
) -> Response:
    """The events of the caller's own tasks in a project, from now on or behind the last that was seen."""
    place = Place(f"project:{project_id}", stream_name(f"project:{project_id}", caller.user_id))
    return await _channel(request, caller, engine, place, wanted)


@router.get("/api/events", summary="Follow the events of all own tasks", response_class=Response, responses=_RESPONSES)
async def own_events(request: Request, caller: Caller, engine: EngineDep, wanted: WantedDep) -> Response:
    """The events of the caller's own tasks, from now on or behind the last that was seen."""
    channel = f"user:{caller.user_id}"
    return await _channel(request, caller, engine, Place(channel, channel), wanted)


async def _channel(request: Request, caller: Principal, engine: Engine, place: Place, wanted: Wanted) -> Response:
    if wanted.as_page:
        return await _page(engine, place, wanted)
    return await _follow(request, caller, engine, place, wanted.after, is_over=_never)


async def _follow(
    request: Request,
    caller: Principal,
    engine: Engine,
    place: Place,
    after: str | None,
    *,
    is_over: Callable[[], Awaitable[bool]],
) -> EventStream:
    listener = Listener(engine.hub)
    try:
        start = await listener.add(place.channel, place.stream, after)
    except BaseException:
        listener.close()
        raise
    chunks = followed(engine.events, place, start, listener, is_over)
    return EventStream(chunks, shutdown=shutdown_of(request), expires_at=caller.expires_at, listener=listener)


async def _page(engine: Engine, place: Place, wanted: Wanted) -> Response:
    events, _ = await engine.events.read_on(
        place.stream, place.channel, event_key(wanted.after or START), wanted.limit + 1
    )
    items = events[: wanted.limit]
    next_cursor = items[-1].id if len(events) > wanted.limit else None
    # The events are JSON already; decoding them to encode them again would cost more than all the rest.
    body = f'{{"items":[{",".join(event.text for event in items)}],"next_cursor":{to_json(next_cursor).decode()}}}'
    return Response(body, media_type="application/json", headers={"vary": "accept"})


async def _is_finished(engine: Engine, task_id: str) -> bool:
    try:
        return (await engine.tasks.get(task_id, user_id=None)).status.is_finished
    except NotFound:
        return True
    except STORE_ERRORS:
        return False


async def _never() -> bool:
    return False

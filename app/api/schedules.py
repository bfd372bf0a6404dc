"""Schedules: what starts by the clock, when next, and what became of the last tick; operators control them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict
from starlette.responses import Response

from app.api.auth import Caller, require_scope
from app.api.dependencies import EngineDep, owner_of
from app.api.openapi import problem_responses
from app.api.principal import ADMIN_SCOPE
from app.api.task_views import TaskView, json_response, list_response, task_json
from app.engine.job import Status
from app.engine.schedules import ScheduleState
from app.telemetry import current_correlation_id

router = APIRouter(prefix="/api/schedules", tags=["operation"], responses=problem_responses(401, 403, 503))

ScheduleName = Annotated[str, Path(max_length=100, examples=["signals.nightly"])]
ADMIN_ONLY = Depends(require_scope(ADMIN_SCOPE))
LOCATION = {"Location": {"description": "Where the task can be read.", "schema": {"type": "string"}}}
_EXAMPLE: JsonDict = {
    "name": "signals.nightly",
    "task": "signals.consolidate",
    "params": {"days": 1},
    "cron": "0 3 * * *",
    "timezone": "Europe/Berlin",
    "jitter_s": 60,
    "overlap": False,
    "catch_up": "once",
    "user_id": "schedules",
    "paused": False,
    "next_firing_at": "2026-11-23T02:00:00.000Z",
    "last_tick_at": "2026-11-22T02:00:00.000Z",
    "last_outcome": "fired",
    "last_firing_at": "2026-11-22T02:00:00.412Z",
    "last_task_id": "019ab3f0c1d2004f8b6d4e1c9a7f0325",
    "last_task_status": "SUCCESS",
}


class ScheduleView(BaseModel):
    """A task that starts by the clock."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    name: str
    task: str
    params: dict[str, Any]
    cron: str = Field(description="Five fields, or six with seconds in front.")
    timezone: str = Field(description="IANA zone in which `cron` is meant.")
    jitter_s: float = Field(description="A task starts up to so long after its tick.")
    overlap: bool = Field(description="Whether it fires while its last task is unfinished.")
    catch_up: str = Field(description="`skip`: ticks that were missed are forgotten; `once`: they are fired as one.")
    user_id: str = Field(description="Who owns its tasks.")
    paused: bool
    next_firing_at: AwareDatetime | None = Field(description="Before jitter; null while it is paused.")
    last_tick_at: AwareDatetime | None = Field(description="The last tick that something became of.")
    last_outcome: str | None = Field(
        description="What became of it: `fired`, `caught_up` (for all that were missed), `missed`, `paused`, `overlap` "
        "(the task before was unfinished), `full` (the queue was, and it is tried again)."
    )
    last_firing_at: AwareDatetime | None = Field(description="When it last started a task, by a tick or a trigger.")
    last_task_id: str | None
    last_task_status: Status | None = Field(description="Null once that task is forgotten.")


class ScheduleList(BaseModel):
    """All schedules, by name."""

    items: list[ScheduleView]
    next_cursor: None = Field(description="Null: there is one page.")


@router.get("", summary="List schedules", response_model=ScheduleList)
async def list_schedules(caller: Caller, engine: EngineDep) -> Response:
    """The schedules whose tasks are the caller's; an admin's: all."""
    return list_response([_view(state) for state in await engine.schedules.all(user_id=owner_of(caller))])


@router.get("/{name}", summary="Read a schedule", response_model=ScheduleView, responses=problem_responses(404, 422))
async def read_schedule(name: ScheduleName, caller: Caller, engine: EngineDep) -> Response:
    """One of them. That of another user does not exist (404)."""
    return json_response(_view(await engine.schedules.get(name, user_id=owner_of(caller))))


@router.post(
    "/{name}/trigger",
    status_code=202,
    summary="Start the task of a schedule now (admin)",
    response_model=TaskView,
    responses={202: {"description": "The task.", "headers": LOCATION}, **problem_responses(404, 409, 422)},
    dependencies=[ADMIN_ONLY],
)
async def trigger_schedule(name: ScheduleName, engine: EngineDep) -> Response:
    """Start it besides its ticks, also while it is paused. 409 while its last task is unfinished and must not be
    overlapped; 503 with `Retry-After` when the queue is full."""
    task_id = await engine.schedules.trigger(name, correlation_id=current_correlation_id())
    record = await engine.tasks.get(task_id, user_id=None)
    return Response(task_json(record), 202, {"location": f"/api/tasks/{task_id}"}, "application/json")


@router.post(
    "/{name}/pause",
    summary="Pause a schedule (admin)",
    response_model=ScheduleView,
    responses=problem_responses(404, 422),
    dependencies=[ADMIN_ONLY],
)
async def pause_schedule(name: ScheduleName, engine: EngineDep) -> Response:
    """Fire no more of its ticks, over restarts too; its task that runs goes on. Pausing a paused one changes
    nothing."""
    return json_response(_view(await engine.schedules.pause(name)))


@router.post(
    "/{name}/resume",
    summary="Resume a schedule (admin)",
    response_model=ScheduleView,
    responses=problem_responses(404, 422),
    dependencies=[ADMIN_ONLY],
)
async def resume_schedule(name: ScheduleName, engine: EngineDep) -> Response:
    """Fire its ticks again: those to come, none that passed while it was paused."""
    return json_response(_view(await engine.schedules.resume(name)))


def _view(state: ScheduleState) -> dict[str, Any]:
    declared = state.entry.schedule
    return {
        "name": declared.name,
        "task": declared.task,
        "params": declared.params,
        "cron": declared.cron,
        "timezone": state.entry.zone.key,
        "jitter_s": declared.jitter_s,
        "overlap": declared.overlap,
        "catch_up": declared.catch_up,
        "user_id": declared.user_id,
        "paused": state.paused,
        "next_firing_at": state.next_at,
        "last_tick_at": state.last_tick_at,
        "last_outcome": state.last_outcome,
        "last_firing_at": state.last_fired_at,
        "last_task_id": state.last_task_id,
        "last_task_status": state.last_status,
    }

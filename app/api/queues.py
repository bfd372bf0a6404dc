"""Queues: what stands in them and who works on them; operators pause and resume them."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.api.auth import Caller, require_scope
from app.api.dependencies import EngineDep
from app.api.openapi import problem_responses
from app.api.principal import ADMIN_SCOPE
from app.api.task_views import json_response, list_response
from app.engine.queues import QueueStats
from app.engine.service import Engine

router = APIRouter(prefix="/api/queues", tags=["operation"], responses=problem_responses(401, 403, 503))

QueueName = Annotated[str, Path(max_length=128, examples=["default"])]
ADMIN_ONLY = Depends(require_scope(ADMIN_SCOPE))


class QueueView(BaseModel):
    """What stands in a queue now, of all users together."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "default",
                    "ready": 3,
                    "delayed": 1,
                    "running": 8,
                    "waiting": 0,
                    "dead": 0,
                    "oldest_ready_age_s": 0.4,
                    "finished_per_minute": 120,
                    "concurrency": 8,
                    "paused": False,
                    "workers": 1,
                }
            ]
        }
    )

    name: str
    ready: int = Field(description="Due, and not begun.")
    delayed: int = Field(description="Due later, retries included.")
    running: int
    waiting: int
    dead: int = Field(description="Dead letters.")
    oldest_ready_age_s: float | None = Field(
        description="Of the next 20 ready tasks of each priority. Null when nothing is ready."
    )
    finished_per_minute: int
    concurrency: int | None = Field(description="Tasks that one worker runs at once; null: no worker of this version.")
    paused: bool
    workers: int = Field(description="Workers alive that take tasks from it.")


class QueueList(BaseModel):
    """All queues, by name."""

    items: list[QueueView]
    next_cursor: None = Field(description="Null: there is one page.")


@router.get("", summary="List queues", response_model=QueueList)
async def list_queues(caller: Caller, engine: EngineDep) -> Response:
    """Every queue that has a lane or ever held a task. Any caller may see these sums over all users."""
    workers = await workers_by_queue(engine)
    return list_response([_view(stats, workers) for stats in await engine.queues.stats()])


@router.post(
    "/{name}/pause",
    summary="Pause a queue (admin)",
    response_model=QueueView,
    responses=problem_responses(404, 422),
    dependencies=[ADMIN_ONLY],
)
async def pause_queue(name: QueueName, engine: EngineDep) -> Response:
    """Start no more of its tasks, on any worker; what runs goes on. Pausing a paused queue changes nothing."""
    stats = await engine.queues.pause(name)
    return json_response(_view(stats, await workers_by_queue(engine)))


@router.post(
    "/{name}/resume",
    summary="Resume a queue (admin)",
    response_model=QueueView,
    responses=problem_responses(404, 422),
    dependencies=[ADMIN_ONLY],
)
async def resume_queue(name: QueueName, engine: EngineDep) -> Response:
    """Start its tasks again; workers notice within a second."""
    stats = await engine.queues.resume(name)
    return json_response(_view(stats, await workers_by_queue(engine)))


async def workers_by_queue(engine: Engine) -> Counter[str]:
    """How many workers that live take tasks from each queue."""
    return Counter(queue for worker in await engine.workers() for queue in worker["lanes"])


def _view(stats: QueueStats, workers: Counter[str]) -> dict[str, Any]:
    return {**asdict(stats), "workers": workers[stats.name]}

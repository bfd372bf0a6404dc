"""Workers: which processes live, what they run and how they fare.

Hosts and process ids are the operators' business: only admins see them. What everybody needs to know, how many workers
serve a queue, stands in `GET /api/queues`.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.api.auth import require_scope
from app.api.dependencies import EngineDep
from app.api.openapi import problem_responses
from app.api.principal import ADMIN_SCOPE
from app.api.task_views import list_response

router = APIRouter(prefix="/api/workers", tags=["operation"], responses=problem_responses(401, 403, 503))


class LaneView(BaseModel):
    """What a worker does for one queue."""

    concurrency: int = Field(description="Tasks that it runs at once, at most.")
    running: int


class WorkerView(BaseModel):
    """A worker process, as of its last heartbeat; one comes every second."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "worker_id": "host-1:4711:9f3c21aa",
                    "host": "host-1",
                    "pid": 4711,
                    "version": "0.1.0",
                    "started_at": "2026-11-21T20:00:00Z",
                    "heartbeat_at": "2026-11-21T20:15:00Z",
                    "lanes": {"default": {"concurrency": 8, "running": 2}},
                    "running": 2,
                    "capacity": 8,
                    "loop_lag_ms": 0.4,
                    "cpu_percent": 12.5,
                    "rss_bytes": 71000000,
                }
            ]
        }
    )

    worker_id: str
    host: str
    pid: int
    version: str
    started_at: AwareDatetime
    heartbeat_at: AwareDatetime
    lanes: dict[str, LaneView] = Field(description="By queue.")
    running: int
    capacity: int = Field(description="Tasks that it runs at once over all lanes, at most.")
    loop_lag_ms: float = Field(description="How late its event loop was, at worst, since the heartbeat before.")
    cpu_percent: float = Field(description="Of one core, since the heartbeat before.")
    rss_bytes: int = Field(description="Memory that it holds.")


class WorkerList(BaseModel):
    """The workers that live, by id; at most 1,000."""

    items: list[WorkerView]
    next_cursor: None = Field(description="Null: there is one page.")


@router.get(
    "", summary="List workers (admin)", response_model=WorkerList, dependencies=[Depends(require_scope(ADMIN_SCOPE))]
)
async def list_workers(engine: EngineDep) -> Response:
    """Every worker whose last heartbeat is at most 10 s old."""
    return list_response(await engine.workers())

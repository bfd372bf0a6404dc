"""The older shape of a task's state, for clients that poll `/jobs/{id}`."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.api.auth import Caller
from app.api.dependencies import EngineDep, TaskId, owner_of
from app.api.openapi import problem_responses
from app.api.task_views import json_response, task_view
from app.engine.job import Status, TaskRecord

router = APIRouter(tags=["tasks"], responses=problem_responses(401, 403, 503))

PROGRESS = "PROGRESS"


class JobView(BaseModel):
    """A task in the older shape."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"task_id": "019ab3f0c1d2004f8b6d4e1c9a7f0325", "status": "SUCCESS", "result": {}, "error": None}
            ]
        }
    )

    task_id: str
    status: Status | Literal["PROGRESS"] = Field(description="`PROGRESS`: it runs and has said how far it has come.")
    result: Any = Field(description="What it returned; with `PROGRESS`: current, total, percent, label, updated_at.")
    error: str | None = Field(description="What it failed of.")


@router.get(
    "/jobs/{task_id}",
    summary="Read a task in the older shape",
    response_model=JobView,
    responses=problem_responses(404, 422),
)
async def read_job(task_id: TaskId, caller: Caller, engine: EngineDep) -> Response:
    """`{task_id, status, result, error}`. New clients read `/api/tasks/{task_id}`, which says more."""
    record = await engine.tasks.get(task_id, user_id=owner_of(caller), with_result=True)
    return json_response(_view(record))


def _view(record: TaskRecord) -> dict[str, Any]:
    reports = record.status is Status.STARTED and record.progress is not None
    return {
        "task_id": record.task_id,
        "status": PROGRESS if reports else record.status,
        "result": task_view(record)["progress"] if reports else record.result,
        "error": record.error.message if record.error and record.status is not Status.SUCCESS else None,
    }

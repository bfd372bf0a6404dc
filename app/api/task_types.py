"""Task types: what can be posted, with its policy and its schemas."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.api.auth import Caller
from app.api.dependencies import EngineDep
from app.api.openapi import problem_responses
from app.api.task_views import list_response
from app.engine.gates import PLAIN, OnBusy
from app.engine.registry import TaskSpec

router = APIRouter(prefix="/api/task-types", tags=["tasks"], responses=problem_responses(401, 403))


class PolicyView(BaseModel):
    """How often, when and for how long a task of the type runs. Times in seconds."""

    max_attempts: int
    backoff_base_s: float = Field(description="Bound on the wait before the first retry.")
    backoff_factor: float = Field(description="How that bound grows with each further retry.")
    backoff_cap_s: float = Field(description="Where it ends.")
    backoff_jitter: bool = Field(description="Whether the wait is drawn from 0 to the bound, or is the bound.")
    soft_limit_s: float = Field(description="When an attempt is told to come to an end.")
    hard_limit_s: float = Field(description="When it is ended.")
    on_busy: OnBusy | None = Field(
        None, description="What becomes of one whose key has an unfinished task; null: the task sets no key of its own."
    )
    debounce_s: float | None = Field(None, description="How long after the last one of its key it runs.")
    debounce_max_s: float | None = Field(
        None, description="How long after the first one of its key it runs at the latest."
    )
    throttle_s: float | None = Field(None, description="How far apart starts of its key are.")
    throttle_burst: int = Field(1, description="Starts of its key at once after a pause.")


class TaskTypeView(BaseModel):
    """A type of task."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "task": "system.echo",
                    "summary": "Return the value that was given.",
                    "queue": "default",
                    "policy": {
                        "max_attempts": 4,
                        "backoff_base_s": 60.0,
                        "backoff_factor": 2.0,
                        "backoff_cap_s": 600.0,
                        "backoff_jitter": True,
                        "soft_limit_s": 1740.0,
                        "hard_limit_s": 1800.0,
                        "on_busy": None,
                        "debounce_s": None,
                        "debounce_max_s": None,
                        "throttle_s": None,
                        "throttle_burst": 1,
                    },
                    "params_schema": {"type": "object"},
                    "result_schema": {"type": "object"},
                }
            ]
        }
    )

    task: str = Field(description="The name to post.")
    summary: str
    queue: str
    policy: PolicyView
    params_schema: dict[str, Any] = Field(description="JSON schema of the parameters.")
    result_schema: dict[str, Any] = Field(description="JSON schema of the result.")


class TaskTypeList(BaseModel):
    """All types of tasks, by name."""

    items: list[TaskTypeView]
    next_cursor: None = Field(description="Null: there is one page.")


@router.get("", summary="List task types", response_model=TaskTypeList)
async def list_task_types(caller: Caller, engine: EngineDep) -> Response:
    """Every task that this API process knows."""
    return list_response([_view(task.spec) for task in engine.catalogue])


def _view(spec: TaskSpec) -> dict[str, Any]:
    retry, limits, key = spec.retry, spec.limits, spec.key.policy if spec.key else PLAIN
    return {
        "task": spec.name,
        "summary": spec.summary,
        "queue": spec.queue,
        "policy": {
            "max_attempts": retry.max_attempts,
            "backoff_base_s": retry.base_s,
            "backoff_factor": retry.factor,
            "backoff_cap_s": retry.cap_s,
            "backoff_jitter": retry.jitter,
            "soft_limit_s": limits.soft_s,
            "hard_limit_s": limits.hard_s,
            "on_busy": key.on_busy if spec.key else None,
            "debounce_s": key.debounce_s,
            "debounce_max_s": key.longest_debounce_s,
            "throttle_s": key.throttle_s,
            "throttle_burst": key.throttle_burst,
        },
        "params_schema": spec.params.model_json_schema(),
        "result_schema": spec.result.json_schema(mode="serialization"),
    }

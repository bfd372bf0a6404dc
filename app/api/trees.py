"""Trees of tasks: what a task has started, and what came of it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict
from starlette.responses import Response

from app.api.auth import Caller
from app.api.dependencies import EngineDep, TaskId, owner_of
from app.api.openapi import problem_responses
from app.api.task_views import ProgressView, TaskErrorView, WaitingForView, json_response, task_view
from app.engine.job import ErrorInfo, Status, bound_text
from app.engine.trees import MAX_DEPTH, MAX_NODES, Branch

router = APIRouter(prefix="/api/tasks", tags=["tasks"], responses=problem_responses(401, 403, 503))

MAX_MESSAGE = 300
"""Characters of an error in a tree; the task itself has all of it."""
SHOWN = ("task_id", "task", "status", "progress", "attempt", "waiting_for", "enqueued_at", "started_at", "finished_at")

_LEAF: JsonDict = {
    "task_id": "8c1f0c52d6e34b7f9d20c1e500000000",
    "label": "page",
    "task": "system.echo",
    "status": "SUCCESS",
    "progress": None,
    "attempt": 1,
    "waiting_for": None,
    "error": None,
    "enqueued_at": "2026-11-21T20:15:00.120Z",
    "started_at": "2026-11-21T20:15:00.121Z",
    "finished_at": "2026-11-21T20:15:00.124Z",
    "children": [],
    "children_not_shown": 0,
}
_ROOT: JsonDict = {
    **_LEAF,
    "task_id": "019ab3f0c1d2004f8b6d4e1c9a7f0325",
    "label": None,
    "task": "flows.run",
    "children": [_LEAF],
}


class BranchView(BaseModel):
    """A task in a tree."""

    task_id: str
    label: str | None = Field(description="What it is to its parent, such as a node's name in a flow.")
    task: str
    status: Status
    progress: ProgressView | None
    attempt: int
    waiting_for: WaitingForView | None
    error: TaskErrorView | None = Field(description=f"Of its message the first {MAX_MESSAGE} characters.")
    enqueued_at: AwareDatetime
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    children: list[BranchView] = Field(description="In the order in which it started them.")
    children_not_shown: int = Field(description="How many more it has.")


class TreeView(BaseModel):
    """A task with all that it has started and is not forgotten yet."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"root": _ROOT, "count": 2, "truncated": False}]})

    root: BranchView
    count: int = Field(description="Tasks in this answer.")
    truncated: bool = Field(description="There are more: `children_not_shown` says where.")


@router.get(
    "/{task_id}/tree",
    summary="Read a task with its descendants",
    response_model=TreeView,
    responses=problem_responses(404, 422),
)
async def read_tree(
    task_id: TaskId,
    caller: Caller,
    engine: EngineDep,
    depth: Annotated[int, Query(ge=0, le=MAX_DEPTH, description="Levels below the task.")] = 10,
    limit: Annotated[int, Query(ge=1, le=MAX_NODES, description="Tasks in all, those near the root first.")] = 200,
) -> Response:
    """The task, what it has started, what those have started, as it stands now."""
    tree = await engine.trees.read(task_id, user_id=owner_of(caller), depth=depth, limit=limit)
    return json_response({"root": _view(tree.root), "count": tree.count, "truncated": tree.truncated})


def _view(branch: Branch) -> dict[str, Any]:
    record, whole = branch.record, task_view(branch.record)
    return {
        **{name: whole[name] for name in SHOWN},
        "label": record.label or None,
        "error": record.error and _error_view(record.error),
        "children": [_view(child) for child in branch.children],
        "children_not_shown": branch.hidden,
    }


def _error_view(error: ErrorInfo) -> dict[str, Any]:
    return {"type": error.type, "message": bound_text(error.message, MAX_MESSAGE), "retryable": error.retryable}

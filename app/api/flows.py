"""Flows: several tasks in one request, whose outputs are the inputs of others."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import ConfigDict
from pydantic.config import JsonDict
from starlette.responses import Response

from app.api.auth import Caller
from app.api.dependencies import engine_of
from app.api.json_route import JsonRoute
from app.api.openapi import problem_responses
from app.api.task_requests import Placement
from app.api.task_views import TaskView
from app.api.tasks import IdempotencyKey, accept, accepted_response
from app.domains.flows.checks import check
from app.domains.flows.models import FlowRun, Node
from app.domains.flows.service import FLOW

router = APIRouter(
    prefix="/api/flows", tags=["tasks"], route_class=JsonRoute, responses=problem_responses(401, 403, 503)
)

_EXAMPLE: JsonDict = {
    "flow": {
        "sequence": [
            {"name": "first", "task": "system.echo", "params": {"value": ["a", "b"]}},
            {
                "map": {"$from": "first.value"},
                "each": {"task": "system.echo", "params": {"value": {"$join": ["item ", {"$from": "item"}]}}},
                "limit": 4,
                "on_error": "collect",
            },
        ]
    },
    "project_id": "apollo",
}


class FlowRequest(Placement):
    """A flow to run."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    flow: Node


@router.post(
    "",
    status_code=202,
    summary="Post a flow",
    response_model=TaskView,
    responses={
        202: accepted_response("The flow is stored and will run."),
        200: {**accepted_response("The flow that this idempotency key made before."), "model": TaskView},
        **problem_responses(404, 409, 410, 413, 422),
    },
)
async def post_flow(
    body: FlowRequest, request: Request, caller: Caller, idempotency_key: IdempotencyKey = None
) -> Response:
    """Accept a flow: a task that runs others, one after the other, at once, or for each item of a list.

    A node is `{"task", "params"}`, `{"sequence": [nodes]}`, `{"parallel": {name: node}}` or `{"map": list, "each":
    node}`. In params `{"$from": "name.member.0"}` stands for the output of an earlier node of that `name`, or a part of
    it; `{"$join": [...]}` makes one text of several; `{"$value": ...}` is taken as it is. The result is the output of
    the node: of a sequence that of its last node, of parallel nodes an object, of a map a list. Everything that can be
    done with a task can be done with the flow; `GET /api/tasks/{id}/tree` shows its tasks.

    Up to 1,000 nodes in 8 levels, 10,000 items of a map, 8 MiB of outputs of a node. Problems: those of posting a task,
    with pointers into `flow`; what depends on outputs fails when it runs.
    """
    engine = engine_of(request)
    check(body.flow, "/flow", catalogue=engine.catalogue)
    item = body.placed(FLOW, FlowRun(node=body.flow, priority=body.priority), idempotency_key)
    return await accept(engine, item, caller)

"""Approvals: what tasks ask people; read them, decide on them, withdraw them.

One exists for whom it concerns: the user of the task that asks, its deciders, whoever has its scope, and admins.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query
from starlette.responses import Response

from app.api.approval_views import (
    ApprovalList,
    ApprovalQuery,
    ApprovalView,
    DecisionRequest,
    approval_view,
    item_view,
)
from app.api.auth import Caller
from app.api.dependencies import EngineDep, Label
from app.api.json_route import JsonRoute
from app.api.openapi import problem_responses
from app.api.task_views import json_response, list_response

router = APIRouter(
    prefix="/api/approvals",
    tags=["approvals"],
    route_class=JsonRoute,
    responses=problem_responses(401, 403, 422, 503),
)

ApprovalId = Annotated[
    str, Path(max_length=128, description="The id in `hitl_pending`, in lists, and in the task's `waiting_for`.")
]


@router.get("", summary="List approvals", response_model=ApprovalList)
async def list_approvals(query: Annotated[ApprovalQuery, Query()], caller: Caller, engine: EngineDep) -> Response:
    """Those that concern the caller (an admin: everybody's), newest first, without payload and edits.

    `status=pending` lists those that are open.
    """
    page = await engine.approvals.page(caller, status=query.status, cursor=query.cursor, limit=query.limit)
    return list_response([item_view(approval, caller) for approval in page.items], page.next_cursor)


@router.get("/{approval_id}", summary="Read an approval", response_model=ApprovalView, responses=problem_responses(404))
async def read_approval(approval_id: ApprovalId, caller: Caller, engine: EngineDep) -> Response:
    """One of them with its payload, and with the edits once it is decided."""
    return json_response(approval_view(await engine.approvals.get(approval_id, caller), caller))


@router.post(
    "/{approval_id}",
    summary="Approve or reject",
    response_model=ApprovalView,
    responses=problem_responses(404, 409, 410, 413),
)
async def decide(
    approval_id: ApprovalId,
    body: DecisionRequest,
    caller: Caller,
    engine: EngineDep,
    idempotency_key: Annotated[
        Label | None, Header(description="The same decision of the same caller under the same key again: as before.")
    ] = None,
) -> Response:
    """Decide, once; the task goes on with the answer.

    Problems: 403 for whom it concerns but who may not decide; 409 when it is decided or withdrawn already, also by the
    caller (`approval_status` and `decided_by` say how and by whom); 410 when it expired; 422 edits that the task does
    not accept, with a JSON pointer; 413 edits larger than 32 KiB.
    """
    approval = await engine.approvals.decide(approval_id, body.verdict(idempotency_key), caller)
    return json_response(approval_view(approval, caller))


@router.delete(
    "/{approval_id}",
    status_code=204,
    summary="Withdraw an approval",
    response_model=None,
    responses={204: {"description": "It is withdrawn."}, **problem_responses(404, 409, 410)},
)
async def withdraw(approval_id: ApprovalId, caller: Caller, engine: EngineDep) -> Response:
    """Take the question back; the task is told (`ApprovalWithdrawn`). For the user of the task, and admins.

    Problems: 403 for its deciders; 409 when it is decided already; 410 when it expired.
    """
    await engine.approvals.withdraw(approval_id, caller)
    return Response(status_code=204)

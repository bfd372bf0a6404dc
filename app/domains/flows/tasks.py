"""The task that runs a flow."""

from __future__ import annotations

from typing import Any

from app.domains.flows.models import FlowRun
from app.domains.flows.service import FLOW, run_flow
from app.engine.context import TaskContext
from app.engine.registry import task


@task(FLOW)
async def run(ctx: TaskContext, params: FlowRun) -> Any:
    """Run tasks one after the other, side by side, or once for each item of a list; see `POST /api/flows`."""
    return await run_flow(ctx, params)

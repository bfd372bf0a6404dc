"""Tasks of agents."""

from __future__ import annotations

from app.domains.agent.models import AgentReply, RunAgent
from app.domains.agent.service import run_agent
from app.domains.resources import model_of
from app.engine.context import TaskContext
from app.engine.registry import task


@task("agent.run", queue="agent")
async def run(ctx: TaskContext, params: RunAgent) -> AgentReply:
    """Call the model with a prompt; its text streams as events, text and usage are the result."""
    return await run_agent(ctx, model_of(ctx), params)

"""A newer version of the worker in `effects`: it knows one task more."""

from __future__ import annotations

from app.engine.context import TaskContext
from app.engine.registry import task
from tests.acceptance.effects import SETTINGS, TASKS, Effect, worker_settings


@task("effect.new")
async def new(ctx: TaskContext, params: Effect) -> str:
    """A task that the older version does not know."""
    return params.name


WorkerSettings = worker_settings(*TASKS, new) if SETTINGS.redis_url else {}

"""Tasks that check an installation: one that answers, one that takes its time, one that fails."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from app.domains.system.models import Echo, Fail, Recovered, Sleep, Slept
from app.engine.context import TaskContext
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.errors import PermanentError, RetryableError

FAIL_RETRY = RetryPolicy(base_s=1.0, factor=1.0, cap_s=1.0, jitter=False)
"""Retries of `system.fail` wait one second, so that a person can watch them."""


@task("system.echo")
async def echo(ctx: TaskContext, params: Echo) -> Echo:
    """Return the value that was given."""
    return params


@task("system.sleep", timeout=timedelta(hours=25))
async def sleep(ctx: TaskContext, params: Sleep) -> Slept:
    """Sleep, and report progress after each of the steps."""
    for step in range(1, params.steps + 1):
        await asyncio.sleep(params.seconds / params.steps)
        await ctx.progress(step, params.steps, f"slept {step} of {params.steps}")
    return Slept(seconds=params.seconds)


@task("system.fail", retry=FAIL_RETRY)
async def fail(ctx: TaskContext, params: Fail) -> Recovered:
    """Fail the first `times` attempts, or all, with an error that is retryable or not; then succeed."""
    if params.times is None or ctx.attempt <= params.times:
        wanted = "always" if params.times is None else f"in the first {params.times} attempts"
        error = RetryableError if params.retryable else PermanentError
        raise error(f"attempt {ctx.attempt} fails as it was asked to ({wanted})")
    return Recovered(attempt=ctx.attempt)

"""What a running task asks of Redis is asked again while Redis is away, and the task is none the wiser."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from app.engine.approval_desk import Verdict
from app.engine.approvals import ApprovalRequest
from app.engine.context import TaskContext
from app.engine.job import Status
from app.engine.patience import insist
from app.engine.policy import RetryPolicy
from app.engine.queue import TaskQueue
from app.engine.registry import task
from app.engine.submissions import Submission
from app.errors import WaitTimeout
from app.store.approval_scripts import ApprovalScripts
from app.store.scripts import CLAIM_STEPS_BYTES, Scripts
from app.testing.approvals import Decider
from tests.support import engine_on, events_of, finished

ONCE = RetryPolicy(max_retries=0)


class Nothing(BaseModel):
    pass


@task("test.child", retry=ONCE)
async def child(ctx: TaskContext, params: Nothing) -> str:
    return "done"


@task("test.endless", retry=ONCE)
async def endless(ctx: TaskContext, params: Nothing) -> None:
    await ctx.sleep(timedelta(days=1))


@task("test.parent", retry=ONCE)
async def parent(ctx: TaskContext, params: Nothing) -> list[Any]:
    text = await ctx.step("large", large)
    with suppress(WaitTimeout):
        await ctx.call("test.endless", {}, timeout=timedelta())
    value = await ctx.call(child, params)
    decision = await ctx.approval(ApprovalRequest("Go on?"), timedelta(hours=1))
    return [len(text), value, decision.approved]


async def large() -> str:
    """More than a claim brings along."""
    return "x" * (2 * CLAIM_STEPS_BYTES)


class Away:
    """A Redis that is away for the first calls."""

    def __init__(self, calls: int, error: Exception) -> None:
        self.left = calls
        self.made = 0
        self._error = error

    def before(self, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **options: Any) -> Any:
            self.made += 1
            if self.made <= self.left:
                raise self._error
            return await function(*args, **options)

        return call


async def answer() -> int:
    return 42


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Scripts, "read_steps"),
        (Scripts, "read_ends"),
        (ApprovalScripts, "ask_approval"),
        (TaskQueue, "enqueue_many"),
        (TaskQueue, "cancel_many"),
    ],
)
async def test_a_task_that_meets_a_restart_of_redis_spends_no_try(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    away = Away(2, RedisConnectionError("gone"))
    async with engine_on(redis_url, (parent, child, endless)) as engine:
        task_id = (await engine.tasks.enqueue(Submission("test.parent"), user_id="ada")).task_id
        monkeypatch.setattr(owner, name, away.before(getattr(owner, name)))
        async with engine.worker():
            async with aclosing(events_of(engine, task_id)) as events:
                asked = await anext(event async for event in events if event.type in ("hitl_pending", "task_failed"))
            assert asked.type == "hitl_pending"
            await engine.approvals.decide(asked.data()["approval_id"], Verdict(True), Decider("ada", frozenset()))
            record = await finished(engine, task_id)
    assert away.made > 2
    assert (record.status, record.attempt) == (Status.SUCCESS, 1)
    assert record.result == [2 * CLAIM_STEPS_BYTES, "done", True]


async def test_patience_ends_and_the_caller_gets_the_error() -> None:
    away = Away(1_000, RedisConnectionError("gone"))
    with pytest.raises(RedisConnectionError, match="gone"):
        await insist(away.before(answer), "the answer", 0.0)
    assert away.made < 1_000


async def test_without_a_bound_it_asks_until_there_is_an_answer() -> None:
    away = Away(3, RedisConnectionError("gone"))
    assert await insist(away.before(answer), "the answer", None) == 42


async def test_what_is_wrong_is_not_asked_again() -> None:
    away = Away(1_000, ResponseError("wrong"))
    with pytest.raises(ResponseError, match="wrong"):
        await insist(away.before(answer), "the answer", None)
    assert away.made == 1

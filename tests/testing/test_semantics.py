"""What the scripts of the store keep to, and a test in the harness must be able to rely on."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from app.engine.approvals import ApprovalRequest
from app.engine.context import TaskContext
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.engine.waits import Call
from app.errors import ChildFailed, Conflict, PermanentError, TooLarge, WaitTimeout
from app.testing import HarnessError, Later, TaskHarness, check_replay_safe, run_interrupted, run_task

HOUR = timedelta(hours=1)
refused: list[str] = []


class Nothing(BaseModel):
    pass


class Part(BaseModel):
    n: int


@task("sem.wide")
async def wide(ctx: TaskContext, params: Nothing) -> list[Any]:
    return await ctx.gather([Call("part.run", {"n": n}, priority=n % 3) for n in range(4)])


@task("sem.failing")
async def failing(ctx: TaskContext, params: Nothing) -> str:
    try:
        await ctx.gather([Call(blocker, Nothing()), Call("part.run", {"n": 1})])
    except ChildFailed as error:
        return error.task
    return "all"


@task("sem.blocker", retry=RetryPolicy(max_retries=0))
async def blocker(ctx: TaskContext, params: Nothing) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        try:
            await ctx.start("part.run", {"n": 2})
        except Conflict as error:
            refused.append(str(error))
        raise


@task("sem.cleaning")
async def cleaning(ctx: TaskContext, params: Nothing) -> None:
    try:
        await ctx.step("one", nothing)
    except asyncio.CancelledError:
        await ctx.start("part.run", {"n": 1})
        raise


async def nothing() -> None:
    return None


@task("sem.waiting")
async def waiting(ctx: TaskContext, params: Nothing) -> Any:
    try:
        return await ctx.wait_event("go", timeout=HOUR)
    except WaitTimeout:
        return "late"


@task("sem.asking")
async def asking(ctx: TaskContext, params: Nothing) -> str:
    return (await ctx.approval(ApprovalRequest("Sure?", scope="boss"), HOUR)).decided_by


@task("sem.recursive")
async def recursive(ctx: TaskContext, params: Part) -> int:
    if params.n == 0:
        return await ctx.step("end", zero)
    return 1 + await ctx.call(recursive, Part(n=params.n - 1))


@task("sem.metered")
async def metered(ctx: TaskContext, params: Nothing) -> None:
    async with ctx.quota("llm", tokens=5):
        pass


async def zero() -> int:
    return 0


async def test_a_task_is_entered_once_when_all_that_it_waits_for_has_ended() -> None:
    run = await run_task(wide, Nothing(), children={"part.run": lambda params: Later(params["n"] * HOUR, params["n"])})
    assert run.result == [0, 1, 2, 3]
    assert (run.entries, run.elapsed) == (2, 3 * HOUR)


async def test_children_of_a_higher_priority_run_first() -> None:
    order: list[int] = []
    await run_task(wide, Nothing(), children={"part.run": lambda params: order.append(params["n"])})
    assert order == [2, 1, 0, 3]


async def test_the_first_failure_cancels_what_runs_and_a_cancelled_task_starts_nothing() -> None:
    refused.clear()
    run = await run_task(failing, Nothing(), tasks=[blocker], children={"part.run": PermanentError("no")})
    assert run.result == "part.run"
    assert run.elapsed == timedelta()
    assert [child.status for child in run.started] == ["CANCELLED", "FAILURE"]
    assert len(refused) == 1
    assert "is cancelled and starts no more children" in refused[0]


async def test_an_attempt_whose_worker_is_dead_writes_nothing_more() -> None:
    run = await run_interrupted(cleaning, Nothing(), children={"part.run": 1})
    assert run.status == "SUCCESS"
    assert run.started == ()
    assert "its worker dies after step 1 is stored" in str(run)


async def test_a_worker_may_die_behind_an_event_that_it_took_and_before_a_wait_begins() -> None:
    run = await run_interrupted(waiting, Nothing(), events=[("go", 5)])
    assert run.result == 5
    assert "its worker dies after step 1 is stored" in str(run)
    assert run.untaken == ()


async def test_a_wait_that_timed_out_is_a_failed_step() -> None:
    run = await run_task(waiting, Nothing())
    assert run.result == "late"
    assert [(step.name, step.failed) for step in run.steps] == [("event go", True)]
    run = await run_task(waiting, Nothing(), events=[("go", 1)])
    assert [step.failed for step in run.steps] == [False]


async def test_bounds_are_those_of_the_engine() -> None:
    async with TaskHarness(waiting, Nothing()) as harness:
        for number in range(1_000):
            await harness.world.inbox.deliver(harness.task_id, "other", number, user_id=None)
        with pytest.raises(TooLarge, match="1000 events"):
            await harness.send("other")
    run = await run_task(wide, Nothing(), children={"part.run": "x" * 2_500_000})
    assert run.error is not None
    assert run.error.type == "TooLarge"


async def test_a_call_that_does_not_say_what_it_used_used_what_it_reserved() -> None:
    run = await run_task(metered, Nothing())
    assert [(use.tokens, use.used_tokens) for use in run.quotas] == [(5, None)]


async def test_whoever_has_the_scope_decides() -> None:
    run = await run_task(asking, Nothing(), decisions={"Sure?": True})
    assert run.result == "decider"


async def test_a_task_that_calls_itself_is_checked_by_its_first_one() -> None:
    run = await check_replay_safe(recursive, Part(n=3))
    assert run.result == 3


async def test_what_the_harness_cannot_do_is_told() -> None:
    async with TaskHarness(waiting, Nothing()) as harness:
        with pytest.raises(HarnessError, match="the harness has no 'queue_stats'"):
            await harness.world.scripts.queue_stats(["default"])

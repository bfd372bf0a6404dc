"""Tasks that are not replay-safe are found, each for what it does; those that are pass."""

from __future__ import annotations

import asyncio
import itertools
import random
import uuid
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from app.engine.approvals import ApprovalRequest
from app.engine.context import TaskContext
from app.engine.policy import RetryPolicy
from app.engine.registry import Task, task
from app.engine.waits import Call
from app.errors import PermanentError, RetryableError
from app.testing import NotReplaySafe, check_replay_safe, run_interrupted, run_task

effects: Counter[str] = Counter()
sequence = itertools.count()
CHILDREN = {"other.work": len}
HOUR = timedelta(hours=1)


class Order(BaseModel):
    id: int = 1


@pytest.fixture(autouse=True)
def no_effects() -> None:
    effects.clear()


async def one() -> int:
    effects["one"] += 1
    return 1


async def two() -> int:
    effects["two"] += 1
    return 2


async def fresh() -> str:
    return uuid.uuid4().hex


@task("safe.all", retry=RetryPolicy(max_retries=1, base_s=1))
async def safe(ctx: TaskContext, params: Order) -> list[Any]:
    made = await ctx.step("id", fresh)
    first = await ctx.step("one", one)
    await ctx.step("tell", lambda: ctx.emit("told", {"id": made}))
    await ctx.progress(1, 2)
    both = await asyncio.gather(ctx.step("left", one), ctx.step("right", two))
    started = await ctx.start("other.work", {"id": made})
    (end,) = await ctx.join([started])
    called = await ctx.call("other.work", {"id": made})
    grouped = await ctx.gather([Call("other.work", {"id": made, "n": n}) for n in range(3)])
    await ctx.sleep(HOUR)
    paid = await ctx.wait_event("paid", timeout=HOUR)
    if ctx.attempt == 1:
        raise RetryableError("once")
    await ctx.approval(ApprovalRequest("Sure?"))
    await ctx.start_many([Call("other.work", {"id": made})], then=Call("other.work", {"id": made}))
    await ctx.step("inner", lambda: ctx.start("other.work", {"id": made}, idempotency_key="inner"))
    return [made, first, both, end.result, called, grouped, paid]


@task("safe.failing")
async def failing(ctx: TaskContext, params: Order) -> None:
    await ctx.step("one", one)
    raise PermanentError("always")


@task("safe.nothing")
async def nothing(ctx: TaskContext, params: Order) -> None:
    return None


@task("unsafe.order")
async def other_order(ctx: TaskContext, params: Order) -> None:
    for name in ("a", "b"):
        await ctx.step(f"{name}{next(sequence)}", one)


@task("unsafe.params")
async def other_params(ctx: TaskContext, params: Order) -> None:
    await ctx.call("other.work", {"id": uuid.uuid4().hex})


@task("unsafe.startparams")
async def other_start(ctx: TaskContext, params: Order) -> None:
    await ctx.start("other.work", {"id": random.random()})


@task("unsafe.groupparams")
async def other_group(ctx: TaskContext, params: Order) -> None:
    await ctx.gather([Call("other.work", {"id": n, "at": next(sequence)}) for n in range(2)])


@task("unsafe.manyparams")
async def other_many(ctx: TaskContext, params: Order) -> None:
    await ctx.start_many(
        [Call("other.work", {"id": n}) for n in range(2)], then=Call("other.work", {"id": uuid.uuid4()})
    )


@task("unsafe.question")
async def other_question(ctx: TaskContext, params: Order) -> None:
    await ctx.approval(ApprovalRequest("Publish?", {"draft": random.random()}))


@task("unsafe.twice")
async def started_twice(ctx: TaskContext, params: Order) -> None:
    await ctx.step("start", lambda: ctx.start("other.work", {"id": 1}))


@task("unsafe.events")
async def events(ctx: TaskContext, params: Order) -> None:
    await ctx.emit("begun", {})
    await ctx.step("one", one)
    await ctx.emit("fetched", {"n": 1})


@task("unsafe.locals")
async def local_state(ctx: TaskContext, params: Order) -> int:
    total = 0

    async def add() -> int:
        nonlocal total
        total += 5
        return 5

    await ctx.step("add", add)
    return total


@task("unsafe.result")
async def random_result(ctx: TaskContext, params: Order) -> str:
    return uuid.uuid4().hex


@task("unsafe.shorter")
async def shorter(ctx: TaskContext, params: Order) -> None:
    await ctx.step("one", one)
    if effects["one"] + effects["two"] < 2:
        await ctx.step("two", two)


@task("unsafe.longer")
async def longer(ctx: TaskContext, params: Order) -> None:
    effects["entered"] += 1
    await ctx.step("one", one)
    if effects["entered"] > 1:
        await ctx.step("two", two)


@task("unsafe.branch")
async def branch(ctx: TaskContext, params: Order) -> str:
    live = []

    async def look() -> int:
        live.append(1)
        return 1

    await ctx.step("look", look)
    await ctx.step("was live" if live else "was stored", one)
    return "done"


@task("unsafe.raises")
async def raises(ctx: TaskContext, params: Order) -> None:
    raise PermanentError(f"number {next(sequence)}")


@pytest.mark.parametrize("subject", [safe, failing, nothing], ids=lambda item: item.name)
async def test_a_safe_task_passes(subject: Task[Any, Any]) -> None:
    run = await check_replay_safe(subject, Order(), children=CHILDREN, events=[("paid", 7)], decisions={"Sure?": True})
    uninterrupted = await run_task(subject, Order(), children=CHILDREN, events=[("paid", 7)], decisions={"Sure?": True})
    assert run.status is uninterrupted.status
    assert [step.name for step in run.steps] == [step.name for step in uninterrupted.steps]


@pytest.mark.parametrize(
    ("subject", "told"),
    [
        (other_order, r"step 1 was 'a\d+' and is 'a\d+'"),
        (
            other_params,
            r"step 1 'call other.work' was given \[\[\"other.work\",\{\"id\":\"\w+\"\}\]\] and is given \[\[",
        ),
        (other_start, r"step 1 'start other.work' was given .* and is given .*the engine goes by the first"),
        (other_group, r"step 1 'gather 2 tasks' was given .* and is given"),
        (other_many, r"step 1 'start 2 tasks' was given .* and is given"),
        (other_question, r"step 1 'approval' was given .*draft.* and is given .*draft"),
        (
            started_twice,
            r"dies before each step is stored: step 1 'start' starts other.work a second time, .*idempotency_key",
        ),
        (
            events,
            r"(?s)event 'begun' before the first step is sent again, \d times.*event 'fetched' behind step 1 is sent",
        ),
        (local_state, r"answered from the store: the task returned 5, and then returned 0, with the same steps"),
        (random_result, r"the task returned \"\w+\", and then returned \"\w+\", with the same steps"),
        (shorter, r"ends without coming to step 2 'two' again"),
        (longer, r"comes to a step 2 'two', behind which it had ended before"),
        (branch, r"step 2 was 'was live' and is 'was stored'"),
        (raises, r"the task raised PermanentError: number \d+, and then raised PermanentError: number \d+"),
    ],
    ids=lambda item: item.name if isinstance(item, Task) else "",
)
async def test_an_unsafe_task_is_found(subject: Task[Any, Any], told: str) -> None:
    with pytest.raises(NotReplaySafe, match=told) as caught:
        await check_replay_safe(subject, Order(), children=CHILDREN, decisions={"Publish?": True})
    text = str(caught.value)
    assert text.startswith(f"{subject.name} is not replay-safe:\n- ")
    assert "Between steps a task may do only what depends on its parameters and on results of steps." in text
    assert "its worker dies before" in text


async def test_only_the_first_step_out_of_order_is_told() -> None:
    with pytest.raises(NotReplaySafe) as caught:
        await check_replay_safe(other_order, Order())
    assert "step 2 was" not in str(caught.value)


async def test_events_that_may_be_sent_again_are_allowed() -> None:
    await check_replay_safe(events, Order(), may_repeat={"begun", "fetched"})
    with pytest.raises(NotReplaySafe) as caught:
        await check_replay_safe(events, Order(), may_repeat={"begun"})
    assert "'begun'" not in str(caught.value).partition("The first such run:")[0]


async def test_an_interrupted_run_has_each_effect_of_a_step_once() -> None:
    run = await run_interrupted(safe, Order(), children=CHILDREN, events=[("paid", 7)], decisions={"Sure?": True})
    assert run.result[-1] == 7
    # Of the two at once, the one that was under way when the worker died behind the other runs again.
    assert effects["one"] == 2
    assert effects["two"] in (1, 2)
    assert run.entries > len(run.steps)
    assert run.attempts == 2


async def test_the_death_of_a_worker_costs_no_try_and_its_children_stay_the_same() -> None:
    run = await run_interrupted(other_params, Order(), children=CHILDREN)
    assert run.attempts == 1
    assert len(run.started) == 1

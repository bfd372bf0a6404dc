"""The harness does not lie: the same tasks, run in it and by a worker on a real server, come to the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, Field
from pydantic_core import to_jsonable_python

from app.engine.approval_desk import Verdict
from app.engine.approvals import ApprovalRequest
from app.engine.context import TaskContext
from app.engine.events import Event
from app.engine.job import TaskRecord
from app.engine.policy import RetryPolicy
from app.engine.registry import Task, task
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.engine.waits import Call, OnError
from app.errors import ChildFailed, NightshiftError, PermanentError, RetryableError, WaitTimeout
from app.testing import Run, run_task
from app.testing.approvals import Decider
from tests.support import engine_on, event_of, finished
from tests.testing import keyed_tasks as held

SOON = timedelta(milliseconds=30)
ONCE = RetryPolicy(max_retries=0)
QUICK = RetryPolicy(max_retries=2, base_s=0.01)


class Number(BaseModel):
    value: int = Field(alias="of", default=1)


class Page(BaseModel):
    title: str
    day: date


@task("test.double", retry=ONCE)
async def double(ctx: TaskContext, params: Number) -> Number:
    """Negative numbers fail; ten and more wait for ever."""
    if params.value < 0:
        raise PermanentError(f"{params.value} is negative")
    if params.value >= 10:
        await ctx.wait_event("never")
    return Number(of=2 * params.value)


@task("test.steps", retry=QUICK)
async def steps(ctx: TaskContext, params: Number) -> list[Any]:
    page = await ctx.step("page", fetch, returns=Page)
    await ctx.progress(1, 4, "fetched")
    if ctx.attempt < params.value:
        raise RetryableError(f"attempt {ctx.attempt}")
    await ctx.emit("fetched", {"title": page.title})
    await ctx.emit("fetched", {"title": page.title}, channel="project:p")
    return [page.day, ctx.attempt, ctx.info.max_attempts, ctx.user_id, ctx.project_id, *ctx.info.tags]


async def fetch() -> Page:
    return Page(title="Tides", day=date(2026, 1, 2))


@task("test.waits")
async def waits(ctx: TaskContext, params: Number) -> list[Any]:
    one = await ctx.call(double, Number(of=3))
    await ctx.sleep(SOON)
    await ctx.sleep(timedelta())
    paid = await ctx.wait_event("paid")
    again = await ctx.wait_event("paid", returns=Number)
    try:
        await ctx.wait_event("late", timeout=SOON)
    except WaitTimeout as error:
        return [one.value, paid, again.value, str(error)]
    return []


@task("test.groups", retry=ONCE)
async def groups(ctx: TaskContext, params: Number) -> list[Any]:
    ids = [await ctx.start(double, Number(of=value)) for value in (1, -1)]
    ends = await ctx.join([*ids, ids[0]])
    found = await ctx.gather([Call(double, Number(of=value)) for value in (1, -2, 3)], on_error=OnError.COLLECT)
    none = await ctx.gather([])
    both = await asyncio.gather(ctx.call(double, Number(of=4)), ctx.call("test.double", {"of": 5}))
    told = [str(item.error["message"]) if isinstance(item, ChildFailed) else item.value for item in found]
    return [[end.status for end in ends], told, none, both[0].value, both[1]]


@task("test.failfast", retry=ONCE)
async def failfast(ctx: TaskContext, params: Number) -> None:
    await ctx.gather([Call(double, Number(of=value)) for value in (1, 10, -7)])


@task("test.finish", retry=ONCE)
async def finish(ctx: TaskContext, params: Number) -> None:
    await ctx.gather([Call(double, Number(of=value)) for value in (-5, 2)], on_error=OnError.FINISH)


@task("test.childlate", retry=ONCE)
async def childlate(ctx: TaskContext, params: Number) -> None:
    await ctx.call(double, Number(of=10), timeout=SOON)


@task("test.refused", retry=ONCE)
async def refused(ctx: TaskContext, params: Number) -> list[str]:
    told = []
    for attempt in (
        lambda: ctx.call(double, {"of": "many"}),
        lambda: ctx.step("outer", lambda: ctx.sleep(SOON)),
        lambda: ctx.step("set", a_set),
        lambda: ctx.step("large", large),
        lambda: ctx.join(["nobody"]),
        lambda: ctx.wait_event("no such name"),
        lambda: ctx.emit("x", {"text": "x" * 70_000}),
        lambda: ctx.start(double, Number(of=1), idempotency_key="k"),
        lambda: ctx.start(double, Number(of=2), idempotency_key="k"),
        lambda: ctx.call(double, {"of": 1}, returns=list[int]),
    ):
        try:
            await attempt()
        except NightshiftError as error:
            told.append(f"{type(error).__name__}: {error}".replace(ctx.task_id, "<id>"))
    return told


async def a_set() -> Any:
    return {1, 2}


async def large() -> str:
    return "x" * (1024 * 1024)


@task("test.order", retry=QUICK)
async def order(ctx: TaskContext, params: Number) -> None:
    await ctx.step(f"one {ctx.attempt}", fetch, returns=Page)
    raise RetryableError("again")


@task("test.result", retry=ONCE)
async def wrong_result(ctx: TaskContext, params: Number) -> Number:
    return "no number"  # type: ignore[return-value]


@task("test.swallow")
async def swallow(ctx: TaskContext, params: Number) -> str:
    try:
        await ctx.call(double, Number(of=1))
    except asyncio.CancelledError:
        return "I do not wait"
    return "waited"


@task("test.threads")
async def threads(ctx: TaskContext, params: Number) -> int:
    async with ctx.quota("llm:x", tokens=5) as quota:
        quota.used(3)
    return await ctx.run_cpu(sum, [1, 2, 3])


@task("test.approved", retry=ONCE)
async def approved(ctx: TaskContext, params: Number) -> list[Any]:
    request = ApprovalRequest(f"Number {params.value}?", {"n": params.value}, deciders=("eve",))
    try:
        decision = await ctx.approval(request, timedelta(hours=1) if params.value else SOON, edits=Number)
    except WaitTimeout as error:
        return [type(error).__name__]
    edits = decision.edits
    return [decision.approved, decision.notes, decision.decided_by, edits and edits.value]


@task("test.patient", retry=ONCE)
async def patient(ctx: TaskContext, params: Number) -> None:
    await ctx.gather([Call(double, Number(of=n)) for n in (10, 11)])


@task("test.summary", retry=ONCE)
async def summary(ctx: TaskContext, params: Number) -> list[Any]:
    ends = await ctx.predecessors()
    return [end.result["of"] if end.error is None else end.error["type"] for end in ends]


@task("test.continued", retry=ONCE)
async def continued(ctx: TaskContext, params: Number) -> Any:
    ids = await ctx.start_many([Call(double, Number(of=n)) for n in (1, -2, 3)], then=Call(summary, Number()))
    (end,) = await ctx.join([ids[-1]])
    return end.result


TASKS = [double, steps, waits, groups, failfast, finish, childlate, refused, order, wrong_result, swallow, threads]
TASKS += [approved, patient, summary, continued, *held.TASKS]


@dataclass(frozen=True)
class Case:
    subject: Task[Any, Any]
    params: dict[str, Any] = field(default_factory=dict)
    events: tuple[tuple[str, Any], ...] = ()
    verdict: Verdict | None = None
    cancelled: bool = False
    """Whether its owner cancels it while it waits."""

    def __str__(self) -> str:
        return f"{self.subject.name} {self.params or ''}"


CASES = [
    Case(double, {"of": 2}),
    Case(double, {"of": -1}),
    Case(steps, {"of": 1}),
    Case(steps, {"of": 3}),
    Case(steps, {"of": 9}),
    Case(waits, events=(("paid", {"amount": 1}), ("paid", {"of": 2}), ("other", None))),
    Case(waits, events=(("paid", 1), ("paid", "no number"))),
    Case(groups),
    Case(failfast),
    Case(finish),
    Case(childlate),
    Case(refused),
    Case(order),
    Case(wrong_result),
    Case(swallow),
    Case(threads),
    Case(approved, {"of": 1}, verdict=Verdict(True, "fine", {"of": 3})),
    Case(approved, {"of": 2}, verdict=Verdict(False)),
    Case(approved, {"of": 0}),
    Case(approved, {"of": 3}, cancelled=True),
    Case(patient, cancelled=True),
    Case(summary),
    Case(continued),
    Case(held.one_by_one),
    Case(held.at_most, {"of": 2}),
    Case(held.at_most, {"of": 7}),
    Case(held.at_most, {"of": 0}),
    Case(held.failed_fast),
    Case(held.collected),
    Case(held.stuck, cancelled=True),
    Case(held.late),
    Case(held.in_turn),
    Case(held.two_gates),
    Case(held.busy),
    Case(held.replaced),
    Case(held.exchanged),
    Case(held.refused),
    Case(held.merged),
    Case(held.paced),
    Case(held.saved, {"of": 3}),
    Case(held.circle),
]


async def on_the_engine(engine: Engine, case: Case) -> tuple[TaskRecord, list[Event]]:
    submission = Submission(task=case.subject.name, params=case.params, project_id="p", tags=("a", "b"))
    task_id = (await engine.tasks.enqueue(submission, user_id="ada")).task_id
    for name, payload in case.events:
        await engine.inbox.deliver(task_id, name, payload, user_id="ada")
    async with engine.worker():
        if case.verdict is not None:
            asked = await event_of(engine, task_id, "hitl_pending")
            await engine.approvals.decide(asked["approval_id"], case.verdict, Decider("eve", frozenset()))
        if case.cancelled:
            await event_of(engine, task_id, "task_waiting")
            await engine.tasks.cancel(task_id, user_id="ada")
        record = await finished(engine, task_id)
    channel = f"task:{task_id}"
    return record, await engine.events.read(channel, channel)


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_a_task_comes_to_the_same_in_the_harness_and_on_an_engine(redis_url: str, case: Case) -> None:
    async with engine_on(redis_url, TASKS) as engine:
        record, events = await on_the_engine(engine, case)
    run = await run_task(
        case.subject,
        case.params,
        tasks=TASKS,
        events=case.events,
        user_id="ada",
        project_id="p",
        tags=("a", "b"),
        decisions=lambda _: case.verdict,
        **({"cancel_after": SOON} if case.cancelled else {}),
    )
    assert run.status is record.status
    assert run.elapsed < timedelta(seconds=10)
    assert _json_result(run) == record.result
    assert _anonymous(run.error) == _anonymous(record.error)
    assert run.attempts == record.attempt
    assert [step.name for step in run.steps] == [step.name for step in record.steps]
    assert _history((event.type, event.payload) for event in run.history) == _history(
        (event.type, event.data()) for event in events
    )
    assert (run.progress and run.progress.percent) == (record.progress and record.progress.percent)


def _json_result(run: Run[Any]) -> Any:
    return to_jsonable_python(run.result, by_alias=True) if run.status == "SUCCESS" else None


def _anonymous(error: Any) -> Any:
    """An error record without the ids of its run."""
    if error is None:
        return None
    return (error.type, [word for word in error.message.split() if len(word) < 32], error.retryable, set(error.extra))


def _history(events: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Types in order, with what of the payloads does not depend on time or ids: all of the task's own, the names in the
    engine's. What a task waits for may come about before it has left its worker, and then it does not wait; an approval
    may expire before its task is entered again, or when it is."""
    return [
        (kind, sorted(data) if kind.startswith(("task_", "hitl_", "approval_")) else data)
        for kind, data in events
        if kind != "task_waiting" or data["waiting_for"]["kind"] in ("time", "event")
        if kind != "approval_decided" or data["status"] != "EXPIRED"
    ]

"""A task in a test: weeks pass in milliseconds, what it starts is faked, and a failed test says what happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from app.engine.approval_desk import Verdict
from app.engine.approvals import ApprovalRequest
from app.engine.context import TaskContext
from app.engine.job import Status
from app.engine.lending import Resource
from app.engine.policy import RetryPolicy
from app.engine.registry import task
from app.engine.threads import Reporter
from app.engine.waits import Call, OnError
from app.errors import ChildFailed, Conflict, InvalidInput, PermanentError, RetryableError, WaitTimeout
from app.settings import QuotaLimits
from app.testing import NEVER, HarnessError, Later, TaskHarness, run_task

DAY = timedelta(days=1)
MAILER: Resource[list[str]] = Resource("mailer")


class Order(BaseModel):
    id: int = 1
    tries: int = 1


class Receipt(BaseModel):
    text: str


@task("mail.send", retry=RetryPolicy(max_retries=1, base_s=300, jitter=False))
async def send(ctx: TaskContext, params: Receipt) -> int:
    ctx.use(MAILER).append(params.text)
    if ctx.attempt == 1 and params.text == "shaky":
        raise RetryableError("no line")
    return len(params.text)


@task("orders.remind")
async def remind(ctx: TaskContext, params: Order) -> str:
    await ctx.sleep(7 * DAY)
    await ctx.call(send, Receipt(text=f"order {params.id} is not paid"))
    return "reminded"


@task("orders.paid")
async def paid(ctx: TaskContext, params: Order) -> Any:
    try:
        return await ctx.wait_event("paid", timeout=2 * DAY)
    except WaitTimeout:
        return "never"


@task("orders.retried", retry=RetryPolicy(max_retries=3, base_s=60, factor=2, jitter=False))
async def retried(ctx: TaskContext, params: Order) -> int:
    if ctx.attempt < params.tries:
        raise RetryableError(f"attempt {ctx.attempt}")
    return ctx.attempt


@task("orders.fanout")
async def fanout(ctx: TaskContext, params: Order) -> list[Any]:
    calls = [Call("orders.part", {"n": n}, returns=int) for n in range(3)]
    found = await ctx.gather(calls, on_error=OnError.COLLECT, timeout=3 * DAY)
    return [type(item).__name__ if isinstance(item, ChildFailed) else item for item in found]


@task("orders.telling")
async def telling(ctx: TaskContext, params: Order) -> int:
    await ctx.progress(1, 2, "half")
    await ctx.emit("note", {"n": 1})
    await ctx.emit("note", {"n": 2}, channel=f"project:{ctx.project_id}")
    async with ctx.quota("llm:small", tokens=10, spare=90) as quota:
        quota.used(7)
    await ctx.start("mail.send", {"text": "x"}, delay=DAY)
    return await ctx.run_cpu(count, ctx.reporter())


def count(report: Reporter) -> int:
    report(3, 4, "counted")
    return 42


@task("orders.stuck")
async def stuck(ctx: TaskContext, params: Order) -> None:
    await asyncio.Event().wait()


@task("orders.chain")
async def chain(ctx: TaskContext, params: Order) -> int:
    await ctx.start("orders.chain", {"id": params.id + 1})
    return params.id


async def test_a_week_passes_at_once() -> None:
    began = time.perf_counter()
    run = await run_task(remind, Order(id=7), children={send: 20})
    assert run.result == "reminded"
    assert run.elapsed == 7 * DAY
    assert [wait["kind"] for wait in run.waits] == ["time", "tasks"]
    assert [step.name for step in run.steps] == ["sleep", "call mail.send"]
    assert [(child.task, child.params, child.status) for child in run.started] == [
        ("mail.send", {"text": "order 7 is not paid"}, Status.SUCCESS)
    ]
    assert (run.attempts, run.entries) == (1, 3)
    assert time.perf_counter() - began < 60


async def test_the_clock_starts_where_it_is_told_and_moves_as_the_test_says() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    async with TaskHarness(remind, {"id": 7}, children={send: 20}, clock_start=start) as harness:
        assert harness.run.status is Status.WAITING
        assert harness.run.waiting_for == {"kind": "time", "step": "sleep", "until": "2026-01-08T00:00:00.000Z"}
        run = await harness.advance(6 * DAY)
        assert run.status is Status.WAITING
        assert harness.now == start + 6 * DAY
        run = await harness.advance(DAY)
        assert run.result == "reminded"
    with pytest.raises(HarnessError, match="expected a time with its offset"):
        await run_task(remind, Order(), clock_start=datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("options", "result", "elapsed"),
    [
        ({}, "never", 2 * DAY),
        ({"events": [("paid", {"amount": 3})]}, {"amount": 3}, timedelta()),
        ({"events": [("paid", 3, DAY)]}, 3, DAY),
        ({"events": [("paid", 3, 3 * DAY)]}, "never", 2 * DAY),
    ],
)
async def test_events_come_when_they_are_planned_or_never(
    options: dict[str, Any], result: Any, elapsed: timedelta
) -> None:
    run = await run_task(paid, Order(), **options)
    assert run.result == result
    assert run.elapsed == elapsed


async def test_a_test_sends_an_event_while_the_task_waits() -> None:
    async with TaskHarness(paid, Order()) as harness:
        await harness.send("other", 1)
        assert harness.run.untaken == (("other", 1),)
        await harness.send("paid", "now")
        assert harness.run.result == "now"
        with pytest.raises(Conflict, match="is finished"):
            await harness.send("paid", "again")


async def test_backoff_takes_no_real_time_and_counts_on_the_clock() -> None:
    run = await run_task(retried, Order(tries=3))
    assert run.result == 3
    assert run.attempts == 3
    assert run.elapsed == timedelta(seconds=60 + 120)
    run = await run_task(retried, Order(tries=9))
    assert run.status is Status.FAILURE
    assert run.error is not None
    assert (run.error.type, run.error.message) == ("RetryableError", "attempt 4")


def part(answer: Callable[[int], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda params: answer(params["n"])


async def fail_for_one(params: dict[str, Any]) -> int:
    if params["n"] == 1:
        raise ValueError("one")
    return int(params["n"])


@pytest.mark.parametrize(
    ("fake", "result", "elapsed"),
    [
        (5, [5, 5, 5], timedelta()),
        (part(lambda n: n * n), [0, 1, 4], timedelta()),
        (fail_for_one, [0, "ChildFailed", 2], timedelta()),
        (PermanentError("no"), ["ChildFailed"] * 3, timedelta()),
        (RetryableError, ["ChildFailed"] * 3, timedelta()),
        (Later(DAY, 6), [6, 6, 6], DAY),
        (Later(DAY, part(lambda n: n)), [0, 1, 2], DAY),
    ],
)
async def test_children_are_faked(fake: Any, result: list[Any], elapsed: timedelta) -> None:
    run = await run_task(fanout, Order(), children={"orders.part": fake})
    assert run.result == result
    assert run.elapsed == elapsed


async def test_a_child_that_never_ends_is_cancelled_at_the_deadline() -> None:
    run = await run_task(fanout, Order(), children={"orders.part": NEVER})
    assert run.error is not None
    assert run.error.type == "WaitTimeout"
    assert run.elapsed == 3 * DAY
    assert {child.status for child in run.started} == {Status.CANCELLED}


async def test_real_children_run_as_they_are_with_their_own_retries() -> None:
    mails: list[str] = []
    run = await run_task(remind, Order(id=1), tasks=[send], resources={MAILER: mails})
    assert run.result == "reminded"
    assert mails == ["order 1 is not paid"]
    run = await run_task(send, Receipt(text="shaky"), resources={MAILER: mails})
    assert run.result == 5
    assert run.elapsed == timedelta(minutes=5)


async def test_a_fake_of_a_task_gets_its_parameters_and_keeps_to_its_result() -> None:
    seen: list[Receipt] = []
    run = await run_task(remind, Order(), children={send: lambda params: seen.append(params) or 3})
    assert run.result == "reminded"
    assert seen == [Receipt(text="order 1 is not paid")]
    run = await run_task(remind, Order(), children={send: "no number"})
    assert run.error is not None
    assert "InvalidResult" in run.error.message


async def test_a_child_that_nobody_gave_ends_the_test_and_says_what_to_give() -> None:
    with pytest.raises(HarnessError, match=r"started 'mail.send'.*children=\{'mail.send': ...\}.*tasks=\[...\]"):
        await run_task(remind, Order())
    with pytest.raises(HarnessError, match=r"'mail.send' is given twice"):
        await run_task(remind, Order(), tasks=[send], children={"mail.send": 1})
    with pytest.raises(HarnessError, match=r"cannot be played by the task 'orders.paid'"):
        await run_task(remind, Order(), children={"mail.send": paid})


async def test_wrong_parameters_are_refused_as_by_the_queue() -> None:
    with pytest.raises(InvalidInput, match="params/id:"):
        await run_task(remind, {"id": "x"})


async def test_what_a_task_tells_and_holds_is_there_to_assert_on() -> None:
    run = await run_task(telling, Order(), children={"mail.send": 1}, project_id="tides", user_id="ada")
    assert run.result == 42
    assert [(event.type, event.payload, event.channel) for event in run.events] == [
        ("note", {"n": 1}, None),
        ("note", {"n": 2}, "project:tides"),
    ]
    assert run.progress is not None
    assert (run.progress.percent, run.progress.label) == (75.0, "counted")
    assert [(use.key, use.requests, use.tokens, use.used_tokens) for use in run.quotas] == [("llm:small", 1, 10, 7)]
    assert [(child.task, child.delay, child.status) for child in run.started] == [("mail.send", DAY, Status.PENDING)]
    assert run.elapsed == timedelta()
    refused = await run_task(telling, Order(), project_id="p", quotas={"llm": QuotaLimits(tokens_per_minute=5)})
    assert refused.error is not None
    assert refused.error.type == "QuotaTooSmall"


@task("orders.ask")
async def ask(ctx: TaskContext, params: Order) -> Any:
    request = ApprovalRequest("Publish?", {"id": params.id}, deciders=("eve",))
    decision = await ctx.approval(request, edits=Receipt)
    return [decision.approved, decision.decided_by, decision.edits and decision.edits.text]


@pytest.mark.parametrize(
    ("decisions", "result", "elapsed"),
    [
        ({"Publish?": True}, [True, "eve", None], timedelta()),
        ({"Publish?": Verdict(False, "no", {"text": "x"})}, [False, "eve", "x"], timedelta()),
        ({"Publish?": Later(timedelta(hours=3), True)}, [True, "eve", None], timedelta(hours=3)),
        (lambda approval: approval.payload["id"] == 1, [True, "eve", None], timedelta()),
    ],
)
async def test_a_person_decides(decisions: Any, result: Any, elapsed: timedelta) -> None:
    run = await run_task(ask, Order(), decisions=decisions)
    assert run.result == result
    assert run.elapsed == elapsed
    assert [(item.subject, item.decided_by) for item in run.approvals] == [("Publish?", "eve")]


@pytest.mark.parametrize("decisions", [{}, {"Else?": True}, {"Publish?": None}, {"Publish?": Later(2 * DAY, True)}])
async def test_an_approval_that_nobody_decides_on_in_time_expires(decisions: Any) -> None:
    run = await run_task(ask, Order(), decisions=decisions)
    assert run.error is not None
    assert run.error.type == "ApprovalExpired"
    assert run.elapsed == DAY
    assert [item.status for item in run.approvals] == ["EXPIRED"]


async def test_a_test_decides_while_the_task_waits_and_only_as_it_may() -> None:
    async with TaskHarness(ask, Order()) as harness:
        assert harness.run.waiting_for is not None
        assert harness.run.waiting_for["kind"] == "approval"
        with pytest.raises(HarnessError, match="0 approvals wait about 'Else"):
            await harness.decide(True, subject="Else?")
        with pytest.raises(InvalidInput, match="/edits/text"):
            await harness.decide(Verdict(True, edits={"text": 5}))
        await harness.decide(True)
        assert harness.run.result == [True, "eve", None]
    with pytest.raises(HarnessError, match="expected True, False, a Verdict or Later"):
        await run_task(ask, Order(), decisions={"Publish?": "yes"})


async def test_a_task_that_is_sent_away_for_its_quota_comes_again_which_costs_no_try() -> None:
    waits = {"llm:small": timedelta(minutes=2)}
    run = await run_task(telling, Order(), children={"mail.send": 1}, project_id="p", quota_waits=waits)
    assert run.result == 42
    assert (run.attempts, run.entries, run.elapsed) == (1, 2, timedelta(minutes=2))
    assert len(run.quotas) == 1
    assert "WaitingForQuota: waiting for quota llm:small" in str(run)


async def test_a_task_is_cancelled_by_its_owner_with_its_children() -> None:
    run = await run_task(fanout, Order(), children={"orders.part": NEVER}, cancel_after=DAY)
    assert run.status is Status.CANCELLED
    assert run.elapsed == DAY
    assert {child.status for child in run.started} == {Status.CANCELLED}


async def test_a_task_that_awaits_the_world_for_too_long_is_told() -> None:
    with pytest.raises(HarnessError, match=r"orders.stuck .*running for 0.01 s of real time"):
        await run_task(stuck, Order(), patience_s=0.01)


async def test_tasks_that_start_each_other_without_an_end_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.testing.world.MAX_ENTRIES", 50)
    with pytest.raises(HarnessError, match="entered 50 times"):
        await run_task(chain, Order())


async def test_a_result_that_is_not_there_tells_the_story() -> None:
    run = await run_task(fanout, Order(), children={"orders.part": NEVER}, cancel_after=DAY)
    with pytest.raises(AssertionError) as caught:
        assert run.result == []
    told = str(caught.value)
    assert "orders.fanout is CANCELLED: TaskCancelled: cancelled" in told
    assert "+0:00:00 is entered, attempt 1" in told
    assert "+1 day, 0:00:00 is cancelled" in told
    assert repr(run).count("\n") == 0


async def test_a_long_story_is_cut_in_its_middle() -> None:
    run = await run_task(wide, Order())
    assert len(run.story) == 202
    assert len(str(run).splitlines()) < 110
    assert "lines …" in str(run)


@task("orders.wide")
async def wide(ctx: TaskContext, params: Order) -> None:
    for number in range(200):
        await ctx.emit("note", {"n": number})

"""Limits, keys, debounce and throttle under the fake clock: who runs when, to the moment."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.gates import OnBusy
from app.engine.job import Status
from app.engine.registry import task
from app.engine.waits import Call
from app.errors import PermanentError
from app.testing import Later, NotReplaySafe, TaskHarness, check_replay_safe, run_task
from app.testing.ledger import Moment

MINUTE = timedelta(minutes=1)
SLOW = {"part.run": Later(MINUTE, "ok")}

busy = asyncio.Event()
died = asyncio.Event()
watched: list[TaskHarness[Any, Any]] = []


class Params(BaseModel):
    n: int = 1


@task("keyed.group")
async def group(ctx: TaskContext, params: Params) -> list[Any]:
    return await ctx.gather([Call("part.run", {"n": n}) for n in range(7)], limit=params.n)


@task("keyed.turns")
async def turns(ctx: TaskContext, params: Params) -> list[str]:
    ids = [await ctx.start("part.run", {"n": n}, key="k") for n in range(3)]
    ids.append(await ctx.start("part.run", {"n": 3}, key="k", on_busy=OnBusy.JOIN))
    return [end.status for end in await ctx.join(ids)]


@task("keyed.index", key=lambda params: "page", debounce=MINUTE, debounce_max=3 * MINUTE)
async def index(ctx: TaskContext, params: Params) -> int:
    return params.n


@task("keyed.saves")
async def saves(ctx: TaskContext, params: Params) -> list[str]:
    ids = []
    for n in range(params.n):
        ids.append(await ctx.start(index, Params(n=n)))
        await ctx.sleep(0.8 * MINUTE)
    return ids


@task("keyed.mail", key="mail", on_busy=OnBusy.PARALLEL, throttle=MINUTE, throttle_burst=2)
async def mail(ctx: TaskContext, params: Params) -> int:
    return params.n


@task("keyed.mails")
async def mails(ctx: TaskContext, params: Params) -> None:
    await ctx.gather([Call(mail, Params(n=n)) for n in range(4)])
    await ctx.sleep(10 * MINUTE)
    await ctx.start_many([Call(mail, Params(n=n)) for n in range(3)])


@task("keyed.random")
async def random_key(ctx: TaskContext, params: Params) -> None:
    await ctx.call("part.run", {}, key=uuid.uuid4().hex)


@task("keyed.below", key="k")
async def below(ctx: TaskContext, params: Params) -> str:
    return await ctx.start("part.run", {}, key="k", delay=MINUTE)


@task("keyed.joins")
async def joins(ctx: TaskContext, params: Params) -> int:
    first = await ctx.start("part.run", {}, key="k")
    while died.is_set() and " ends: " not in str(watched[0].run):
        await asyncio.sleep(0)
    second = await ctx.start("part.run", {}, key="k", on_busy=OnBusy.JOIN)
    return len({first, second})


@task("keyed.starts_over")
async def starts_over(ctx: TaskContext, params: Params) -> str:
    for _ in range(3):
        await ctx.start("part.run", {}, key="k")
    await ctx.sleep(0.5 * MINUTE)
    return await ctx.call("part.run", {}, key="k", on_busy=OnBusy.REPLACE)


@task("keyed.holds")
async def holds(ctx: TaskContext, params: Params) -> None:
    for _ in range(2):
        await ctx.start("part.run", {}, key="parts")
    busy.set()
    await asyncio.Event().wait()


@task("keyed.replaces")
async def replaces(ctx: TaskContext, params: Params) -> str:
    await ctx.start(holds, params, key="k")
    await busy.wait()
    return await ctx.call("part.run", {}, key="k", on_busy=OnBusy.REPLACE)


@pytest.mark.parametrize(("limit", "rounds"), [(1, 7), (2, 4), (7, 1), (100, 1)])
async def test_so_many_of_a_group_run_at_once(limit: int, rounds: int) -> None:
    run = await run_task(group, Params(n=limit), children=SLOW)
    assert run.result == ["ok"] * 7
    assert run.elapsed == rounds * MINUTE


async def test_what_the_limit_holds_back_has_not_begun_when_the_task_is_cancelled() -> None:
    async with TaskHarness(group, Params(n=2), children=SLOW) as harness:
        await harness.advance(MINUTE)
        begun = [line for line in harness.run.story if "is entered" in line]
        await harness.cancel()
        assert {child.status for child in harness.run.started} == {Status.SUCCESS, Status.CANCELLED}
        # The task, two that slept and were entered again, and two more.
        assert [line for line in harness.run.story if "is entered" in line] == begun
        assert len(begun) == 1 + 4 + 2


async def test_tasks_of_one_key_run_one_after_the_other() -> None:
    run = await run_task(turns, Params(), children=SLOW)
    assert run.result == ["SUCCESS"] * 4
    assert run.elapsed == 3 * MINUTE
    assert [(child.params, child.key) for child in run.started] == [({"n": n}, "k") for n in range(3)]
    assert "stands for another part.run under the key 'k'" in str(run)
    assert "waits for its turn" in str(run) and "has its turn" in str(run)


async def test_a_debounced_task_runs_when_it_is_quiet_or_has_waited_long_enough() -> None:
    run = await run_task(index, Params(n=5))
    assert (run.result, run.elapsed) == (5, MINUTE)
    async with TaskHarness(saves, Params(n=7), tasks=[index]) as harness:
        # Changed each 48 s: it runs 3 min after the first change, with the fourth of them, and once more at the end.
        run = await harness.finish()
        assert len(set(run.result)) == 2
        assert [child.params["n"] for child in run.started] == [3, 6]
        first, second = (harness.world.scripts.records[child.task_id] for child in run.started)
        begun_ms = harness.world.scripts.now_ms - int(run.elapsed.total_seconds() * 1000)
        assert int(first.fields["finished_at"]) == begun_ms + 180_000
        await harness.advance(MINUTE)
        assert int(second.fields["finished_at"]) == begun_ms + 6 * 48_000 + 60_000


async def test_throttled_starts_are_apart_and_a_pause_gives_them_back() -> None:
    run = await run_task(mails, Params(), tasks=[mail])
    assert [child.delay for child in run.started] == [
        0 * MINUTE,
        0 * MINUTE,
        MINUTE,
        2 * MINUTE,
        *2 * [0 * MINUTE],
        MINUTE,
    ]
    assert run.elapsed == 12 * MINUTE


async def test_none_is_let_in_that_is_about_to_be_cancelled() -> None:
    async with TaskHarness(turns, Params(), children=SLOW) as harness:
        await harness.cancel()
        assert "has its turn" not in str(harness.run)
    fakes = {"part.run": lambda params: Later(MINUTE) if params["n"] else PermanentError("broken")}
    run = await run_task(group, Params(n=1), children=fakes)
    assert run.status is Status.FAILURE
    assert sum("is entered" in line for line in run.story) == 3
    run = await run_task(replaces, Params(), tasks=[holds], children=SLOW)
    assert run.result == "ok"
    assert str(run).count("has its turn") == 1
    run = await run_task(starts_over, Params(), children=SLOW)
    assert [child.status for child in run.started] == [Status.CANCELLED] * 3 + [Status.SUCCESS]
    assert "has its turn" not in str(run)


async def test_a_call_that_is_repeated_finds_what_stood_for_it() -> None:
    """What it has joined has ended by the time it is entered again."""

    def dies(when: Moment, task_id: str, number: int) -> bool:
        is_first = (when, number) == (Moment.BEFORE, 1) and not died.is_set()
        if is_first:
            died.set()
        return is_first

    async def part(params: Any) -> None:
        await died.wait()

    harness = TaskHarness(joins, Params(), dies=dies, children={"part.run": part})
    watched.append(harness)
    async with harness:
        run = await harness.finish()
        assert (run.entries, run.result, len(run.started)) == (2, 1, 1)
        assert run.started[0].status is Status.SUCCESS


async def test_a_delayed_task_keeps_its_turn_and_its_delay() -> None:
    async with TaskHarness(below, Params(), children={"part.run": "ok"}) as harness:
        run = await harness.finish()
        assert run.started[0].status is Status.PENDING
        await harness.advance(MINUTE)
        assert harness.run.started[0].status is Status.SUCCESS


@pytest.mark.parametrize("subject", [group, turns, saves, mails, index], ids=lambda item: item.name)
async def test_what_is_held_back_stays_the_same_when_workers_die(subject: Any) -> None:
    fakes: dict[Any, Any] = {"part.run": "ok", **({} if subject is index else {index: 1}), mail: 1}
    run = await check_replay_safe(subject, Params(n=3), children=fakes)
    assert run.status is Status.SUCCESS


async def test_a_key_that_is_another_when_the_task_is_entered_again_is_found() -> None:
    with pytest.raises(NotReplaySafe, match=r"step 1 'call part.run' was given .* and is given"):
        await check_replay_safe(random_key, Params(), children={"part.run": "ok"})

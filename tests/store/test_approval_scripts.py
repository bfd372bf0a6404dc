"""What the scripts of approvals change, and what they refuse to: workers that die between any two of them included."""

from __future__ import annotations

from dataclasses import replace

import pytest
from redis.asyncio import Redis

from app.engine.approvals import approval_id_of
from app.store import keys
from app.store.approval_scripts import ApprovalScripts, Ask
from app.store.items import Suspend
from app.store.scripts import Scripts
from tests.api.running import everything
from tests.simulated import Held, claim, end_of, lapse, new_task, put, server_ms

HOUR_MS = 3_600_000


@pytest.fixture
async def scripts(redis: Redis) -> Scripts:
    """The scripts on an empty server."""
    return Scripts(redis)


@pytest.fixture
def approvals(scripts: Scripts) -> ApprovalScripts:
    """Those of approvals."""
    return ApprovalScripts(scripts)


def ask_of(held: Held, number: int = 0, *, expires_in_ms: int = HOUR_MS) -> Ask:
    return Ask(
        task_id=held.id,
        token=held.token,
        id=approval_id_of(held.id, number),
        number=number,
        facts=b'{"name":"approval"}',
        expires_in_ms=expires_in_ms,
        subject='say "yes"?',
        payload=b"{}",
        deciders=("eve",),
        scope="",
        edits_schema=b"",
    )


def wait_for(ask: Ask, held: Held) -> Suspend:
    return Suspend(
        id=ask.task_id,
        token=held.token,
        queue=held.queue,
        number=ask.number,
        facts=ask.facts,
        timeout_ms=ask.expires_in_ms,
        fail_fast=False,
        waiting_for=b'{"kind":"approval","step":"approval"}',
        ttl_ms=HOUR_MS,
        subjects=(f"approval:{ask.id}",),
    )


async def begun(scripts: Scripts, task_id: str = "t1") -> Held:
    await put(scripts, new_task(task_id))
    (held,) = await claim(scripts)
    return held


async def kinds(scripts: Scripts, channel: str) -> list[str]:
    _, entries = await scripts.read_events(keys.events(channel), 0, 0, 100)
    return [entry.split(b" ")[1].decode() for entry in entries]


async def status_of(redis: Redis, key: str) -> bytes:
    return bytes(await redis.hget(key, "status"))


async def test_a_stale_attempt_asks_nothing(scripts: Scripts, approvals: ApprovalScripts, redis: Redis) -> None:
    held = await begun(scripts)
    before = await everything(redis)
    assert await approvals.ask_approval(replace(ask_of(held), token=held.token - 1)) == [b"stale"]
    assert await approvals.ask_approval(replace(ask_of(held), task_id="nothing")) == [b"stale"]
    assert await everything(redis) == before


async def test_to_ask_again_changes_nothing(scripts: Scripts, approvals: ApprovalScripts, redis: Redis) -> None:
    held = await begun(scripts)
    first = await approvals.ask_approval(ask_of(held))
    before = await everything(redis)
    # Also with other words and another expiry: what was asked stands.
    again = replace(ask_of(held, expires_in_ms=1), subject="other")
    assert await approvals.ask_approval(again) == first
    assert await everything(redis) == before
    assert first[:2] == [b"ok", b"PENDING"]


async def test_the_wait_ends_with_the_approval(scripts: Scripts, approvals: ApprovalScripts, redis: Redis) -> None:
    held = await begun(scripts)
    ask = ask_of(held)
    await approvals.ask_approval(ask)
    expires_at = float(await redis.hget(keys.approval(ask.id), "expires_at"))
    # The time between asking and waiting is not given on top.
    assert await scripts.suspend([replace(wait_for(ask, held), timeout_ms=9 * HOUR_MS)]) == [1]
    assert await redis.zscore(keys.queue("default"), held.id) == expires_at


async def test_a_worker_that_dies_before_it_waits_leaves_the_question_open(
    scripts: Scripts, approvals: ApprovalScripts, redis: Redis
) -> None:
    held = await begun(scripts)
    ask = ask_of(held)
    await approvals.ask_approval(ask)
    assert await approvals.close_approval(ask.id, "APPROVED", by="eve") == [b"ok"]
    await lapse(redis, held)
    (other,) = await claim(scripts, "w2")
    # So that it sees when the task comes to something else there.
    assert other.fields["steps"] == "0"
    assert (await approvals.ask_approval(ask_of(other)))[:2] == [b"ok", b"APPROVED"]
    assert await approvals.ask_approval(ask) == [b"stale"]
    assert (await kinds(scripts, "user:eve")) == ["hitl_pending", "approval_decided"]


async def test_a_decision_resumes_the_task_once_and_no_other(
    scripts: Scripts, approvals: ApprovalScripts, redis: Redis
) -> None:
    held = await begun(scripts)
    ask = ask_of(held)
    await approvals.ask_approval(ask)
    assert await scripts.suspend([wait_for(ask, held)]) == [1]
    assert await approvals.close_approval(ask.id, "REJECTED", by="eve", notes="n", edits=b"{}") == [b"ok"]
    assert await status_of(redis, keys.task("t1")) == b"PENDING"
    assert not await redis.exists(keys.PREFIXES["pending"] + "t1")
    before = await everything(redis)
    assert await approvals.close_approval(ask.id, "APPROVED", by="bob") == [b"closed", b"REJECTED", b"eve"]
    assert await everything(redis) == before
    (resumed,) = await claim(scripts)
    assert resumed.attempt == held.attempt
    assert await approvals.ask_approval(ask_of(resumed)) != [b"stale"]


async def test_a_decision_on_another_approval_does_not_resume(
    scripts: Scripts, approvals: ApprovalScripts, redis: Redis
) -> None:
    held = await begun(scripts)
    first, second = ask_of(held, 0), ask_of(held, 1)
    await approvals.ask_approval(first)
    await approvals.ask_approval(second)
    await scripts.suspend([wait_for(second, held)])
    await approvals.close_approval(first.id, "APPROVED", by="eve")
    assert await status_of(redis, keys.task("t1")) == b"WAITING"


async def test_an_attempt_that_is_entered_at_the_deadline_ends_it_itself(
    scripts: Scripts, approvals: ApprovalScripts, redis: Redis
) -> None:
    held = await begun(scripts)
    ask = ask_of(held)
    await approvals.ask_approval(ask)
    await scripts.suspend([wait_for(ask, held)])
    now_ms = await server_ms(redis)
    await redis.hset(keys.approval(ask.id), "expires_at", now_ms)
    await redis.zadd(keys.PREFIXES["approval_deadlines"], {ask.id: now_ms})
    await redis.zadd(keys.queue("default"), {"t1": now_ms})
    (entered,) = await claim(scripts)
    assert (await approvals.ask_approval(ask_of(entered)))[:2] == [b"ok", b"EXPIRED"]
    await scripts.heartbeat("w1", b"{}", 1_000)
    assert (await kinds(scripts, "user:eve")) == ["hitl_pending", "approval_decided"]
    assert await status_of(redis, keys.task("t1")) == b"STARTED"


async def test_the_end_of_a_task_withdraws_what_is_open_before_its_last_event(
    scripts: Scripts, approvals: ApprovalScripts, redis: Redis
) -> None:
    held = await begun(scripts)
    first, second = ask_of(held, 0), ask_of(held, 1)
    for ask in (first, second):
        await approvals.ask_approval(ask)
    await approvals.close_approval(first.id, "APPROVED", by="eve")
    assert await scripts.finish([end_of(held)]) == [1]
    assert await status_of(redis, keys.approval(first.id)) == b"APPROVED"
    assert await status_of(redis, keys.approval(second.id)) == b"WITHDRAWN"
    assert (await kinds(scripts, "task:t1"))[-2:] == ["approval_decided", "task_complete"]
    assert await redis.zcard(keys.PREFIXES["approval_deadlines"]) == 0


async def test_a_task_that_a_stock_worker_ended_withdraws_too(
    scripts: Scripts, approvals: ApprovalScripts, redis: Redis
) -> None:
    held = await begun(scripts)
    ask = ask_of(held)
    await approvals.ask_approval(ask)
    await redis.zrem(keys.queue("default"), "t1")
    await redis.set(keys.result("t1"), b"{}")
    assert await scripts.settle_stock(
        "t1",
        status="SUCCESS",
        error=b"",
        finished_ms=await server_ms(redis),
        attempt=1,
        ttl_ms=HOUR_MS,
        event_type="task_complete",
        event=b"{}",
    )
    assert await status_of(redis, keys.approval(ask.id)) == b"WITHDRAWN"
    assert (await kinds(scripts, "task:t1"))[-2:] == ["approval_decided", "task_complete"]


async def test_what_is_not_there_cannot_be_closed(approvals: ApprovalScripts, redis: Redis) -> None:
    assert await approvals.close_approval("nothing", "APPROVED", by="eve") == [b"missing"]
    assert await everything(redis) == {}

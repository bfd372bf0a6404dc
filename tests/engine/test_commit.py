"""Ends and events are written through whatever Redis goes through."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from app.engine.commit import Committer
from app.engine.context import TaskContext
from app.engine.job import Status
from app.engine.registry import task
from app.engine.submissions import Submission
from app.store.embedded import EmbeddedServer
from app.store.items import Suspend
from app.store.scripts import Scripts
from tests.support import engine_on, event_of, finished

GO = asyncio.Event()


class Nothing(BaseModel):
    pass


@task("test.wait_for_go")
async def wait_for_go(ctx: TaskContext, params: Nothing) -> str:
    await GO.wait()
    await ctx.emit("went", {})
    return "done"


async def test_a_full_redis_holds_the_end_of_a_task_up_but_loses_nothing(own_server: EmbeddedServer) -> None:
    GO.clear()
    async with engine_on(own_server.url, (wait_for_go,)) as engine, engine.worker():
        accepted = await engine.tasks.enqueue(Submission("test.wait_for_go"), user_id="ada")
        await event_of(engine, accepted.task_id, "task_started")
        await engine.redis.config_set("maxmemory", "1kb")
        before = await engine.redis.info("stats")
        GO.set()
        while (await engine.redis.info("stats"))["total_error_replies"] == before["total_error_replies"]:
            await asyncio.sleep(0.01)
        held_up = await engine.tasks.get(accepted.task_id, user_id="ada")
        await engine.redis.config_set("maxmemory", "0")
        record = await finished(engine, accepted.task_id)
        events = await engine.events.read(f"task:{accepted.task_id}", "task")
    assert held_up.status is Status.STARTED
    assert (record.status, record.attempt, record.result) == (Status.SUCCESS, 1, "done")
    assert [event.type for event in events] == ["task_queued", "task_started", "went", "task_complete"]


async def test_waits_for_very_many_do_not_all_share_one_call(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts, subjects = Scripts(redis), []

    async def counted(items: Sequence[Suspend]) -> list[int]:
        subjects.append(sum(len(item.subjects) for item in items))
        return [1] * len(items)

    monkeypatch.setattr(scripts, "suspend", counted)
    committer = Committer(scripts)
    names = tuple(f"task:{n}" for n in range(5_000))
    wait = Suspend(
        "parent", 1, "default", 0, b"{}", 1_000, fail_fast=False, waiting_for=b"{}", ttl_ms=1, subjects=names
    )
    await asyncio.gather(*(committer.suspend(wait) for _ in range(20)))
    assert sum(subjects) == 100_000
    assert max(subjects) <= 10_000

"""A request that waits is answered when its task is finished, by the event and not by asking again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.job import Status, TaskRecord
from app.engine.registry import task
from app.engine.service import Engine
from tests.api.running import Api, api_on
from tests.support import PATIENCE_S


class Nothing(BaseModel):
    pass


@task("test.nothing")
async def nothing(ctx: TaskContext, params: Nothing) -> int:
    return 7


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with api_on(redis_url, (nothing,)) as running:
        yield running


class Reads:
    """The records that were read so far."""

    def __init__(self) -> None:
        self.records: list[TaskRecord] = []
        self._news = asyncio.Event()

    def note(self, record: TaskRecord) -> None:
        self.records.append(record)
        self._news.set()

    async def reach(self, count: int) -> None:
        """Wait until there were so many."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.records) < count:
                self._news.clear()
                await self._news.wait()


@pytest.fixture
def reads(api: Api, monkeypatch: pytest.MonkeyPatch) -> Reads:
    seen = Reads()
    get = api.engine.tasks.get

    async def noted(*args: Any, **options: Any) -> TaskRecord:
        record = await get(*args, **options)
        seen.note(record)
        return record

    monkeypatch.setattr(api.engine.tasks, "get", noted)
    return seen


async def posted(api: Api) -> str:
    return str((await api.ada.post("/api/tasks", json={"task": "test.nothing"})).headers["location"])


def waiting(api: Api, path: str, wait: float = 30) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(api.ada.get(f"{path}?wait={wait}"))


async def test_a_waiting_request_is_answered_at_the_end(api: Api, reads: Reads) -> None:
    answer = waiting(api, await posted(api))
    await reads.reach(2)
    async with api.engine.worker():
        view = (await answer).json()
    assert (view["status"], view["result"]) == ("SUCCESS", 7)
    assert [record.status for record in reads.records] == [Status.PENDING, Status.PENDING, Status.SUCCESS]


async def test_a_hundred_wait_for_one_task(api: Api, reads: Reads) -> None:
    path = await posted(api)
    answers = [waiting(api, path) for _ in range(100)]
    await reads.reach(200)
    async with api.engine.worker():
        assert {(await answer).json()["status"] for answer in answers} == {"SUCCESS"}


async def test_a_cancelled_task_wakes_too(api: Api, reads: Reads) -> None:
    path = await posted(api)
    answer = waiting(api, path)
    await reads.reach(2)
    await api.ada.post(f"{path}/cancel")
    assert (await answer).json()["status"] == "CANCELLED"


async def test_an_end_between_the_first_read_and_the_subscription_is_seen(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = await posted(api)
    attach = api.engine.hub.attach

    async def attach_late(*args: Any) -> None:
        await api.ada.post(f"{path}/cancel")
        await attach(*args)

    monkeypatch.setattr(api.engine.hub, "attach", attach_late)
    assert (await waiting(api, path)).json()["status"] == "CANCELLED"


async def test_an_end_while_the_subscription_is_lost_is_seen(api: Api, reads: Reads) -> None:
    path = await posted(api)
    answer = waiting(api, path)
    await reads.reach(2)
    # The hub pauses before it connects again, so the end comes while nobody listens.
    await api.engine.redis.client_kill_filter(_type="pubsub")
    await api.ada.post(f"{path}/cancel")
    assert (await answer).json()["status"] == "CANCELLED"


async def test_when_the_time_is_over_the_task_is_shown_as_it_stands(api: Api) -> None:
    answer = await waiting(api, await posted(api), wait=0.05)
    assert (answer.status_code, answer.json()["status"]) == (200, "PENDING")
    assert int(answer.headers["x-poll-interval"]) > 0


async def test_a_finished_task_is_not_waited_for(api: Api, reads: Reads) -> None:
    path = await posted(api)
    await api.ada.post(f"{path}/cancel")
    reads.records.clear()
    assert (await waiting(api, path)).json()["status"] == "CANCELLED"
    assert len(reads.records) == 1


async def test_waiting_ends_when_the_service_stops(api: Api, reads: Reads) -> None:
    answer = waiting(api, await posted(api))
    await reads.reach(2)
    api.app.state.shutdown.begin()
    assert (await answer).json()["status"] == "PENDING"


async def test_nothing_is_left_behind(api: Api, reads: Reads) -> None:
    answer = waiting(api, await posted(api))
    await reads.reach(2)
    answer.cancel()
    await asyncio.wait({answer})
    assert await subscriptions(api.engine) == 0


async def subscriptions(engine: Engine) -> int:
    """Streams that the hub still wants, once it has told Redis."""
    async with asyncio.timeout(PATIENCE_S):
        while channels := await engine.redis.pubsub_channels():
            pass
    return len(channels)

"""Events from outside over HTTP: kept until the task takes them, once per key, and only from whose task it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.inbox import MAX_EVENTS
from app.engine.registry import task
from app.store import keys
from tests.api.running import Api, api_on, everything
from tests.support import event_of, finished


class Names(BaseModel):
    names: list[str] = ["paid"]


@task("test.wait")
async def wait(ctx: TaskContext, params: Names) -> list[Any]:
    return [await ctx.wait_event(name) for name in params.names]


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with api_on(redis_url, (wait,)) as running:
        yield running


async def put(api: Api, *names: str) -> str:
    answer = await api.ada.post("/api/tasks", json={"task": "test.wait", "params": {"names": names or ["paid"]}})
    return str(answer.json()["task_id"])


async def test_an_event_resumes_the_task_that_waits_for_it(api: Api) -> None:
    task_id = await put(api)
    async with api.engine.worker():
        await event_of(api.engine, task_id, "task_waiting")
        waiting = (await api.ada.get(f"/api/tasks/{task_id}")).json()
        assert (waiting["status"], waiting["waiting_for"]["name"]) == ("WAITING", "paid")
        # Of a name that it does not wait for.
        await api.ada.post(f"/api/tasks/{task_id}/events", json={"name": "other"})
        assert (await api.ada.get(f"/api/tasks/{task_id}")).json()["status"] == "WAITING"
        answer = await api.ada.post(f"/api/tasks/{task_id}/events", json={"name": "paid", "payload": {"amount": 3}})
        assert (answer.status_code, answer.json()) == (202, {"delivered": True})
        assert (await finished(api.engine, task_id)).result == [{"amount": 3}]


async def test_events_that_come_before_the_task_waits_are_kept_in_their_order(api: Api) -> None:
    task_id = await put(api, "b", "a", "a")
    for name, payload in (("a", 1), ("a", [2]), ("b", None)):
        body = {"name": name} if payload is None else {"name": name, "payload": payload}
        assert (await api.ada.post(f"/api/tasks/{task_id}/events", json=body)).status_code == 202
    async with api.engine.worker():
        assert (await finished(api.engine, task_id)).result == [None, 1, [2]]
    assert (await event_of(api.engine, task_id, "event_delivered"))["name"] == "a"


async def test_the_same_key_again_delivers_nothing_more(api: Api) -> None:
    first, second = await put(api, "paid", "paid"), await put(api)
    keyed = {"headers": {"Idempotency-Key": "k"}}
    answers = [
        (await api.ada.post(f"/api/tasks/{first}/events", json={"name": "paid", "payload": payload}, **keyed)).json()
        for payload in (1, 2)
    ]
    assert answers == [{"delivered": True}, {"delivered": False}]
    # The key belongs to the task.
    other = await api.ada.post(f"/api/tasks/{second}/events", json={"name": "paid"}, **keyed)
    assert other.json() == {"delivered": True}
    await api.ada.post(f"/api/tasks/{first}/events", json={"name": "paid", "payload": 3})
    async with api.engine.worker():
        assert (await finished(api.engine, first)).result == [1, 3]
        # A repetition of what was delivered is no conflict, though the task is finished by now.
        again = await api.ada.post(f"/api/tasks/{first}/events", json={"name": "paid"}, **keyed)
    assert (again.status_code, again.json()) == (202, {"delivered": False})


async def test_a_finished_task_takes_no_events(api: Api) -> None:
    task_id = await put(api)
    await api.ada.post(f"/api/tasks/{task_id}/cancel")
    before = await everything(api.engine.redis)
    answer = await api.ada.post(f"/api/tasks/{task_id}/events", json={"name": "paid"})
    assert (answer.status_code, "CANCELLED" in answer.json()["detail"]) == (409, True)
    assert await everything(api.engine.redis) == before


async def test_nobody_sends_events_to_tasks_of_others_but_admins(api: Api) -> None:
    task_id = await put(api)
    before = await everything(api.engine.redis)
    assert (await api.bob.post(f"/api/tasks/{task_id}/events", json={"name": "paid"})).status_code == 404
    assert await everything(api.engine.redis) == before
    assert (await api.root.post(f"/api/tasks/{task_id}/events", json={"name": "paid"})).status_code == 202


async def test_more_than_a_task_takes_are_refused(api: Api) -> None:
    task_id = await put(api)
    await api.engine.redis.hset(keys.PREFIXES["inbox"] + task_id, "events", MAX_EVENTS - 1)
    assert (await api.ada.post(f"/api/tasks/{task_id}/events", json={"name": "a"})).status_code == 202
    before = await everything(api.engine.redis)
    answer = await api.ada.post(f"/api/tasks/{task_id}/events", json={"name": "a"})
    assert (answer.status_code, str(MAX_EVENTS) in answer.json()["detail"]) == (413, True)
    assert await everything(api.engine.redis) == before


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        ({}, 422, "/name"),
        ({"name": ""}, 422, "/name"),
        ({"name": 7}, 422, "/name"),
        ({"name": "a b"}, 422, "/name"),
        ({"name": "a\n"}, 422, "/name"),
        ({"name": "n" * 101}, 422, "/name"),
        ({"name": "a", "payload": "p" * 65_535}, 413, "/payload"),
        ({"name": "a", "paylod": 1}, 422, "/paylod"),
        ([], 422, ""),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_a_wrong_event_is_refused_with_a_pointer_and_changes_nothing(
    api: Api, body: Any, status: int, pointer: str
) -> None:
    task_id = await put(api)
    before = await everything(api.engine.redis)
    answer = await api.ada.post(f"/api/tasks/{task_id}/events", json=body)
    assert (answer.status_code, answer.json()["pointer"]) == (status, pointer)
    assert await everything(api.engine.redis) == before


async def test_the_largest_event_is_taken(api: Api) -> None:
    task_id = await put(api)
    body = {"name": "n" * 100, "payload": "p" * 65_534}
    assert (await api.ada.post(f"/api/tasks/{task_id}/events", json=body)).status_code == 202

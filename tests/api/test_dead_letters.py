"""Dead letters over HTTP: narrowed, replayed, discarded, one by one and in bulk."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel, Field

from app.api.dead_letter_views import BulkDiscardView, BulkReplayView, DeadLetterView
from app.api.task_views import TaskView
from app.engine.context import TaskContext
from app.engine.registry import task
from app.errors import PermanentError
from tests.api.running import Api, api_on
from tests.support import finished

effects: Counter[str] = Counter()
broken: set[str] = set()


class Number(BaseModel):
    n: int = Field(0, ge=0)


async def effect(name: str) -> str:
    effects[name] += 1
    if name in broken:
        raise PermanentError(f"{name} is broken")
    return name


@task("test.steps")
async def steps(ctx: TaskContext, params: Number) -> list[str]:
    return [await ctx.step(name, lambda name=name: effect(name)) for name in ("first", "second")]


@task("test.other", queue="other")
async def other(ctx: TaskContext, params: Number) -> None:
    raise ValueError("no")


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    effects.clear()
    broken.add("second")
    async with api_on(redis_url, (steps, other), queue_max_depth=3) as running:
        yield running


async def failed(api: Api, *bodies: dict[str, Any]) -> list[str]:
    """Tasks of ada that failed for good."""
    ids = [(await api.ada.post("/api/tasks", json=body)).json()["task_id"] for body in bodies]
    async with api.engine.worker():
        for task_id in ids:
            await finished(api.engine, task_id)
    return ids


async def listed(api: Api, **query: str) -> list[str]:
    answer = await api.ada.get("/api/dead-letters", params=query)
    assert answer.status_code == 200
    return [item["task_id"] for item in answer.json()["items"]]


STEPS = {"task": "test.steps", "params": {"n": 1}, "project_id": "apollo", "tags": ["mine"]}
OTHER = {"task": "test.other"}


async def test_a_replay_goes_on_behind_the_finished_steps(api: Api) -> None:
    (old,) = await failed(api, STEPS)
    letter = (await api.ada.get(f"/api/dead-letters/{old}")).json()
    DeadLetterView.model_validate(letter)
    assert [step["name"] for step in letter["steps"]] == ["first"]
    broken.clear()
    answer = await api.ada.post(f"/api/dead-letters/{old}/replay")
    view = answer.json()
    TaskView.model_validate(view)
    assert (answer.status_code, answer.headers["location"]) == (202, f"/api/tasks/{view['task_id']}")
    assert (view["retry_of"], view["project_id"], view["tags"]) == (old, "apollo", ["mine"])
    assert [step["name"] for step in view["steps"]] == ["first"]
    async with api.engine.worker():
        assert (await finished(api.engine, view["task_id"])).result == ["first", "second"]
    assert effects == {"first": 1, "second": 2}


async def test_a_second_replay_is_told_of_the_first(api: Api) -> None:
    (old,) = await failed(api, STEPS)
    made = (await api.ada.post(f"/api/dead-letters/{old}/replay", json={"params": {"n": 2}})).json()
    assert made["steps"] == []
    again = await api.ada.post(f"/api/dead-letters/{old}/replay")
    assert (again.status_code, again.json()["replayed_as"]) == (409, made["task_id"])
    assert made["task_id"] in again.json()["detail"]
    for method in ("GET", "DELETE"):
        gone = await api.ada.request(method, f"/api/dead-letters/{old}")
        assert (gone.status_code, made["task_id"] in gone.json()["detail"]) == (404, True)


async def test_wrong_parameters_are_refused_with_a_pointer_and_the_letter_stays(api: Api) -> None:
    (old,) = await failed(api, STEPS)
    answer = await api.ada.post(f"/api/dead-letters/{old}/replay", json={"params": {"n": -1}})
    assert (answer.status_code, answer.json()["pointer"]) == (422, "/params/n")
    answer = await api.ada.post(f"/api/dead-letters/{old}/replay", json={"param": {}})
    assert (answer.status_code, answer.json()["pointer"]) == (422, "/param")
    assert await listed(api) == [old]


async def test_an_admin_replays_for_the_owner(api: Api) -> None:
    (old,) = await failed(api, STEPS)
    view = (await api.root.post(f"/api/dead-letters/{old}/replay")).json()
    assert view["user_id"] == "ada"
    assert (await api.ada.get(f"/api/tasks/{view['task_id']}")).status_code == 200


async def test_a_discarded_letter_is_gone(api: Api) -> None:
    (old,) = await failed(api, STEPS)
    assert (await api.bob.delete(f"/api/dead-letters/{old}")).status_code == 404
    answer = await api.ada.delete(f"/api/dead-letters/{old}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert await listed(api) == []
    queues = (await api.ada.get("/api/queues")).json()["items"]
    assert [queue["dead"] for queue in queues] == [0, 0]


async def test_a_list_is_narrowed(api: Api) -> None:
    first, second = await failed(api, STEPS, OTHER)
    times = [(await api.ada.get(f"/api/dead-letters/{one}")).json()["failed_at"] for one in (first, second)]
    for name, value, found in (
        ("project_id", "apollo", {first}),
        ("tag", "mine", {first}),
        ("error_type", "ValueError", {second}),
        ("failed_after", min(times), {first, second}),
        ("failed_before", min(times), set()),
        ("queue", "", {first, second}),
    ):
        assert set(await listed(api, **{name: value})) == found


async def test_a_filter_that_is_no_time_is_refused_in_our_own_words(api: Api) -> None:
    answer = await api.ada.get("/api/dead-letters", params={"failed_after": "yesterday"})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("failed_after: expected a time")


async def test_in_bulk_what_cannot_be_replayed_is_told_and_stays(api: Api) -> None:
    ids = await failed(api, STEPS, STEPS, STEPS)
    await api.ada.post("/api/tasks", json=STEPS)
    bulk = (await api.ada.post("/api/dead-letters/replay", json={"task": "test.steps"})).json()
    BulkReplayView.model_validate(bulk)
    # The queue has room for two.
    (stays,) = bulk["failed"]
    made = {one["task_id"]: one["replayed_as"] for one in bulk["replayed"]}
    assert (len(made), made.keys() | {stays["task_id"]}) == (2, set(ids))
    assert (stays["error"], bulk["next_cursor"]) == ("QueueFull", None)
    assert await listed(api) == [stays["task_id"]]
    for old, new in made.items():
        assert (await api.ada.get(f"/api/tasks/{new}")).json()["retry_of"] == old


async def test_in_bulk_a_client_goes_on_from_the_cursor(api: Api) -> None:
    await failed(api, STEPS, OTHER, STEPS)
    discarded, cursor = [], ""
    while cursor is not None:
        body = {"all": True, "limit": 2, "cursor": cursor}
        bulk = (await api.ada.post("/api/dead-letters/discard", json=body)).json()
        BulkDiscardView.model_validate(bulk)
        discarded.append(bulk["discarded"])
        cursor = bulk["next_cursor"]
    assert discarded == [2, 1]
    assert await listed(api) == []

"""Tasks under a key over HTTP: in order, refused, joined, replaced, debounced and throttled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from app.api.task_views import TaskView
from app.engine.context import TaskContext
from app.engine.registry import task
from tests.api.running import Api, api_on
from tests.support import finished


class Number(BaseModel):
    n: int = 0


@task("test.double")
async def double(ctx: TaskContext, params: Number) -> int:
    return params.n * 2


@task("test.save", key="page", debounce=timedelta(seconds=5), debounce_max=timedelta(seconds=20))
async def save(ctx: TaskContext, params: Number) -> int:
    return params.n


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with api_on(redis_url, (double, save)) as running:
        yield running


async def post(api: Api, status: int = 202, name: str = "test.double", **body: Any) -> dict[str, Any]:
    answer = await api.ada.post("/api/tasks", json={"task": name, **body})
    assert answer.status_code == status, answer.text
    return dict(answer.json())


async def test_tasks_of_one_key_stand_behind_each_other(api: Api) -> None:
    first, second, third = [await post(api, key="k", params={"n": n}) for n in range(3)]
    TaskView.model_validate(third)
    assert [(item["key"], item["behind"]) for item in (first, second, third)] == [("k", None), ("k", 1), ("k", 2)]
    plain = await post(api)
    assert (plain["key"], plain["behind"]) == (None, None)
    async with api.engine.worker():
        assert (await finished(api.engine, third["task_id"])).result == 4


async def test_a_busy_key_refuses_and_names_its_task(api: Api) -> None:
    held = await post(api, key="k")
    problem = await post(api, 409, key="k", on_busy="reject")
    assert (problem["title"], problem["unfinished_task"]) == ("Key busy", held["task_id"])
    answer = await api.ada.post(
        "/api/tasks/batch",
        json={"tasks": [{"task": "test.double"}, {"task": "test.double", "key": "k", "on_busy": "reject"}]},
    )
    assert answer.status_code == 409
    assert len((await api.ada.get("/api/tasks")).json()["items"]) == 1


async def test_the_key_of_another_user_is_another_key(api: Api) -> None:
    await post(api, key="k")
    answer = await api.bob.post("/api/tasks", json={"task": "test.double", "key": "k", "on_busy": "reject"})
    assert answer.status_code == 202


async def test_one_that_joins_is_answered_with_the_unfinished_task(api: Api) -> None:
    held = await post(api, key="k", on_busy="join")
    joined = await post(api, 200, key="k", on_busy="join", params={"n": 5})
    assert joined["task_id"] == held["task_id"]


async def test_one_that_replaces_cancels_what_waits(api: Api) -> None:
    held = await post(api, key="k")
    fresh = await post(api, key="k", on_busy="replace")
    assert (await api.ada.get(f"/api/tasks/{held['task_id']}")).json()["status"] == "CANCELLED"
    assert fresh["behind"] is None


async def test_a_debounced_task_takes_the_parameters_of_the_next(api: Api) -> None:
    first = await post(api, key="k", debounce_s=0.05, params={"n": 1})
    second = await post(api, 200, key="k", debounce_s=0.05, params={"n": 2})
    assert second["task_id"] == first["task_id"]
    assert first["next_attempt_at"] <= second["next_attempt_at"]
    async with api.engine.worker():
        assert (await finished(api.engine, first["task_id"])).result == 4


async def test_a_throttled_task_says_when_it_starts(api: Api) -> None:
    body = {"key": "k", "throttle_s": 60, "on_busy": "parallel"}
    first, second = await post(api, **body), await post(api, **body)
    assert first["next_attempt_at"] is None
    assert second["next_attempt_at"] > second["enqueued_at"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"key": "a\nb"}, "/key"),
        ({"key": "k", "on_busy": "wait"}, "/on_busy"),
        ({"on_busy": "join"}, "/on_busy"),
        ({"debounce_s": 5}, "/debounce_s"),
        ({"key": "k", "debounce_s": 0}, "/debounce_s"),
        ({"key": "k", "debounce_s": 5, "debounce_max_s": 4}, "/debounce_max_s"),
        ({"key": "k", "throttle_s": 5, "delay_s": 5}, "/delay_s"),
        ({"key": "k", "throttle_s": 5, "after": ["a"]}, "/after"),
        ({"key": "k", "throttle_s": 5, "throttle_burst": 0}, "/throttle_burst"),
        ({"key": "k", "name": "test.save"}, "/key"),
        ({"throttle_s": 5, "key": "k", "name": "test.save"}, "/key"),
    ],
)
async def test_what_makes_no_sense_is_refused_with_a_pointer(api: Api, body: dict[str, Any], pointer: str) -> None:
    problem = await post(api, 422, **body)
    assert pointer in [problem.get("pointer"), *(item["pointer"] for item in problem.get("errors", []))]
    batch = {"tasks": [{"task": body.pop("name", "test.double"), **body}]}
    answer = await api.ada.post("/api/tasks/batch", json={"tasks": [{"task": "test.double"}, *batch["tasks"]]})
    assert answer.status_code == 422
    assert f"/tasks/1{pointer}" in answer.text
    assert (await api.ada.get("/api/tasks")).json()["items"] == []


async def test_a_type_tells_what_it_sets_for_its_key(api: Api) -> None:
    types = {item["task"]: item["policy"] for item in (await api.ada.get("/api/task-types")).json()["items"]}
    assert types["test.double"]["on_busy"] is None
    shown = {name: types["test.save"][name] for name in ("on_busy", "debounce_s", "debounce_max_s", "throttle_s")}
    assert shown == {"on_busy": "queue", "debounce_s": 5, "debounce_max_s": 20, "throttle_s": None}

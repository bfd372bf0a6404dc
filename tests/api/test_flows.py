"""Flows and trees over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from app.api.task_views import TaskView
from app.api.trees import TreeView
from app.domains.flows.tasks import run as flow_task
from app.engine.context import TaskContext
from app.engine.registry import task
from app.errors import PermanentError
from tests.api.running import Api, api_on, everything
from tests.support import finished


class Text(BaseModel):
    model_config = ConfigDict(extra="forbid")

    text: str


@task("test.say")
async def say(ctx: TaskContext, params: Text) -> Text:
    if params.text == "fail":
        raise PermanentError("x" * 1_000)
    return params


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with api_on(redis_url, (flow_task, say)) as running:
        yield running


SAY = {"task": "test.say", "params": {"text": "hello"}}
FLOW = {
    "sequence": [
        {"name": "a", **SAY},
        {
            "map": [{"$from": "a.text"}, "fail"],
            "each": {"task": "test.say", "params": {"text": {"$from": "item"}}},
            "on_error": "collect",
        },
    ]
}


async def test_a_flow_is_a_task_with_a_tree(api: Api) -> None:
    answer = await api.ada.post("/api/flows", json={"flow": FLOW, "project_id": "apollo", "tags": ["t"], "priority": 2})
    posted = TaskView.model_validate(answer.json())
    assert (answer.status_code, answer.headers["location"]) == (202, f"/api/tasks/{posted.task_id}")
    assert (posted.task, posted.status, posted.project_id, posted.priority) == ("flows.run", "PENDING", "apollo", 2)
    before = (await api.ada.get(f"/api/tasks/{posted.task_id}/tree")).json()
    assert (before["count"], before["root"]["children"]) == (1, [])
    async with api.engine.worker():
        await finished(api.engine, posted.task_id)
    result = (await api.ada.get(f"/api/tasks/{posted.task_id}/result")).json()
    assert result[0] == {"text": "hello"}
    assert result[1]["error"]["type"] == "PermanentError"
    answer = await api.ada.get(f"/api/tasks/{posted.task_id}/tree")
    tree = TreeView.model_validate(answer.json())
    first, second = tree.root.children
    for task_id in (first.task_id, second.task_id, second.children[0].task_id):
        view = (await api.ada.get(f"/api/tasks/{task_id}")).json()
        assert (view["priority"], view["project_id"], view["tags"]) == (2, "apollo", ["t"])
    assert (tree.count, tree.truncated, tree.root.label) == (5, False, None)
    assert (first.label, first.task, first.status) == ("a", "test.say", "SUCCESS")
    assert [child.label for child in second.children] == ["0", "1"]
    error = second.children[1].error
    assert error is not None
    assert error.message.endswith("(1000 characters in all)")
    assert len(error.message) == 300


async def test_a_tree_is_bounded(api: Api) -> None:
    task_id = (await api.ada.post("/api/flows", json={"flow": FLOW})).json()["task_id"]
    async with api.engine.worker():
        await finished(api.engine, task_id)
    tree = (await api.ada.get(f"/api/tasks/{task_id}/tree?limit=2")).json()
    assert (tree["count"], tree["truncated"], tree["root"]["children_not_shown"]) == (2, True, 1)
    tree = (await api.ada.get(f"/api/tasks/{task_id}/tree?depth=1")).json()
    assert [child["children_not_shown"] for child in tree["root"]["children"]] == [0, 2]
    for query in ("limit=0", "limit=1001", "depth=-1", "depth=21", "depth=x"):
        assert (await api.ada.get(f"/api/tasks/{task_id}/tree?{query}")).status_code == 422


DEEP: Any = SAY
for _ in range(8):
    DEEP = {"sequence": [DEEP]}
WRONG = [
    ({}, 422, "/flow"),
    ({"flow": []}, 422, "/flow"),
    ({"flow": {}}, 422, "/flow"),
    ({"flow": {"task": "test.none"}}, 404, "/flow/task"),
    ({"flow": {"parallel": {"a": SAY, "b": {"task": "test.none"}}}}, 404, "/flow/parallel/b/task"),
    ({"flow": {"sequence": [SAY, {}]}}, 422, "/flow/sequence/1"),
    ({"flow": {"sequence": [SAY, {**SAY, "on_error": "finish"}]}}, 422, "/flow/sequence/1"),
    ({"flow": {"sequence": [{**SAY, "nmae": "a"}]}}, 422, "/flow/sequence/0/nmae"),
    ({"flow": {"sequence": [{**SAY, "name": "a b"}]}}, 422, "/flow/sequence/0/name"),
    ({"flow": {"map": [1], "each": {"task": 7}}}, 422, "/flow/each/task"),
    ({"flow": {"map": [1], "each": SAY, "on_error": "ignore"}}, 422, "/flow/on_error"),
    (
        {"flow": {"sequence": [SAY, {"task": "test.say", "params": {"text": {"$from": "a.text"}}}]}},
        422,
        "/flow/sequence/1/params/text",
    ),
    ({"flow": {"task": "test.say", "params": {"text": 7}}}, 422, "/flow/params/text"),
    ({"flow": {"task": "test.say", "params": {"text": "x" * 1_048_576}}}, 413, None),
    ({"flow": DEEP}, 422, "/flow" + "/sequence/0" * 8),
    ({"flow": {"sequence": [SAY] * 1_001}}, 422, "/flow/sequence"),
    ({"flow": {"sequence": [SAY] * 1_000}}, 422, "/flow/sequence/999"),
    ({"flow": SAY, "priority": 10}, 422, "/priority"),
    ({"flow": SAY, "params": {}}, 422, "/params"),
    ({"flow": SAY, "delay_s": 1, "run_at": "2030-01-01T00:00:00Z"}, 422, "/run_at"),
]


@pytest.mark.parametrize(("body", "status", "pointer"), WRONG, ids=[json.dumps(row[0])[:80] for row in WRONG])
async def test_a_wrong_flow_is_refused_with_a_pointer_and_leaves_nothing(
    api: Api, body: Any, status: int, pointer: str | None
) -> None:
    before = await everything(api.engine.redis)
    answer = await api.ada.post("/api/flows", json=body)
    assert (answer.status_code, answer.json().get("pointer")) == (status, pointer)
    assert await everything(api.engine.redis) == before


async def test_the_same_key_gives_the_same_flow(api: Api) -> None:
    headers = {"idempotency-key": "k"}
    first = await api.ada.post("/api/flows", json={"flow": FLOW}, headers=headers)
    again = await api.ada.post("/api/flows", json={"flow": FLOW}, headers=headers)
    other = await api.ada.post("/api/flows", json={"flow": SAY}, headers=headers)
    assert (first.status_code, again.status_code, other.status_code) == (202, 200, 409)
    assert first.json()["task_id"] == again.json()["task_id"]


async def test_a_flow_can_be_delayed_and_cancelled(api: Api) -> None:
    task_id = (await api.ada.post("/api/flows", json={"flow": FLOW, "delay_s": 3_600})).json()["task_id"]
    assert (await api.bob.get(f"/api/tasks/{task_id}/tree")).status_code == 404
    assert (await api.ada.post(f"/api/tasks/{task_id}/cancel")).json()["status"] == "CANCELLED"


async def test_a_flow_that_is_repeated_runs_the_same_form(api: Api) -> None:
    task_id = (await api.ada.post("/api/flows", json={"flow": {"sequence": [{"name": "a", **SAY}]}})).json()["task_id"]
    async with api.engine.worker():
        await finished(api.engine, task_id)
        again = (await api.ada.post(f"/api/tasks/{task_id}/retry")).json()["task_id"]
        await finished(api.engine, again)
    assert (await api.ada.get(f"/api/tasks/{again}/result")).json() == {"text": "hello"}

"""What cannot be accepted is refused with the promised problem, and leaves no trace in Redis."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from app.engine.context import TaskContext
from app.engine.registry import task
from tests.api.running import Api, api_on, everything


class Number(BaseModel):
    model_config = ConfigDict(extra="forbid")

    n: int = Field(0, ge=0)
    any: Any = None


@task("test.number")
async def number(ctx: TaskContext, params: Number) -> Number:
    return params


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with api_on(redis_url, (number,), queue_max_depth=10) as running:
        yield running


FAR = (datetime.now(UTC) + timedelta(days=3_700)).isoformat()
OK = {"task": "test.number"}
WRONG_TASKS = [
    ({}, 422, "/task"),
    ({"task": ""}, 422, "/task"),
    ({"task": 7}, 422, "/task"),
    ({"task": "test.unknown"}, 404, "/task"),
    ({"task": "t" * 101}, 422, "/task"),
    ({**OK, "params": {"n": -1}}, 422, "/params/n"),
    ({**OK, "params": {"n": "x"}}, 422, "/params/n"),
    ({**OK, "params": {"m~/": 1}}, 422, "/params/m~0~1"),
    ({**OK, "params": []}, 422, "/params"),
    ({**OK, "params": None}, 422, "/params"),
    ({**OK, "delay_s": -1}, 422, "/delay_s"),
    ({**OK, "delay_s": "1"}, 422, "/delay_s"),
    ({**OK, "delay_s": True}, 422, "/delay_s"),
    ({**OK, "delay_s": 3.2e8}, 422, "/delay_s"),
    ({**OK, "run_at": "tomorrow"}, 422, "/run_at"),
    ({**OK, "run_at": 1_700_000_000}, 422, "/run_at"),
    ({**OK, "run_at": "1700000000"}, 422, "/run_at"),
    ({**OK, "run_at": "2030-01-01T00:00:00"}, 422, "/run_at"),
    ({**OK, "run_at": "2030-02-30T00:00:00Z"}, 422, "/run_at"),
    ({**OK, "run_at": FAR}, 422, "/run_at"),
    ({**OK, "run_at": "2030-01-01T00:00:00Z", "delay_s": 1}, 422, "/run_at"),
    ({**OK, "priority": 10}, 422, "/priority"),
    ({**OK, "priority": -1}, 422, "/priority"),
    ({**OK, "priority": 1.0}, 422, "/priority"),
    ({**OK, "project_id": ""}, 422, "/project_id"),
    ({**OK, "project_id": "a\nb"}, 422, "/project_id"),
    ({**OK, "project_id": "p" * 129}, 422, "/project_id"),
    ({**OK, "tags": "a"}, 422, "/tags"),
    ({**OK, "tags": ["a", "b\n"]}, 422, "/tags/1"),
    ({**OK, "tags": ["a"] * 21}, 422, "/tags"),
    ({**OK, "prority": 1}, 422, "/prority"),
    ([], 422, ""),
    ("x", 422, ""),
]


@pytest.mark.parametrize(
    ("body", "status", "pointer"), WRONG_TASKS, ids=[json.dumps(row[0])[:60] for row in WRONG_TASKS]
)
async def test_a_wrong_task_is_refused_with_a_pointer(api: Api, body: Any, status: int, pointer: str) -> None:
    before = await everything(api.engine.redis)
    answer = await api.ada.post("/api/tasks", json=body)
    assert (answer.status_code, answer.json()["pointer"]) == (status, pointer)
    assert answer.headers["content-type"] == "application/problem+json"
    batch = await api.ada.post("/api/tasks/batch", json={"tasks": [OK, body]})
    assert (batch.status_code, batch.json()["pointer"]) == (status, f"/tasks/1{pointer}")
    assert await everything(api.engine.redis) == before


DEEP = b'{"task":"test.number","params":{"any":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
WRONG_BODIES = {
    "nothing": (b"", 422),
    "no JSON": (b"{", 422),
    "NaN": (b'{"task":"test.number","params":{"any":NaN}}', 422),
    "Infinity": (b'{"task":"test.number","params":{"any":-Infinity}}', 422),
    "beyond a double": (b'{"task":"test.number","params":{"any":[1e999]}}', 422),
    "beyond a double, written out": (b'{"task":"test.number","params":{"any":1%b.0}}' % (b"0" * 400), 422),
    "half a surrogate pair": (rb'{"task":"test.number","params":{"any":"\ud800"}}', 422),
    "no UTF-8": (b'{"task":"test.number","params":{"any":"\xff"}}', 422),
    "too deep": (DEEP, 422),
    "an endless number": (b'{"task":"test.number","params":{"any":%b}}' % (b"1" * 100_000), 422),
    "over 1 MiB": (b'{"task":"test.number","params":{"any":"%b"}}' % (b"x" * 1_048_576), 413),
}


@pytest.mark.parametrize("kind", WRONG_BODIES)
async def test_a_body_that_is_no_json_or_too_large_is_refused(api: Api, kind: str) -> None:
    content, status = WRONG_BODIES[kind]
    before = await everything(api.engine.redis)
    for path in ("/api/tasks", "/api/tasks/batch"):
        answer = await api.ada.post(path, content=content, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert await everything(api.engine.redis) == before


async def test_where_json_ends_is_said(api: Api) -> None:
    answer = await api.ada.post("/api/tasks", content=b'{"task":\n  NaN}', headers={"content-type": "application/json"})
    assert "character 11" in answer.json()["detail"]


async def test_large_exact_numbers_are_kept(api: Api) -> None:
    content = b'{"task":"test.number","params":{"any":[%b, 1e300, 1e-999]}}' % (b"9" * 400)
    answer = await api.ada.post("/api/tasks", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 202


async def test_what_may_be_posted_can_be_run(api: Api) -> None:
    """The deepest body that is taken can also be stored, read, returned and shown."""
    for depth in range(220, 0, -1):
        body = b'{"task":"test.number","params":{"any":' + b"[" * depth + b"]" * depth + b"}}"
        answer = await api.ada.post("/api/tasks", content=body, headers={"content-type": "application/json"})
        if answer.status_code == 202:
            break
    assert 100 < depth < 220
    async with api.engine.worker():
        view = (await api.ada.get(f"{answer.headers['location']}?wait=20")).json()
    assert view["status"] == "SUCCESS"
    assert view["result"] == json.loads(body)["params"] | {"n": 0}


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_a_body_that_does_not_say_it_is_json_is_refused(api: Api, content_type: str | None) -> None:
    before = await everything(api.engine.redis)
    headers = {"content-type": content_type} if content_type else {}
    answer = await api.ada.post("/api/tasks", content=b'{"task":"test.number"}', headers=headers)
    assert answer.status_code == 422
    assert "application/json" in answer.json()["detail"]
    assert await everything(api.engine.redis) == before


@pytest.mark.parametrize("key", ["", "k" * 129, "a\tb"])
async def test_a_wrong_idempotency_key_is_refused(api: Api, key: str) -> None:
    before = await everything(api.engine.redis)
    answer = await api.ada.post("/api/tasks", json=OK, headers={"idempotency-key": key})
    assert answer.status_code == 422
    assert [error["parameter"].lower() for error in answer.json()["errors"]] == ["idempotency-key"]
    assert await everything(api.engine.redis) == before


@pytest.mark.parametrize("tasks", [[], [OK] * 1_001])
async def test_a_batch_holds_1_to_1000_tasks(api: Api, tasks: list[Any]) -> None:
    before = await everything(api.engine.redis)
    answer = await api.ada.post("/api/tasks/batch", json={"tasks": tasks})
    assert (answer.status_code, answer.json()["pointer"]) == (422, "/tasks")
    assert await everything(api.engine.redis) == before


async def test_a_batch_that_does_not_fit_into_the_queue_is_refused_whole(api: Api) -> None:
    before = await everything(api.engine.redis)
    answer = await api.ada.post("/api/tasks/batch", json={"tasks": [OK] * 11})
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:nightshift:problem:queue-full")
    assert await everything(api.engine.redis) == before


@pytest.mark.parametrize(
    "path",
    [
        "/api/tasks?limit=0",
        "/api/tasks?limit=201",
        "/api/tasks?limit=x",
        "/api/tasks?status=DONE",
        "/api/tasks?cursor=nonsense",
        "/api/tasks?cursor=1:a%00",
        "/api/tasks?tag=a%0Ab",
        "/api/tasks?statu=PENDING",
        "/api/tasks?task=" + "t" * 129,
        "/api/dead-letters?limit=201",
        "/api/dead-letters?cursor=%5B",
        "/api/dead-letters?project=x",
        "/api/dead-letters?failed_after=yesterday",
        "/api/dead-letters?failed_before=1700000000",
        "/api/dead-letters?tag=a%0Ab",
        "/api/tasks/x?wait=31",
        "/api/tasks/x?wait=-1",
        "/api/tasks/x?wait=nan",
        "/api/tasks/" + "x" * 129,
        "/jobs/" + "x" * 129,
    ],
)
async def test_a_wrong_parameter_is_named(api: Api, path: str) -> None:
    answer = await api.ada.get(path)
    assert answer.status_code == 422
    assert all(error["parameter"] for error in answer.json()["errors"])


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/nothing"), ("DELETE", "/api/tasks"), ("PUT", "/readyz")])
async def test_other_paths_and_methods_are_problems_too(api: Api, method: str, path: str) -> None:
    answer = await api.ada.request(method, path)
    assert answer.status_code in (404, 405)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("name", ["nothing", "arq", "default%00", "q" * 128])
@pytest.mark.parametrize("action", ["pause", "resume"])
async def test_an_unknown_queue_is_not_paused(api: Api, name: str, action: str) -> None:
    before = await everything(api.engine.redis)
    assert (await api.root.post(f"/api/queues/{name}/{action}")).status_code == 404
    assert await everything(api.engine.redis) == before


async def test_all_that_is_wrong_with_params_is_said_at_its_place(api: Api) -> None:
    answer = await api.ada.post("/api/tasks", json={**OK, "params": {"n": -1, "m~/": 2}})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/params/n", "/params/m~0~1"]
    assert answer.json()["detail"].endswith("(and 1 more)")


@pytest.mark.parametrize("action", ["replay", "discard"])
@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/all"),
        ({"all": False}, "/all"),
        ({"all": 1}, "/all"),
        ({"queue": ""}, "/queue"),
        ({"queue": None}, "/all"),
        ({"failed_before": "2030-01-01"}, "/failed_before"),
        ({"all": True, "limit": 101}, "/limit"),
        ({"all": True, "limit": 0}, "/limit"),
        ({"all": True, "cursor": "x"}, "/cursor"),
        ({"al": True}, "/al"),
        ([], ""),
    ],
    ids=str,
)
async def test_what_is_meant_in_bulk_must_be_said(api: Api, action: str, body: Any, pointer: str) -> None:
    answer = await api.root.post(f"/api/dead-letters/{action}", json=body)
    assert (answer.status_code, answer.json()["pointer"]) == (422, pointer)

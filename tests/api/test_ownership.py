"""Nobody reaches what is somebody else's, on any route: the cases are made from OpenAPI, so that none is forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.registry import task
from app.engine.timetable import Schedule
from app.errors import PermanentError
from tests.api.running import Api, Operation, api_on, everything, operations
from tests.support import finished

ADMIN_ROUTES = {
    *("POST /api/queues/{name}/pause", "POST /api/queues/{name}/resume", "GET /api/workers"),
    *(f"POST /api/schedules/{{name}}/{action}" for action in ("trigger", "pause", "resume")),
}
OF_A_SCHEDULE = {"GET /api/schedules/{name}"}
OF_AN_APPROVAL = {f"{method} /api/approvals/{{approval_id}}" for method in ("GET", "POST", "DELETE")}
"""Who may do what with one, `test_approvals.py` checks."""
OPEN_ROUTES = {"GET /healthz", "GET /readyz", "GET /metrics"}
PER_CALLER = {"GET /api/projects/{project_id}/events"}
"""A path parameter that is no one's property: each caller has a view of a project of their own."""

CLOSED = [one for one in operations() if not one.is_open]
OF_A_TASK = [one for one in CLOSED if "{task_id}" in one.path]
LISTS = [one for one in CLOSED if one.method == "get" and "{" not in one.path and not one.is_stream]


class Nothing(BaseModel):
    pass


@task("test.broken")
async def broken(ctx: TaskContext, params: Nothing) -> None:
    raise PermanentError("it is broken")


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    schedule = Schedule("default", "test.broken", cron="0 3 * * *", user_id="ada")
    async with api_on(redis_url, (broken,), schedules=[schedule]) as running:
        yield running


@pytest.fixture
async def adas(api: Api) -> str:
    """A task of ada that is finished and a dead letter too."""
    return await broken_of_ada(api)


async def broken_of_ada(api: Api) -> str:
    answer = await api.ada.post("/api/tasks", json={"task": "test.broken", "project_id": "apollo", "tags": ["mine"]})
    async with api.engine.worker():
        await finished(api.engine, answer.json()["task_id"])
    return str(answer.json()["task_id"])


async def call(client: httpx.AsyncClient, operation: Operation, **parameters: str) -> httpx.Response:
    path = operation.path.format(
        **{"name": "default", "task_id": "t", "project_id": "p", "approval_id": "a", **parameters}
    )
    return await client.request(operation.method, path, json=operation.body)


def test_the_routes_are_all_accounted_for() -> None:
    assert {str(one) for one in operations() if one.is_open} == OPEN_ROUTES
    with_parameters = {str(one) for one in CLOSED if "{" in one.path}
    assert (
        with_parameters <= {str(one) for one in OF_A_TASK} | ADMIN_ROUTES | OF_A_SCHEDULE | OF_AN_APPROVAL | PER_CALLER
    )
    assert len(OF_A_TASK) >= 6
    assert len(LISTS) >= 5


@pytest.mark.parametrize("operation", CLOSED, ids=str)
async def test_without_credentials_there_is_nothing(api: Api, operation: Operation) -> None:
    answer = await call(api.nobody, operation)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("operation", OF_A_TASK, ids=str)
async def test_a_task_of_another_user_is_like_one_that_does_not_exist(
    api: Api, adas: str, operation: Operation
) -> None:
    before = await everything(api.engine.redis)
    missing = f"{'0' * len(adas)}"
    of_another, of_nobody = (
        await call(api.bob, operation, task_id=adas),
        await call(api.bob, operation, task_id=missing),
    )
    assert of_another.status_code == of_nobody.status_code == 404
    assert anonymous(of_another, adas) == anonymous(of_nobody, missing)
    assert await everything(api.engine.redis) == before
    # The route would have found it; each its own, since some take away what they find.
    for client, task_id in ((api.ada, adas), (api.root, await broken_of_ada(api))):
        if not operation.is_stream:
            assert (await call(client, operation, task_id=task_id)).status_code != 404


def anonymous(answer: httpx.Response, task_id: str) -> tuple[str, list[str]]:
    body, correlation_id = answer.text, answer.headers["x-correlation-id"]
    headers = sorted(answer.headers.keys())
    return body.replace(task_id, "<id>").replace(correlation_id, "<correlation>"), headers


@pytest.mark.parametrize("operation", LISTS, ids=str)
async def test_lists_hold_nothing_of_another_user(api: Api, adas: str, operation: Operation) -> None:
    answer = await call(api.bob, operation)
    assert adas not in answer.text
    assert "ada" not in answer.text


@pytest.mark.parametrize("path", ["/api/tasks", "/api/dead-letters"])
@pytest.mark.parametrize("query", ["", "?task=test.broken", "?queue=default"])
async def test_a_list_holds_the_callers_own(api: Api, adas: str, path: str, query: str) -> None:
    for client, count in ((api.ada, 1), (api.root, 1), (api.bob, 0)):
        assert len((await client.get(path + query)).json()["items"]) == count


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("tasks", "project_id=apollo"),
        ("tasks", "tag=mine"),
        ("tasks", "status=FAILURE"),
        ("dead-letters", "project_id=apollo"),
        ("dead-letters", "tag=mine"),
        ("dead-letters", "error_type=PermanentError"),
        ("dead-letters", "failed_after=2001-01-01T00:00:00Z"),
    ],
)
async def test_a_filter_finds_nothing_of_another_user(api: Api, adas: str, path: str, query: str) -> None:
    assert (await api.ada.get(f"/api/{path}?{query}")).json()["items"] != []
    assert (await api.bob.get(f"/api/{path}?{query}")).json()["items"] == []


@pytest.mark.parametrize("action", ["replay", "discard"])
async def test_in_bulk_nobody_reaches_what_is_not_theirs(api: Api, adas: str, action: str) -> None:
    before = await everything(api.engine.redis)
    answer = await api.bob.post(f"/api/dead-letters/{action}", json={"all": True})
    assert (answer.status_code, adas in answer.text) == (200, False)
    assert await everything(api.engine.redis) == before
    assert (await api.root.post(f"/api/dead-letters/{action}", json={"all": True})).status_code == 200
    assert await everything(api.engine.redis) != before


async def test_a_cursor_of_another_users_list_leads_into_the_own_one(api: Api, adas: str) -> None:
    await api.ada.post("/api/tasks", json={"task": "test.broken"})
    cursor = (await api.ada.get("/api/tasks?limit=1")).json()["next_cursor"]
    assert cursor is not None
    assert (await api.bob.get("/api/tasks", params={"cursor": cursor})).json()["items"] == []


@pytest.mark.parametrize("operation", [one for one in CLOSED if str(one) in ADMIN_ROUTES], ids=str)
async def test_operators_routes_need_the_admin_scope(api: Api, operation: Operation) -> None:
    before = await everything(api.engine.redis)
    answer = await call(api.ada, operation)
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:nightshift:problem:forbidden")
    assert await everything(api.engine.redis) == before
    assert (await call(api.root, operation)).status_code in (200, 202)


async def test_a_schedule_is_seen_by_the_owner_of_its_tasks(api: Api) -> None:
    for client, count in ((api.ada, 1), (api.root, 1), (api.bob, 0)):
        assert len((await client.get("/api/schedules")).json()["items"]) == count
    assert (await api.ada.get("/api/schedules/default")).json()["user_id"] == "ada"
    of_another, of_nobody = await api.bob.get("/api/schedules/default"), await api.bob.get("/api/schedules/nothing")
    assert of_another.status_code == of_nobody.status_code == 404
    assert anonymous(of_another, "default") == anonymous(of_nobody, "nothing")

"""Load balancers and scrapers are told the truth, and in time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.registry import task
from app.store.embedded import EmbeddedServer
from tests.api.running import Api, api_on
from tests.support import finished


class Nothing(BaseModel):
    pass


@task("test.nothing", queue="other")
async def nothing(ctx: TaskContext, params: Nothing) -> None:
    return None


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with api_on(redis_url, (nothing,)) as running:
        yield running


async def samples(api: Api, family: str) -> dict[tuple[str, ...], float]:
    answer = await api.nobody.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        tuple(sample.labels.values()): sample.value
        for found in text_string_to_metric_families(answer.text)
        if found.name == family
        for sample in found.samples
    }


async def test_an_empty_service_is_alive_and_ready(api: Api) -> None:
    assert (await api.nobody.get("/healthz")).json() == {"status": "ok"}
    ready = await api.nobody.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "missing": []})


async def test_work_that_nobody_does_makes_the_service_unready(api: Api) -> None:
    await api.ada.post("/api/tasks", json={"task": "test.nothing", "delay_s": 60})
    assert (await api.nobody.get("/readyz")).status_code == 200
    task_id = (await api.ada.post("/api/tasks", json={"task": "test.nothing"})).json()["task_id"]
    answer = await api.nobody.get("/readyz")
    assert (answer.status_code, answer.json()["missing"]) == (503, ["worker:other"])
    assert answer.headers["content-type"] == "application/problem+json"
    assert "worker:other" in answer.json()["detail"]
    await api.root.post("/api/queues/other/pause")
    assert (await api.nobody.get("/readyz")).status_code == 200
    await api.root.post("/api/queues/other/resume")
    async with api.engine.worker():
        await finished(api.engine, task_id)
    assert (await api.nobody.get("/readyz")).status_code == 200


async def test_a_service_that_stops_is_not_ready(api: Api) -> None:
    api.app.state.shutdown.begin()
    answer = await api.nobody.get("/readyz")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert (await api.nobody.get("/healthz")).status_code == 200


async def test_without_redis_the_service_is_alive_and_not_ready(own_server: EmbeddedServer) -> None:
    async with api_on(own_server.url, (nothing,)) as api:
        await api.ada.post("/api/tasks", json={"task": "test.nothing"})
        assert (await samples(api, "nightshift_queue_tasks"))["other", "ready"] == 1
        own_server.stop()
        assert (await api.nobody.get("/healthz")).status_code == 200
        ready = await api.nobody.get("/readyz")
        assert (ready.status_code, ready.json()["missing"]) == (503, ["redis"])
        posted = await api.ada.post("/api/tasks", json={"task": "test.nothing"})
        assert (posted.status_code, posted.json()["type"]) == (503, "urn:nightshift:problem:unavailable")
        assert int(posted.headers["retry-after"]) >= 1
        assert await samples(api, "nightshift_redis_up") == {(): 0}
        assert await samples(api, "nightshift_queue_tasks") == {}
        own_server.start()
        assert await samples(api, "nightshift_redis_up") == {(): 1}
        assert (await samples(api, "nightshift_queue_tasks"))["other", "ready"] == 1


async def test_metrics_tell_what_stands_in_the_queues_now(api: Api) -> None:
    for delay_s in (0, 0, 60):
        await api.ada.post("/api/tasks", json={"task": "test.nothing", "delay_s": delay_s})
    tasks = await samples(api, "nightshift_queue_tasks")
    assert {state: tasks["other", state] for state in ("ready", "delayed", "running")} == {
        "ready": 2,
        "delayed": 1,
        "running": 0,
    }
    assert await samples(api, "nightshift_redis_up") == {(): 1}
    requests = await samples(api, "nightshift_http_request_duration_seconds")
    assert any(labels[:3] == ("POST", "/api/tasks", "202") for labels in requests)

"""The running API keeps what its OpenAPI document promises, whatever it is sent (schemathesis, fixed cases)."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from pydantic import BaseModel
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.engine.approvals import ApprovalRequest, approval_id_of
from app.engine.context import TaskContext
from app.engine.registry import task
from app.errors import PermanentError
from app.store.embedded import EmbeddedServer
from tests.api.running import api_keys, app_on, documented
from tests.support import PATIENCE_S, engine_on

EXAMPLES = 20
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

schema = schemathesis.openapi.from_dict(documented())


class Number(BaseModel):
    n: int = 0


@task("system.echo")
async def echo(ctx: TaskContext, params: Number) -> Number:
    await ctx.progress(1, 2, "half")
    return params


@task("test.broken")
async def broken(ctx: TaskContext, params: Number) -> None:
    raise PermanentError("it is broken")


@task("test.ask")
async def ask(ctx: TaskContext, params: Number) -> None:
    await ctx.approval(ApprovalRequest("Go on?"), edits=Number)


TASKS = (echo, broken, ask)
ASKED = 8
"""Tasks that ask a person."""
POSTS = ({"task": "system.echo"}, {"task": "test.broken"}, {"task": "system.echo", "delay_s": 3_600, "tags": ["a"]})


@dataclass(frozen=True)
class Running:
    """An API on a real socket: its base URL, an admin's key, ids of a task done, one failed and one delayed, and ids of
    approvals that are pending."""

    base_url: str
    headers: dict[str, str]
    task_ids: list[str]
    approval_ids: list[str]


@pytest.fixture(scope="module")
def running(server: EmbeddedServer) -> Iterator[Running]:
    """With a worker, and in a thread of its own: schemathesis is not async."""
    with api_keys() as (keys_file, keys), socket.create_server(("127.0.0.1", 0)) as listening:
        app = app_on(server.url, keys_file, TASKS)
        api = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        thread = threading.Thread(target=lambda: asyncio.run(serve(server.url, api, listening)))
        thread.start()
        base_url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        # As a page: a stream of events has no end.
        headers = {"Authorization": f"Bearer {keys['root']}", "Accept": "application/json"}
        yield Running(base_url, headers, posted(base_url, headers), asked(base_url, headers))
        api.should_exit = True
        thread.join()


async def serve(url: str, api: uvicorn.Server, listening: socket.socket) -> None:
    async with engine_on(url, TASKS) as engine, engine.worker():
        await api.serve([listening])


def posted(base_url: str, headers: dict[str, str]) -> list[str]:
    with httpx.Client(base_url=base_url, headers=headers, timeout=PATIENCE_S) as client:
        paths = [client.post("/api/tasks", json=body).headers["location"] for body in POSTS]
        return [
            client.get(f"{path}?wait={wait}").json()["task_id"] for path, wait in zip(paths, (20, 20, 0), strict=True)
        ]


def asked(base_url: str, headers: dict[str, str]) -> list[str]:
    with httpx.Client(base_url=base_url, headers=headers, timeout=PATIENCE_S) as client:
        ids = [client.post("/api/tasks", json={"task": "test.ask"}).json()["task_id"] for _ in range(ASKED)]
        deadline = time.monotonic() + PATIENCE_S
        while len(client.get("/api/approvals").json()["items"]) < ASKED:
            assert time.monotonic() < deadline
        return [approval_id_of(task_id, 0) for task_id in ids]


def with_real_names(case: Any, running: Running) -> None:
    """Put what exists in the place of some of what was made up; which is a matter of the made-up text alone."""
    made_up = case.path_parameters.get("task_id")
    if made_up is not None and len(str(made_up)) % 4 < len(running.task_ids):
        case.path_parameters["task_id"] = running.task_ids[len(str(made_up)) % 4]
    wanted = case.path_parameters.get("approval_id")
    if wanted is not None and len(str(wanted)) % 2:
        case.path_parameters["approval_id"] = running.approval_ids[len(str(wanted)) % ASKED]
    if isinstance(case.body, dict) and isinstance(case.body.get("task"), str) and len(case.body["task"]) % 2:
        case.body["task"] = echo.name


@schema.parametrize()
@settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
def test_the_api_keeps_its_contract(case: Any, running: Running) -> None:
    with_real_names(case, running)
    # A wait takes as long as it says, and one for a delayed task would.
    case.query.pop("wait", None)
    response = case.call(base_url=running.base_url, headers=running.headers, timeout=PATIENCE_S)
    case.validate_response(response, checks=CHECKS)

"""The whole API on the test's server, with three callers: ada and bob, who are users, and root, who is an admin."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from redis.asyncio import Redis

from app.api.api_keys import create_key
from app.engine.lane import LaneSettings
from app.engine.registry import Catalogue, Task
from app.engine.service import Engine
from app.engine.timetable import Schedule
from app.main import create_app
from tests.support import LANES, settings_for

USERS = {"ada": (), "bob": (), "root": ("admin",)}


@contextmanager
def api_keys() -> Iterator[tuple[Path, dict[str, str]]]:
    """A key file, and the key of each user."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "api-keys.json"
        yield path, {user: create_key(path, user, scopes)[0] for user, scopes in USERS.items()}


@dataclass(frozen=True)
class Api:
    """A running API: its application and engine, and a client per caller (`nobody` sends no credentials)."""

    app: FastAPI
    engine: Engine
    ada: httpx.AsyncClient
    bob: httpx.AsyncClient
    root: httpx.AsyncClient
    nobody: httpx.AsyncClient


def app_on(
    url: str,
    keys_file: Path,
    tasks: Iterable[Task[Any, Any]] = (),
    *,
    lanes: Mapping[str, LaneSettings] = LANES,
    schedules: Iterable[Schedule] = (),
    **overrides: Any,
) -> FastAPI:
    """The application with the given tasks on the server at `url`."""
    settings = settings_for(url, auth="keys", api_keys_file=keys_file, **overrides)
    return create_app(settings, catalogue=Catalogue(tasks, lanes), lanes=lanes, schedules=schedules)


@asynccontextmanager
async def api_on(url: str, tasks: Iterable[Task[Any, Any]] = (), **options: Any) -> AsyncIterator[Api]:
    """The API with the given tasks on the server at `url`, called in process. Options as `app_on` takes them."""
    with ExitStack() as stack:
        keys_file, keys = stack.enter_context(api_keys())
        app = app_on(url, keys_file, tasks, **options)
        async with app.router.lifespan_context(app):
            clients = {user: _client(app, key) for user, key in keys.items()}
            yield Api(app=app, engine=app.state.engine, nobody=_client(app), **clients)
            for client in clients.values():
                await client.aclose()


def _client(app: FastAPI, key: str | None = None) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers, timeout=60)


async def everything(redis: Redis) -> dict[bytes, bytes]:
    """All that Redis holds, to be compared before and after."""
    return {key: await redis.dump(key) async for key in redis.scan_iter(count=1_000)}


@dataclass(frozen=True)
class Operation:
    """One method of one path, as OpenAPI describes it."""

    method: str
    path: str
    spec: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.method.upper()} {self.path}"

    @property
    def is_open(self) -> bool:
        """Whether it asks for no credentials."""
        return not self.spec.get("security")

    @property
    def is_stream(self) -> bool:
        """Whether it may answer with events that do not end."""
        return any("text/event-stream" in answer.get("content", {}) for answer in self.spec["responses"].values())

    @property
    def body(self) -> Any:
        """A body that the route takes, from its examples; None: it takes none."""
        content = self.spec.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None:
            return None
        references = [
            part["$ref"] for part in (content["schema"], *content["schema"].get("anyOf", ())) if "$ref" in part
        ]
        return documented()["components"]["schemas"][references[0].rpartition("/")[2]]["examples"][0]


@cache
def documented() -> dict[str, Any]:
    """The OpenAPI document of the API."""
    return app_on("redis://127.0.0.1:1", Path("no-such-file")).openapi()


def operations() -> list[Operation]:
    """Every operation that OpenAPI describes."""
    return [
        Operation(method, path, spec)
        for path, methods in documented()["paths"].items()
        for method, spec in methods.items()
    ]

"""The whole API on the test's server, with three callers: ada and bob, who are users, and root, who is an admin."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from app.api.api_keys import create_key
from app.engine.lane import LaneSettings
from app.engine.registry import Catalogue, Task
from app.engine.service import Engine
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
    **overrides: Any,
) -> FastAPI:
    """The application with the given tasks on the server at `url`."""
    settings = settings_for(url, auth="keys", api_keys_file=keys_file, **overrides)
    return create_app(settings, catalogue=Catalogue(tasks, lanes), lanes=lanes)


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

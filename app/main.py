"""The API process: `uvicorn app.main:app`, or `create_app()` for whoever starts uvicorn themselves."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any

from fastapi import FastAPI

from app.api import (
    approvals,
    dashboard,
    dead_letters,
    flows,
    health,
    jobs,
    queues,
    quotas,
    schedules,
    streams,
    task_types,
    tasks,
    tickets,
    trees,
    websocket,
    workers,
)
from app.api.approval_views import ApprovalItem, ApprovalView
from app.api.auth import make_authenticator
from app.api.dead_letter_views import BulkDiscardView, BulkReplayView, DeadLetterItem, DeadLetterView
from app.api.event_types import events_description
from app.api.examples import describe_examples
from app.api.jobs import JobView
from app.api.lifecycle import Shutdown
from app.api.middleware import install_middleware
from app.api.openapi import describe_problems
from app.api.problems import install_problem_handlers
from app.api.quotas import QuotaView
from app.api.task_views import TaskView
from app.api.trees import TreeView
from app.catalogue import LANES, SCHEDULES
from app.catalogue import catalogue as all_tasks
from app.engine.heartbeat import package_version
from app.engine.lane import LaneSettings
from app.engine.registry import Catalogue
from app.engine.service import open_engine
from app.engine.timetable import Schedule, Timetable
from app.errors import SettingsError
from app.settings import Settings, load_settings
from app.telemetry import configure_logging, secret_values

ROUTERS = (
    tasks.router,
    flows.router,
    trees.router,
    task_types.router,
    approvals.router,
    dead_letters.router,
    queues.router,
    quotas.router,
    schedules.router,
    workers.router,
    streams.router,
    tickets.router,
    websocket.router,
    jobs.router,
    health.router,
    dashboard.router,
)
WITH_NULLS = (
    ApprovalItem,
    ApprovalView,
    TaskView,
    DeadLetterItem,
    DeadLetterView,
    BulkReplayView,
    BulkDiscardView,
    JobView,
    QuotaView,
    TreeView,
)
"""Models whose examples show nulls."""
DESCRIPTION = """Post tasks, and follow them while workers run them.

Errors are problem documents (RFC 9457). Times are RFC 3339 in UTC. Every list is `{items, next_cursor}`; give
`next_cursor` as `cursor` for the next page, until it is null. A task of another user does not exist (404). A request
may carry `X-Correlation-ID`; its answer, its tasks and the log repeat it. Bodies hold up to 1 MiB.
"""
TAGS = [
    {"name": "tasks", "description": "Post, read, await, cancel and repeat tasks."},
    {"name": "approvals", "description": "What tasks ask people: decide on it."},
    {"name": "events", "description": events_description()},
    {"name": "operation", "description": "Queues, schedules, workers and what failed for good."},
    {"name": "health", "description": "Without credentials, for load balancers and scrapers."},
]


def create_app(
    settings: Settings | None = None,
    *,
    catalogue: Catalogue | None = None,
    lanes: Mapping[str, LaneSettings] = LANES,
    schedules: Iterable[Schedule] | None = None,
) -> FastAPI:
    """The application. It connects to Redis for as long as its lifespan lasts.

    `settings` are those of the environment by default, `catalogue`, `lanes` and `schedules` those of the service;
    another catalogue has no schedules but those given. Its state, for whoever serves a request: `settings`, `engine`,
    `authenticator`, `shutdown`. Raises `SettingsError` for settings or schedules it cannot run with.
    """
    settings = settings or load_settings()
    tasks_of_app = catalogue or all_tasks()
    if schedules is None:
        schedules = SCHEDULES if catalogue is None else ()
    timetable = Timetable(schedules, tasks_of_app, settings.zone)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opened = open_engine(settings, tasks_of_app, lanes, timetable)
        async with opened as engine, engine.listening(), engine.expiring():
            app.state.engine = engine
            try:
                with app.state.shutdown.on_signals():
                    yield
            finally:
                # For servers that end the lifespan without a signal.
                app.state.shutdown.begin()
                await app.state.authenticator.aclose()

    app = FastAPI(
        title="Nightshift",
        version=package_version(),
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.authenticator = make_authenticator(settings)
    app.state.shutdown = Shutdown()
    for router in ROUTERS:
        app.include_router(router)
    install_problem_handlers(app)
    install_middleware(app, settings)
    describe_problems(app)
    describe_examples(app, WITH_NULLS)
    return app


@lru_cache(maxsize=1)
def _process_app() -> FastAPI:
    """The one of this process, with its log. Wrong settings end the process: one line each, exit code 2."""
    try:
        settings = load_settings()
        configure_logging(settings.log_level, settings.log_format, secret_values(settings))
        return create_app(settings)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None


def __getattr__(name: str) -> Any:
    # `app` is made when a server asks for it: importing this module, as tests and commands do, reads no settings.
    if name == "app":
        return _process_app()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

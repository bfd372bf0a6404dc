"""The tasks of the service on a test's server: an engine, a worker with its resources, and tasks run to their end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from app.catalogue import LANES, catalogue
from app.domains.resources import open_resources
from app.engine.events import Event
from app.engine.job import TaskRecord
from app.engine.registry import Task
from app.engine.service import Engine
from app.engine.submissions import Submission
from tests.clients.llm_support import UNSET
from tests.support import engine_on, finished


@asynccontextmanager
async def service_on(
    url: str, data_dir: Path, *, tasks: Iterable[Task[Any, Any]] | None = None, **overrides: Any
) -> AsyncIterator[Engine]:
    """An engine whose worker runs all tasks of the service, or the given ones."""
    settings = {"data_dir": data_dir, "git_allow_file_urls": True, **UNSET, **overrides}
    async with (
        engine_on(url, tasks or catalogue(), lanes=LANES, **settings) as engine,
        open_resources(engine.settings) as resources,
        engine.worker(resources),
    ):
        yield engine


async def post(engine: Engine, task: str, **params: Any) -> str:
    """Enqueue a task; its id."""
    return (await engine.tasks.enqueue(Submission(task, params), user_id="ada")).task_id


async def run(engine: Engine, task: str, **params: Any) -> TaskRecord:
    """Enqueue a task and wait until it is finished."""
    return await finished(engine, await post(engine, task, **params))


async def past_events(engine: Engine, task_id: str) -> list[Event]:
    """The events of a task so far."""
    channel = f"task:{task_id}"
    return await engine.events.read(channel, channel)

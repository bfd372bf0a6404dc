"""Our lanes inside the stock worker that `arq worker.WorkerSettings` builds.

arq's worker owns the process: signals, cron entries, the health key. It polls a queue of its own (`arq:host`) through
which only cron entries pass. Its `on_startup` opens the engine and starts the lanes on the same loop, its `on_shutdown`
drains them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import click
from arq.connections import RedisSettings
from loguru import logger
from prometheus_client import start_http_server

from app.domains.resources import open_resources, workspaces
from app.engine.lane import LaneSettings
from app.engine.registry import Catalogue
from app.engine.service import Engine, open_engine
from app.engine.timetable import Schedule, Timetable
from app.settings import Settings
from app.store.connection import arq_redis_settings, ride_out_restarts
from app.store.embedded import attach_or_start
from app.telemetry import take_over_logging
from app.telemetry.metrics import REGISTRY

HEALTH_CHECK_INTERVAL_S = 5
"""How often arq's worker writes the key that `arq --check` looks for."""


def host_redis_settings(settings: Settings) -> RedisSettings:
    """Where arq's worker finds Redis. Without `NIGHTSHIFT_REDIS_URL` this starts the embedded server, or finds it
    running."""
    if settings.redis_url is not None:
        return arq_redis_settings(settings.redis_url.get_secret_value())
    return arq_redis_settings(attach_or_start(settings.data_dir).url)


class Host:
    """The hooks of the stock worker, for one catalogue of tasks, its lanes and its schedules.

    Raises `SettingsError` for a schedule that cannot be used.
    """

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        lanes: Mapping[str, LaneSettings],
        schedules: Iterable[Schedule] = (),
    ) -> None:
        self.timetable = Timetable(schedules, catalogue, settings.zone)
        self._settings = settings
        self._catalogue = catalogue
        self._lanes = lanes
        self._stack = AsyncExitStack()

    async def on_startup(self, ctx: dict[Any, Any]) -> None:
        """Open the engine and start the lanes; with `arq --burst`, work until the queues are empty."""
        take_over_logging()
        self._serve_metrics()
        engine = await self._stack.enter_async_context(
            open_engine(self._settings, self._catalogue, self._lanes, self.timetable)
        )
        await ride_out_restarts(ctx["redis"], engine.url)
        resources = await self._stack.enter_async_context(open_resources(self._settings))
        worker = await self._stack.enter_async_context(engine.worker(resources))
        ctx["engine"] = engine
        if _is_burst():
            await worker.run_until_empty()
        else:
            await self._stack.enter_async_context(engine.scheduling())

    def _serve_metrics(self) -> None:
        port = self._settings.metrics_port
        if port is not None:
            server, thread = start_http_server(port, self._settings.host, REGISTRY)
            self._stack.callback(thread.join)
            self._stack.callback(server.server_close)
            self._stack.callback(server.shutdown)
            logger.info("metrics of this worker are at {}:{}", self._settings.host, port)

    async def on_shutdown(self, ctx: dict[Any, Any]) -> None:
        """Drain the lanes and leave Redis."""
        ctx.pop("engine", None)
        await self._stack.aclose()


async def retention(ctx: dict[Any, Any]) -> None:
    """Forget finished tasks and dead letters whose time is over (a cron entry, every minute)."""
    engine: Engine = ctx["engine"]
    tasks, dead_letters = await engine.sweep()
    if tasks or dead_letters:
        logger.info("retention forgot {} tasks and {} dead letters", tasks, dead_letters)


async def trimming(ctx: dict[Any, Any]) -> None:
    """Remove workspaces on this host that are older than a result is kept (a cron entry of every worker, hourly)."""
    engine: Engine = ctx["engine"]
    removed = await workspaces(engine.settings).remove_older_than(engine.settings.result_ttl_s)
    if removed:
        logger.info("trimming removed {} workspaces", removed)


def _is_burst() -> bool:
    # arq does not tell its hooks; its command line does.
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.params.get("burst"))

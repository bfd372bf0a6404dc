"""The engine as one object: what the API, the CLI and the worker hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis

from app.engine.approval_desk import ApprovalDesk
from app.engine.dead_letters import DeadLetters
from app.engine.events import EventLog
from app.engine.heartbeat import alive_workers
from app.engine.hub import EventHub
from app.engine.inbox import Inbox
from app.engine.lane import LaneSettings
from app.engine.lending import Resources
from app.engine.limits import Quotas
from app.engine.queue import TaskQueue
from app.engine.queues import Queues
from app.engine.registry import Catalogue
from app.engine.schedules import Schedules
from app.engine.supervise import supervise
from app.engine.tickets import Tickets
from app.engine.timetable import Timetable
from app.engine.trees import Trees
from app.engine.waiter import WAIT_S
from app.engine.worker import Worker
from app.errors import SettingsError
from app.settings import Settings
from app.store.approval_scripts import ApprovalScripts
from app.store.connection import COMMAND_TIMEOUT_S, connect
from app.store.embedded import shared_server
from app.store.schedule_scripts import ScheduleScripts
from app.store.scripts import Scripts

SWEEP_LIMIT = 500
STOCK_BOUND = 2_000
"""Tasks looked at in each sweep for ends that stock workers wrote: some 8 ms of the server's time."""


class Engine:
    """Everything that can be done with tasks, bound to one Redis."""

    def __init__(
        self,
        url: str,
        redis: Redis,
        settings: Settings,
        catalogue: Catalogue,
        lanes: Mapping[str, LaneSettings],
        *,
        timetable: Timetable | None = None,
    ) -> None:
        self.url = url
        self.redis = redis
        self.settings = settings
        self.catalogue = catalogue
        self.lanes = lanes
        self.scripts = Scripts(redis, idempotency_ttl_s=settings.idempotency_ttl_s)
        self.tasks = TaskQueue(
            self.scripts,
            catalogue,
            max_depth=settings.queue_max_depth,
            result_ttl_s=settings.result_ttl_s,
            weights=dict(settings.user_weights),
        )
        self.events = EventLog(self.scripts)
        self.hub = EventHub(redis, self.events)
        self.queues = Queues(self.scripts, lanes)
        self.dead_letters = DeadLetters(self.scripts, self.tasks)
        self.inbox = Inbox(self.scripts)
        self.approvals = ApprovalDesk(ApprovalScripts(self.scripts))
        self.trees = Trees(self.scripts, self.tasks)
        self.schedules = Schedules(
            ScheduleScripts(self.scripts),
            self.tasks,
            timetable or Timetable((), catalogue, settings.zone),
            max_depth=settings.queue_max_depth,
        )
        self.tickets = Tickets(redis)
        self.quotas = Quotas(self.scripts, settings.quota_limits)

    async def workers(self) -> list[dict[str, Any]]:
        """The heartbeats of the workers that live."""
        return await alive_workers(self.redis)

    async def sweep(self) -> tuple[int, int]:
        """Forget tasks and dead letters whose time is over, and see what stock workers finished. Returns how many of
        the first two."""
        await self.tasks.settle_stock_ends(STOCK_BOUND)
        dead_ttl_ms = int(self.settings.dead_letter_ttl_s * 1000)
        tasks = dead = 0
        while True:
            swept_tasks, swept_dead = await self.scripts.sweep(SWEEP_LIMIT, dead_ttl_ms)
            tasks, dead = tasks + swept_tasks, dead + swept_dead
            if max(swept_tasks, swept_dead) < SWEEP_LIMIT:
                return tasks, dead

    @asynccontextmanager
    async def worker(self, resources: Resources | None = None) -> AsyncIterator[Worker]:
        """A worker of the lanes that the settings choose, whose tasks may use `resources`.

        It runs inside the block and drains at its end.
        """
        waiting = connect(self.url, command_timeout_s=WAIT_S + COMMAND_TIMEOUT_S, max_connections=1)
        settings = self.settings
        worker = Worker(
            url=self.url,
            scripts=self.scripts,
            waiting=waiting,
            queue=self.tasks,
            lanes=chosen_lanes(self.lanes, settings.queues),
            concurrency=settings.concurrency,
            lease_s=settings.lease_s,
            result_ttl_s=settings.result_ttl_s,
            unknown_task_ttl_s=settings.unknown_task_ttl_s,
            cpu_threads=settings.cpu_threads,
            resources=resources or {},
            quota_limits=settings.quota_limits,
        )
        try:
            await worker.run()
            try:
                yield worker
            finally:
                await worker.drain(settings.shutdown_grace_s)
        finally:
            await waiting.aclose()

    @asynccontextmanager
    async def scheduling(self) -> AsyncIterator[None]:
        """Fire what is due of the schedules inside the block, as every worker does."""
        if not len(self.schedules.timetable):
            yield
            return
        task = asyncio.create_task(supervise("schedules", self.schedules.watch))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    @asynccontextmanager
    async def expiring(self) -> AsyncIterator[None]:
        """End approvals whose time is over inside the block, also where no worker lives (they do so themselves)."""
        task = asyncio.create_task(supervise("approvals", self.approvals.watch))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[EventHub]:
        """Keep the event subscription going inside the block."""
        task = asyncio.create_task(supervise("events", self.hub.run))
        try:
            yield self.hub
        finally:
            task.cancel()
            await asyncio.wait({task})


def chosen_lanes(
    lanes: Mapping[str, LaneSettings], chosen: tuple[tuple[str, int | None], ...]
) -> dict[str, LaneSettings]:
    """The lanes that `NIGHTSHIFT_QUEUES` names, with its concurrencies; all where it names none.

    Raises `SettingsError` for a queue that has no lane.
    """
    if not chosen:
        return dict(lanes)
    picked = {}
    for name, concurrency in chosen:
        if name not in lanes:
            raise SettingsError(f"NIGHTSHIFT_QUEUES names {name!r}: expected one of {', '.join(sorted(lanes))}")
        lane = lanes[name]
        picked[name] = LaneSettings(concurrency or lane.concurrency, lane.prefetch)
    return picked


@asynccontextmanager
async def open_engine(
    settings: Settings,
    catalogue: Catalogue,
    lanes: Mapping[str, LaneSettings],
    timetable: Timetable | None = None,
) -> AsyncIterator[Engine]:
    """Connect to Redis, or to the embedded server where none is configured, for the length of the block.

    Without a timetable there are no schedules.
    """
    async with _url(settings) as url:
        redis = connect(url)
        try:
            yield Engine(url, redis, settings, catalogue, lanes, timetable=timetable)
        finally:
            await redis.aclose()


@asynccontextmanager
async def _url(settings: Settings) -> AsyncIterator[str]:
    if settings.redis_url is not None:
        yield settings.redis_url.get_secret_value()
    else:
        async with shared_server(settings.data_dir) as url:
            yield url

"""A worker: lanes, one claim loop for all of them, a waiter, a heartbeat, and an orderly end.

- The *claim loop* asks for work whenever a lane with room has reason to expect some, and for all lanes at least once a
  second and whenever the next known task comes due. One script call serves all lanes.
- The *waiter* (`waiter.py`) holds the one blocking connection of the process. Whoever enqueues a task for a queue on
  which this worker sleeps writes the queue's name there; who cancels a running task, `!` and its id; who gives back
  quota for which a call waits here, `?` and the id of the call.
- The *heartbeat* writes the worker's record once a second and sees the abort marks of arq's own clients.
  It also tells those who wait for tasks that have ended, where they were too many for the call that ended those.

Each runs under `supervise`: an error is logged and counted, and the service begins again after a short pause. Draining:
claim nothing new, hand back what has not begun, give what runs its grace, hand back the rest; none of it costs a task a
try.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from loguru import logger
from redis.asyncio import Redis

from app.engine.attempt import Claim
from app.engine.commit import Committer
from app.engine.heartbeat import Pulse
from app.engine.job import text_of
from app.engine.lane import Lane, LaneSettings, Workshop
from app.engine.leases import Lease, LeaseKeeper
from app.engine.lending import Resources
from app.engine.limits import Quotas
from app.engine.queue import TaskQueue
from app.engine.services import WorkerServices
from app.engine.supervise import supervise
from app.engine.waiter import Waiter
from app.settings import QuotaLimits
from app.store.connection import CONNECTION_ERRORS, connect_sync
from app.store.scripts import CLAIM_FIELDS, Scripts
from app.telemetry import metrics

SLOW_POLL_S = 1.0
"""The longest that a task can wait whose wake-up was lost."""
HEARTBEAT_S = 1.0
HEARTBEAT_TTL_S = 10.0
STUBBORN_S = 5.0
"""How long a worker that drains waits for tasks that were told to stop."""
LAST_WRITES_S = 5.0
"""How long a worker that drains waits for Redis to take the last ends."""
LAST_CLAIM_S = 12.0
"""How long a worker that drains waits for the reply of its last claim; longer than a command may take."""


class Worker:
    """Runs lanes until drained. `lanes` maps queues to their settings; `concurrency` bounds the sum of what runs."""

    def __init__(
        self,
        *,
        url: str,
        scripts: Scripts,
        waiting: Redis,
        queue: TaskQueue,
        lanes: Mapping[str, LaneSettings],
        concurrency: int | None,
        lease_s: float,
        result_ttl_s: float,
        unknown_task_ttl_s: float,
        cpu_threads: int,
        resources: Resources,
        quota_limits: Mapping[str, QuotaLimits],
    ) -> None:
        self.worker_id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._executor = ThreadPoolExecutor(cpu_threads, thread_name_prefix="cpu")
        self._scripts = scripts
        self._queue = queue
        self._concurrency = concurrency
        self._lease_ms = int(lease_s * 1000)
        self._keeper = LeaseKeeper(
            lambda: connect_sync(url), lease_s=lease_s, on_lost=self._on_lost, on_cancelled=self._on_cancelled
        )
        self._committer = Committer(scripts)
        self.quotas = Quotas(scripts, quota_limits, worker_id=self.worker_id, lease_s=lease_s)
        workshop = Workshop(
            catalogue=queue.catalogue,
            committer=self._committer,
            keeper=self._keeper,
            services=WorkerServices(
                scripts, queue, self._committer, executor=self._executor, resources=resources, quotas=self.quotas
            ),
            look_again=self._arm,
            result_ttl_ms=int(result_ttl_s * 1000),
            unknown_task_ttl_s=unknown_task_ttl_s,
        )
        self.lanes = {name: Lane(name, lane, workshop, self._on_slot_free) for name, lane in lanes.items()}
        self._waiter = Waiter(
            waiting, scripts, self.worker_id, self._lease_ms, room=self._room_when_woken, on_woken=self._on_woken
        )
        self._news = asyncio.Event()
        self._look_at_all = True
        self._timer: asyncio.TimerHandle | None = None
        self._draining = False
        self._services: list[asyncio.Task[None]] = []
        self._turn = 0

    # Life.

    async def run(self) -> None:
        """Begin to work; returns at once."""
        self._keeper.start()
        for name, service in (
            ("claims", self._claims),
            ("waiter", self._waiter.run),
            ("heartbeat", self._beat),
            ("quotas", self.quotas.run),
        ):
            self._services.append(asyncio.create_task(supervise(name, service), name=name))
        logger.info("worker {} runs {}", self.worker_id, self._describe())

    async def run_until_empty(self) -> None:
        """Work until the queues are empty and nothing runs (arq's burst mode).

        Paused queues do not count, nor do tasks that wait for something to come about.
        """
        while True:
            stats = await self._scripts.queue_stats(list(self.lanes))
            left = sum(row[1] + row[2] + row[3] for row in stats if not row[8])
            if not left and all(lane.idle for lane in self.lanes.values()):
                return
            await asyncio.sleep(0.05)

    async def drain(self, grace_s: float) -> None:
        """Stop: claim nothing new, wait up to `grace_s` for what runs, hand back the rest, and write all ends."""
        self._draining = True
        logger.info("worker {} drains: {} running, grace {:.0f} s", self.worker_id, self._running(), grace_s)
        await self._finish_claiming()
        # Before anything is handed back: what wakes a worker must not wake this one.
        await _courtesy(self._scripts.stop_sleeping(self.worker_id, list(self.lanes)))
        for lane in self.lanes.values():
            lane.hand_back_ahead()
        joined = asyncio.gather(*(lane.join() for lane in self.lanes.values()))
        try:
            await asyncio.wait_for(asyncio.shield(joined), grace_s)
        except TimeoutError:
            for lane in self.lanes.values():
                lane.hand_back_running()
            await asyncio.wait({joined}, timeout=STUBBORN_S)
        await self._write_last_ends()
        await self._leave()

    async def _write_last_ends(self) -> None:
        """Hand back what does not stop, and wait until all ends are written, or Redis has been away for too long."""
        try:
            async with asyncio.timeout(LAST_WRITES_S):
                for lane in self.lanes.values():
                    await lane.write_off()
                await self._committer.drain()
        except TimeoutError:
            held = sum(lane.held for lane in self.lanes.values())
            logger.error("Redis is away: {} tasks were not handed back; they run again when their leases end", held)

    async def _finish_claiming(self) -> None:
        # Not cancelled: a claim that is under way has taken tasks by the time its reply comes. They are handed back
        # with the rest; without the reply they would stand there until their lease ends, and lose a try.
        self._news.set()
        claims = {service for service in self._services if service.get_name() == "claims"}
        if claims:
            await asyncio.wait(claims, timeout=LAST_CLAIM_S)
        await self._stop_service("claims")
        # The same for the claim that was sent ahead.
        await _courtesy(self._waiter.turn())

    async def _leave(self) -> None:
        await self.quotas.close()
        for name in ("waiter", "heartbeat", "quotas"):
            await self._stop_service(name)
        await asyncio.to_thread(self._keeper.stop)
        self._executor.shutdown(wait=False, cancel_futures=True)
        await _courtesy(self._scripts.leave(self.worker_id))
        logger.info("worker {} has stopped", self.worker_id)

    async def _stop_service(self, name: str) -> None:
        for service in self._services:
            if service.get_name() == name:
                service.cancel()
                await asyncio.wait({service})

    # Claiming.

    async def _claims(self) -> None:
        self._tick()
        while not self._draining:
            await self._news.wait()
            self._news.clear()
            wants = self._wants()
            if wants:
                await self._claim(wants)

    def _wants(self) -> list[tuple[str, int]]:
        """Which lanes to ask for, beginning with another one each time, so that a bound on the process is shared
        fairly."""
        if self._look_at_all:
            self._arm(SLOW_POLL_S)
        lanes = [lane for lane in self.lanes.values() if self._look_at_all or lane.backlog]
        self._look_at_all = False
        self._turn += 1
        shift = self._turn % len(lanes) if lanes else 0
        wants = ((lane.queue, lane.want()) for lane in lanes[shift:] + lanes[:shift])
        return [(queue, want) for queue, want in wants if want > 0] if self._budget() > 0 else []

    def _budget(self) -> int:
        if self._concurrency is None:
            return 1_000_000
        return self._concurrency - sum(lane.held for lane in self.lanes.values())

    async def _claim(self, wants: list[tuple[str, int]]) -> None:
        for queue, _ in wants:
            # Before the call, not after it: a wake-up that comes while it is under way must stand.
            self.lanes[queue].backlog = False
        now_ms, soonest_ms, rows, left = await self._scripts.claim(
            self.worker_id, self._lease_ms, self._budget(), wants
        )
        counts = Counter(self._take(rows, now_ms))
        for queue, _ in wants:
            metrics.CLAIM_SIZE.labels(queue).observe(counts[queue])
        for name in left:
            self.lanes[name.decode()].backlog = True
        if any(lane.backlog and lane.want() > 0 for lane in self.lanes.values()):
            self._news.set()
        if soonest_ms >= 0:
            self._arm((soonest_ms - now_ms) / 1000)

    def _take(self, rows: list[list[Any]], now_ms: int) -> list[str]:
        """Begin what was claimed; the queue of each."""
        claims = [_claim_of(row, now_ms) for row in rows]
        for claim in claims:
            _observe_wait(claim)
            self.lanes[claim.queue].take(claim)
        return [claim.queue for claim in claims]

    def _arm(self, delay_s: float) -> None:
        """Look at all lanes in `delay_s` seconds, or earlier if that was planned."""
        loop = asyncio.get_running_loop()
        when = loop.time() + min(max(delay_s, 0.001), SLOW_POLL_S)
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = loop.call_at(when, self._tick)

    def _tick(self) -> None:
        # A spent timer must not pass for one that is still to come: the loop's clock may stand a rounding error before
        # the time that it was set to.
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._look_at_all = True
        self._news.set()

    def _on_slot_free(self) -> None:
        if any(lane.backlog for lane in self.lanes.values()):
            self._news.set()

    # Being told.

    def _room_when_woken(self) -> int:
        """How many tasks may be claimed at once when this worker is woken.

        Where the process is bounded, lanes share the room and none can be sure of it: then it looks itself.
        """
        return 0 if self._draining or self._concurrency is not None else len(self.lanes)

    def _on_woken(self, now_ms: int, rows: list[list[Any]], messages: list[str]) -> None:
        self._take(rows, now_ms)
        for message in messages:
            if message.startswith("!"):
                for lane in self.lanes.values():
                    lane.cancel(message[1:])
            elif message.startswith("?"):
                self.quotas.wake(message[1:])
            elif message in self.lanes:
                # There may be more, and the worker has lost its place among the sleepers.
                self.lanes[message].backlog = True
                self._news.set()

    def _on_lost(self, lease: Lease) -> None:
        self.lanes[lease.queue].lose(lease.task_id)

    def _on_cancelled(self, lease: Lease) -> None:
        self.lanes[lease.queue].cancel(lease.task_id)

    # Heartbeat.

    async def _beat(self) -> None:
        pulse = Pulse(self.worker_id)
        while True:
            record = pulse.record(
                lanes={
                    name: {"concurrency": lane.settings.concurrency, "running": lane.running}
                    for name, lane in self.lanes.items()
                },
                running=self._running(),
                capacity=self._capacity(),
                loop_lag_s=self._keeper.loop_lag_s,
            )
            aborted = await self._scripts.heartbeat(self.worker_id, record, int(HEARTBEAT_TTL_S * 1000))
            if aborted:
                await self._queue.abort([task_id.decode() for task_id in aborted])
            while await self._scripts.tell_waiters():
                pass
            await asyncio.sleep(HEARTBEAT_S)

    def _running(self) -> int:
        return sum(lane.running for lane in self.lanes.values())

    def _capacity(self) -> int:
        total = sum(lane.settings.concurrency for lane in self.lanes.values())
        return min(total, self._concurrency or total)

    def _describe(self) -> str:
        return ", ".join(f"{name}:{lane.settings.concurrency}" for name, lane in self.lanes.items())


async def _courtesy(call: Awaitable[None]) -> None:
    """What makes things quicker for others, and sorts itself out where Redis is away."""
    try:
        await call
    except CONNECTION_ERRORS as error:
        logger.warning("leaving without a word to Redis: {}", error)


def _claim_of(row: list[Any], now_ms: int) -> Claim:
    task_id, queue, payload, token, attempt, lost, values, flat = row
    fields = {name: text_of(value) for name, value in zip(CLAIM_FIELDS, values, strict=True) if value is not None}
    steps = None if flat is None else {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
    return Claim(task_id.decode(), queue.decode(), payload, token, attempt, bool(lost), now_ms, fields, steps)


def _observe_wait(claim: Claim) -> None:
    due_ms = int(claim.fields.get("due_at") or claim.fields["enqueued_at"])
    metrics.QUEUE_WAIT_S.labels(claim.queue).observe(max(0, claim.started_ms - due_ms) / 1000)

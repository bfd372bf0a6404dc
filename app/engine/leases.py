"""Leases: who may write to a task, and how a dead worker is noticed.

A claim gives an attempt a lease of `lease_s` and a fencing token, a number that grows with every claim of the task.
Each script that writes for an attempt compares the token; a stale one changes nothing. `LeaseKeeper` renews all leases
of a process every third of a lease, from a thread with a connection of its own, so that a task that blocks the loop for
longer than its lease keeps it.

What happens at each failure:

- the process dies: renewals stop, the score of its tasks comes due, another worker claims them within `lease_s`;
- Redis is away: renewals fail and are tried again; leases may lapse, and then the first renewal after it says so
  (`lost`);
- the loop is wedged for `WEDGED_S`, or an attempt is `OVERDUE_S` past its hard limit and does not end: a wedged worker
  is a dead one. The keeper stops renewing and ends the process, so that its tasks run elsewhere.

Reports go to the loop through `call_soon_threadsafe`; the keeper never touches an attempt itself.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loguru import logger
from redis import Redis as SyncRedis
from redis.exceptions import RedisError

from app.store.scripts import lua_source
from app.telemetry import metrics

WEDGED_S = 60.0
OVERDUE_S = 10.0
"""What a task gets to end after its hard limit stopped it."""
RENEW_BATCH = 500
EXIT_CODE_WEDGED = 70

LOST, RENEWED, CANCELLED = 0, 1, 2


@dataclass(slots=True, eq=False)
class Lease:
    """The right to write to a task. `hard_deadline` is a `time.monotonic()` moment, set when the task begins."""

    task_id: str
    token: int
    queue: str
    hard_deadline: float = math.inf


class LeaseKeeper:
    """Renews leases from a thread.

    `on_lost` and `on_cancelled` get a lease, on the loop's thread. `end_process` is called when the process must die;
    it is a parameter so that a test can see it.
    """

    def __init__(
        self,
        connect: Callable[[], SyncRedis],
        *,
        lease_s: float,
        on_lost: Callable[[Lease], None],
        on_cancelled: Callable[[Lease], None],
        end_process: Callable[[str], None] | None = None,
        wedged_s: float = WEDGED_S,
    ) -> None:
        self._connect = connect
        self._lease_ms = int(lease_s * 1000)
        self._interval_s = lease_s * 0.3
        self._on_lost = on_lost
        self._on_cancelled = on_cancelled
        self._end_process = end_process or _exit
        self._wedged_s = wedged_s
        self._leases: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._answered_at = time.monotonic()
        self._asked_at: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.loop_lag_s = 0.0

    def start(self) -> None:
        """Start the thread. Call it on the loop."""
        self._loop = asyncio.get_running_loop()
        self._answered_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop renewing and end the thread; waits for a renewal that is under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)

    def add(self, lease: Lease) -> None:
        """Renew this lease from now on."""
        with self._lock:
            self._leases[lease.task_id] = lease

    def remove(self, lease: Lease) -> None:
        """Renew this lease no more."""
        with self._lock:
            if self._leases.get(lease.task_id) is lease:
                del self._leases[lease.task_id]

    def _run(self) -> None:
        redis = self._connect()
        renew = redis.register_script(lua_source("renew"))
        try:
            while not self._stop.wait(self._interval_s):
                reason = self._reason_to_die()
                if reason:
                    self._end_process(reason)
                    return
                self._ask_loop()
                try:
                    self._renew_all(renew)
                except (RedisError, OSError) as error:
                    logger.warning("leases were not renewed ({}); trying again in {:.1f} s", error, self._interval_s)
        finally:
            redis.close()

    def _renew_all(self, renew: Callable[..., Any]) -> None:
        with self._lock:
            leases = list(self._leases.values())
        for start in range(0, len(leases), RENEW_BATCH):
            batch = leases[start : start + RENEW_BATCH]
            args: list[Any] = [self._lease_ms]
            for lease in batch:
                args += [lease.task_id, lease.token, lease.queue]
            self._report(batch, renew(args=args))

    def _report(self, batch: Sequence[Lease], states: Sequence[int]) -> None:
        for lease, state in zip(batch, states, strict=True):
            if state == LOST:
                self._on_loop(self._lose, lease)
            elif state == CANCELLED:
                self._on_loop(self._on_cancelled, lease)

    def _lose(self, lease: Lease) -> None:
        # The attempt may have ended while the renewal was under way; then its lease is gone for a good reason.
        if self._leases.get(lease.task_id) is lease:
            self.remove(lease)
            self._on_lost(lease)

    def _on_loop(self, call: Callable[..., None], *args: Any) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *args)

    def _ask_loop(self) -> None:
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            self._on_loop(self._answer)

    def _answer(self) -> None:
        self._answered_at = time.monotonic()
        if self._asked_at is not None:
            self.loop_lag_s = self._answered_at - self._asked_at
            metrics.LOOP_LAG_S.labels().observe(self.loop_lag_s)
        self._asked_at = None

    def _reason_to_die(self) -> str:
        now = time.monotonic()
        if self._asked_at is not None and now - self._asked_at > self._wedged_s:
            return f"the event loop has not answered for {now - self._asked_at:.0f} s"
        with self._lock:
            overdue = [lease for lease in self._leases.values() if now > lease.hard_deadline + OVERDUE_S]
        if overdue:
            late_s = now - overdue[0].hard_deadline
            return f"task {overdue[0].task_id} did not end {late_s:.0f} s after its hard time limit"
        return ""


def _exit(reason: str) -> None:
    logger.critical("ending this worker: {}; its tasks will run elsewhere within a lease", reason)
    # No cleanup: the loop does not answer, and finally blocks of a wedged task must not hold the process.
    os._exit(EXIT_CODE_WEDGED)

"""A worker of one process without its server: the engine's own parts over the scripts in memory, driven by a test.

Tasks that are due run at once, as coroutines beside each other. Only when nothing runs does the clock move, to the next
moment at which something is due: a task, or what the test has planned. Code that runs takes no time on that clock.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, NoReturn

from app.engine.approval_desk import ApprovalDesk
from app.engine.commit import Committer
from app.engine.inbox import Inbox
from app.engine.lane import Lane, LaneSettings, Workshop
from app.engine.leases import LeaseKeeper
from app.engine.lending import Resources
from app.engine.queue import TaskQueue
from app.engine.services import WorkerServices
from app.settings import QuotaLimits
from app.testing.approvals import DeskScripts
from app.testing.children import Cast
from app.testing.errors import HarnessError
from app.testing.ledger import Dies
from app.testing.limits import OpenQuotas
from app.testing.memory import MemoryScripts

LANE = "testing"
AT_ONCE = 10_000
CPU_THREADS = 4
RESULT_TTL_MS = 86_400_000
MAX_ENTRIES = 100_000
"""Entries of tasks in one run; more are taken for a chain without an end."""
CLEAN_UP_S = 1.0


class World:
    """Everything that a run needs. Call `close` at its end."""

    def __init__(
        self,
        cast: Cast,
        now_ms: int,
        *,
        dies: Dies,
        resources: Resources,
        quotas: Mapping[str, QuotaLimits],
        quota_waits: Mapping[str, timedelta],
        patience_s: float,
    ) -> None:
        self.scripts = MemoryScripts(now_ms, dies)
        self.queue = TaskQueue(self.scripts, cast, max_depth=AT_ONCE, result_ttl_s=RESULT_TTL_MS / 1000, weights={})
        self.inbox = Inbox(self.scripts)
        self.desk = ApprovalDesk(DeskScripts(self.scripts, self.scripts.approvals))
        self.quotas = OpenQuotas(self.scripts, quotas, quota_waits)
        self._cast = cast
        self._patience_s = patience_s
        self._executor = ThreadPoolExecutor(CPU_THREADS, thread_name_prefix="cpu")
        self._lane = Lane(LANE, LaneSettings(AT_ONCE), self._workshop(resources), lambda: None)
        self.scripts.stop = self._stop
        self._plan: list[tuple[int, int, Callable[[], Awaitable[object]]]] = []
        self._planned = 0
        self._entries = 0

    def _workshop(self, resources: Resources) -> Workshop:
        committer = Committer(self.scripts)
        return Workshop(
            catalogue=self._cast,
            committer=committer,
            # Not started: leases in memory do not run out.
            keeper=LeaseKeeper(_no_server, lease_s=10.0, on_lost=lambda _: None, on_cancelled=lambda _: None),
            services=WorkerServices(
                self.scripts,
                self.queue,
                committer,
                executor=self._executor,
                resources=resources,
                quotas=self.quotas,
            ),
            look_again=lambda _: None,
            result_ttl_ms=RESULT_TTL_MS,
            unknown_task_ttl_s=0.0,
        )

    def plan(self, at_ms: int, action: Callable[[], Awaitable[object]]) -> None:
        """Do something when the clock comes to a moment (Unix ms)."""
        self._planned += 1
        heapq.heappush(self._plan, (at_ms, self._planned, action))

    async def settle(self) -> None:
        """Run what is due now, until nothing is. Raises `HarnessError` when the test lacks something, or a task awaits
        something real for longer than the patience."""
        while True:
            self.scripts.changed.clear()
            for claim in self.scripts.claim_due():
                self._entries += 1
                self._lane.take(claim)
            if self._entries > MAX_ENTRIES:
                raise HarnessError(f"tasks were entered {MAX_ENTRIES} times: do they start each other without an end?")
            if self._cast.missing:
                await self._stop_all()
                raise HarnessError(self._cast.missing[0])
            if self._lane.idle:
                return
            await self._something()

    async def advance(self, until_ms: int) -> None:
        """Move the clock on, and stop at every moment until then at which something is due."""
        await self.settle()
        while (due := self.next_ms()) is not None and due <= until_ms:
            await self._move(due)
        self.scripts.now_ms = max(self.scripts.now_ms, until_ms)

    async def finish(self, task_id: str) -> None:
        """Move the clock until a task has ended. What is due at that moment still runs, and nothing after it."""
        await self.settle()
        while not self.scripts.records[task_id].finished:
            due = self.next_ms()
            if due is None:
                raise HarnessError("nothing is due, and the task has not ended")
            await self._move(due)

    def next_ms(self) -> int | None:
        """When something is due next."""
        times = [self.scripts.next_due_ms(), self._plan[0][0] if self._plan else None]
        return min((time for time in times if time is not None), default=None)

    async def close(self) -> None:
        """Stop what still runs, and end the threads."""
        await self._stop_all()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _move(self, due_ms: int) -> None:
        self.scripts.now_ms = max(self.scripts.now_ms, due_ms)
        self.scripts.approvals.expire()
        while self._plan and self._plan[0][0] <= self.scripts.now_ms:
            await heapq.heappop(self._plan)[2]()
        await self.settle()

    async def _something(self) -> None:
        """Wait until a task may be ready, or nothing runs any more."""
        waits = {asyncio.ensure_future(self.scripts.changed.wait()), asyncio.ensure_future(self._lane.join())}
        done, rest = await asyncio.wait(waits, timeout=self._patience_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in rest:
            wait.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        if not done:
            await self._give_up()

    async def _give_up(self) -> NoReturn:
        running = [record for record in self.scripts.records.values() if record.fields["status"] == "STARTED"]
        names = ", ".join(f"{record.fields['task']} {record.id}" for record in running)
        await self._stop_all()
        raise HarnessError(
            f"{names}: running for {self._patience_s:g} s of real time. The fake clock moves only while a task waits "
            "with ctx.sleep and the like; asyncio.sleep and calls to the world take real time (see patience_s)"
        )

    async def _stop_all(self) -> None:
        self._lane.hand_back_running()
        await asyncio.wait({asyncio.ensure_future(self._lane.join())}, timeout=CLEAN_UP_S)

    def _stop(self, task_id: str, cancelled: bool) -> None:
        if cancelled:
            self._lane.cancel(task_id)
        else:
            self._lane.lose(task_id)


def _no_server() -> Any:
    raise AssertionError("the keeper of leases is not started here")

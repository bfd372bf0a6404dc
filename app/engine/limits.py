"""Quotas: requests and tokens per minute, and calls at once, of a key such as `llm:gpt-x`, kept over all processes.

A reservation takes its requests, its tokens and a slot together before the call, or waits; after the call it is settled
with what was used. States of a reservation: *asked* -> in line -> *granted* -> *settled*.

- Over no window of a minute more is granted than the limit; at least 95 % of it can be used (`lua/quota.lua` says how).
- Who waits is served in the order of the first ask. What those ahead want is held back, so a large one does not starve.
- A reservation counts in the minute in which it was granted; its settlement corrects that minute, upward as well.
- A wait of up to `SHOW_S` is silent, a longer one shows as progress. Where it exceeds `HOLD_S` the task leaves its
  worker and comes back when it is likely to be its turn. That costs it no try, and its place in line is kept for it.

What happens at each failure:

- the process dies: its reservations keep their estimates, its slots are free after their lease, its place in line is
  gone `PATIENCE_S` later;
- a reply is lost: the ask is repeated under its id, and what was granted is granted again, once;
- Redis is away: an ask waits up to `AWAY_S` for it and fails then; a settlement that cannot be written leaves the
  estimate, and never fails the call that it is about;
- the provider refuses (429) all the same: until its reset nothing more is granted on the key; where it named none, half
  of the limits are in force for a minute, down to a sixteenth;
- the call takes longer than a minute: its settlement corrects nothing any more, since its minute is over.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar

from loguru import logger

from app.engine.job import ErrorInfo, moment
from app.engine.outcomes import HandedBack
from app.errors import InvalidInput, QuotaTooSmall, RemoteStatus, WaitingForQuota
from app.settings import QuotaLimits
from app.store.connection import REFUSED_FOR_NOW
from app.store.quota_scripts import NO_LIMIT, Ask, QuotaScripts, StoredLimits
from app.store.scripts import Scripts
from app.telemetry import metrics

T = TypeVar("T")

WINDOW_S = 60.0
SHOW_S = 5.0
"""A longer wait is shown as progress."""
HOLD_S = 15.0
"""A task that would wait for longer leaves its worker."""
AWAY_DELAY_S = (1.0, 600.0)
"""For how long it leaves, at least and at most."""
GRACE_S = 30.0
"""How long its share is held back when it is its turn and it is not back yet."""
POLL_S = 5.0
"""How often a waiting ask is repeated at least: somebody ahead may have gone."""
PATIENCE_S = 15.0
AWAY_S = 30.0
AWAY_PAUSE_S = 0.25
MAX_RESET_S = 3_600.0
"""The longest that a provider's reset is believed."""
KEEP: Final = -1
"""What was reserved stands as what was used."""


@dataclass(slots=True)
class Guest:
    """An attempt whose calls wait. `show` puts a label into its progress, and with None what stood there before.

    `leave` ends the attempt with an outcome: it raises where the coroutine awaits next.
    """

    task_id: str
    show: Callable[[str | None], Awaitable[None]]
    leave: Callable[[HandedBack], None]
    leaving: bool = False
    """Whether one of its calls has parked the task's place: that is for the next attempt, not for its other calls."""
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of its calls one asks or parks at a time: an ask that is under way would take a place that has just been
    parked."""


@dataclass(frozen=True, slots=True)
class QuotaStats:
    """A key now: its limits, what was used in the last minute, and until when a refusal keeps it below its limits."""

    key: str
    limits: QuotaLimits
    requests_used: int
    tokens_used: int
    held: int
    waiting: int
    share: float
    shrunk_until: datetime | None


class Quota:
    """What a call holds. Tell it what was used: `quota.used(tokens)`."""

    def __init__(self, key: str | None, call_id: str, requests: int, tokens: int) -> None:
        self.key = key
        """The key whose limits hold; None where there are none."""
        self.id = call_id
        self.requests = requests
        self.tokens = tokens
        self.granted_ms: int | None = None
        """When it was granted, on the server's clock (Unix ms); None before, and where there is no limit."""
        self.settlement = (0, 0)
        """Requests and tokens to settle with: none before the call may be made."""
        self.reset_ms = KEEP
        """Ms until the reset of a provider that refused the call, 0 where it named none."""

    def used(self, tokens: int, *, requests: int | None = None) -> None:
        """Say what the call really used; the last word counts. Without it the estimate stands."""
        if tokens < 0 or (requests is not None and requests < 0):
            raise InvalidInput(f"used {tokens} tokens, {requests} requests: expected numbers of at least 0")
        self.settlement = (KEEP if requests is None else requests, tokens)

    def failed(self, error: BaseException) -> None:
        """The call raised. One that was refused for its rate used no tokens, and shrinks the key."""
        if isinstance(error, RemoteStatus) and error.remote_status == 429 and self.key is not None:
            self.reset_ms = int(min(error.retry_after_s or 0.0, MAX_RESET_S) * 1000)
            self.settlement = (self.settlement[0], max(self.settlement[1], 0))
            metrics.QUOTA_REFUSALS.labels(self.key).inc()


class Quotas:
    """The quotas of a process. `limits` are the configured ones; `worker_id` is whose wake list tells of freed room.

    Run `run` as long as anything is held: it renews the slots.
    """

    def __init__(
        self,
        scripts: Scripts,
        limits: Mapping[str, QuotaLimits],
        *,
        worker_id: str = "",
        lease_s: float = 10.0,
        window_s: float = WINDOW_S,
    ) -> None:
        self._scripts = QuotaScripts(scripts)
        self._limits = limits
        self._worker_id = worker_id
        self._lease_ms = int(lease_s * 1000)
        self._window_ms = int(window_s * 1000)
        self._prefix = secrets.token_hex(6)
        self._asked = 0
        self._slots: set[tuple[str, str]] = set()
        self._waiting: dict[str, asyncio.Event] = {}
        self._settling: set[asyncio.Task[None]] = set()

    def key_of(self, name: str) -> str | None:
        """The key whose limits hold for `name`: itself, or without its last parts (`llm:gpt-x` -> `llm`), or none."""
        while name not in self._limits:
            name, colon, _ = name.rpartition(":")
            if not colon:
                return None
        return name

    @asynccontextmanager
    async def hold(
        self, name: str, *, tokens: int = 0, spare: int = 0, requests: int = 1, guest: Guest | None = None
    ) -> AsyncIterator[Quota]:
        """Hold what a call needs for the length of the block; see `TaskContext.quota`. Without a guest it waits for as
        long as it takes. A key without limits costs nothing."""
        quota = self._quota(name, requests, tokens, spare)
        if quota.key is None:
            yield quota
            return
        try:
            await self._admit(quota, name, guest)
            quota.settlement = (KEEP, KEEP)
            yield quota
        except BaseException as error:
            quota.failed(error)
            raise
        finally:
            await self._end(quota)

    def wake(self, call_id: str) -> None:
        """An ask that waits may fit now."""
        if call_id in self._waiting:
            self._waiting[call_id].set()

    async def run(self) -> None:
        """Renew the slots that this process holds, until cancelled."""
        while True:
            await asyncio.sleep(self._lease_ms * 0.3 / 1000)
            slots = tuple(self._slots)
            if slots:
                replies = await self._scripts.renew_slots(self._lease_ms, slots)
                lapsed = [key for (key, _), kept in zip(slots, replies, strict=True) if not kept]
                if lapsed:
                    logger.warning("slots of {} lapsed while they were used", ", ".join(sorted(set(lapsed))))

    async def close(self) -> None:
        """Wait for the settlements that are under way."""
        if self._settling:
            await asyncio.wait(tuple(self._settling))

    async def stats(self) -> list[QuotaStats]:
        """All keys that have limits, by name."""
        names = sorted(self._limits)
        rows = await self._scripts.quota_stats(self._window_ms, names) if names else []
        return [
            QuotaStats(name, self._limits[name], *row[:5], moment(str(row[5])) if row[5] else None)
            for name, row in zip(names, rows, strict=True)
        ]

    def _quota(self, name: str, requests: int, tokens: int, spare: int) -> Quota:
        if min(requests, tokens, spare) < 0:
            asked = f"{requests} requests, {tokens} tokens, {spare} to spare"
            raise InvalidInput(f"quota {name!r}: {asked}: expected numbers of at least 0")
        key = self.key_of(name)
        if key is not None:
            limits = self._limits[key]
            _check_fits(key, "requests", requests, limits.requests_per_minute)
            _check_fits(key, "tokens", tokens, limits.tokens_per_minute)
            most = limits.tokens_per_minute
            tokens += spare if most is None else min(spare, most - tokens)
            if limits.concurrency is None and requests == tokens == 0:
                key = None  # Only a slot is wanted, and there is no limit on slots.
        self._asked += 1
        return Quota(key, f"{self._prefix}-{self._asked}", requests, tokens)

    def _stored(self, key: str) -> StoredLimits:
        limits = self._limits[key]
        numbers = (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrency)
        requests, tokens, slots = (NO_LIMIT if number is None else number for number in numbers)
        return StoredLimits(requests, tokens, slots, self._window_ms)

    # Before the call.

    async def _admit(self, quota: Quota, name: str, guest: Guest | None) -> None:
        assert quota.key is not None
        began, shown = time.monotonic(), False
        self._waiting[quota.id] = asyncio.Event()
        try:
            while (wait_s := await self._ask(quota, guest)) > 0:
                waited_s = time.monotonic() - began
                if guest is not None and is_too_long(waited_s, wait_s):
                    await self._send_away(quota, name, guest, max(waited_s, wait_s))
                if guest is not None and waited_s + wait_s > SHOW_S and not shown:
                    shown = True
                    await guest.show(f"waiting for quota {name}"[:200])
                await self._pause(quota.id, wait_s)
        finally:
            del self._waiting[quota.id]
            metrics.QUOTA_WAIT_S.labels(quota.key).observe(time.monotonic() - began)
        metrics.QUOTA_RESERVATIONS.labels(quota.key, "granted").inc()
        if shown and guest is not None:
            await guest.show(None)

    async def _ask(self, quota: Quota, guest: Guest | None) -> float:
        """Ask once; seconds to wait, 0 when it was granted."""
        if guest is None:
            return await self._reserve(quota, "")
        async with guest.turn:
            return await self._reserve(quota, "" if guest.leaving else guest.task_id)

    async def _reserve(self, quota: Quota, place: str) -> float:
        assert quota.key is not None
        ask = Ask(quota.key, quota.id, place, self._worker_id, quota.requests, quota.tokens)
        limits = self._stored(quota.key)
        self._waiting[quota.id].clear()
        granted, wait_ms, now_ms = await _through_restarts(
            lambda: self._scripts.reserve_quota(
                ask, limits, lease_ms=self._lease_ms, patience_ms=int(PATIENCE_S * 1000)
            )
        )
        if not granted:
            return wait_ms / 1000
        quota.granted_ms = now_ms
        if limits.slots != NO_LIMIT:
            self._slots.add((quota.key, quota.id))
        return 0.0

    async def _pause(self, call_id: str, wait_s: float) -> None:
        try:
            async with asyncio.timeout(min(wait_s + 0.001, POLL_S)):
                await self._waiting[call_id].wait()
        except TimeoutError:
            return

    async def _send_away(self, quota: Quota, name: str, guest: Guest, wait_s: float) -> None:
        """Keep the place in line for the task, and have it leave."""
        key, delay_s = quota.key or "", min(max(wait_s, AWAY_DELAY_S[0]), AWAY_DELAY_S[1])
        delay_ms, grace_ms = int(delay_s * 1000), int(GRACE_S * 1000)
        async with guest.turn:
            guest.leaving = True
            await _through_restarts(
                lambda: self._scripts.park_quota(key, quota.id, guest.task_id, delay_ms=delay_ms, grace_ms=grace_ms)
            )
        metrics.QUOTA_RESERVATIONS.labels(key, "postponed").inc()
        reason = WaitingForQuota(f"waiting for quota {name}: asked again in {delay_s:.0f} s")
        guest.leave(HandedBack(ErrorInfo.of(reason, retryable=True), delay_s))
        await asyncio.Event().wait()  # What interrupts this is on its way.

    # After the call.

    async def _end(self, quota: Quota) -> None:
        # Shielded, and in a task of its own: the task may be interrupted again while it cleans up.
        settling = asyncio.get_running_loop().create_task(self._settle(quota))
        self._settling.add(settling)
        settling.add_done_callback(self._settling.discard)
        await asyncio.shield(settling)

    async def _settle(self, quota: Quota) -> None:
        assert quota.key is not None
        self._slots.discard((quota.key, quota.id))
        requests, tokens = quota.settlement
        try:
            await self._scripts.settle_quota(
                quota.key,
                quota.id,
                self._stored(quota.key),
                requests=requests,
                tokens=tokens,
                shrink_ms=quota.reset_ms,
            )
        except REFUSED_FOR_NOW as error:
            logger.warning("a reservation of {} keeps its estimate, Redis is away: {}", quota.key, error)


def is_too_long(waited_s: float, wait_s: float) -> bool:
    """Whether a task that has waited, and is told to wait for so much longer, should leave: not for the last seconds of
    a wait, unless it was told so before (nobody knows when a slot is given back)."""
    return waited_s > HOLD_S or (wait_s > SHOW_S and waited_s + wait_s > HOLD_S)


def _check_fits(key: str, what: str, asked: int, limit: int | None) -> None:
    if limit is not None and asked > limit:
        raise QuotaTooSmall(
            f"a call of {asked} {what} can never fit into the quota {key!r}: expected at most {limit} {what} a minute"
        )


async def _through_restarts(call: Callable[[], Awaitable[T]]) -> T:
    """Call until Redis answers, for `AWAY_S`. The scripts may be repeated."""
    began = time.monotonic()
    while True:
        try:
            return await call()
        except REFUSED_FOR_NOW:
            if time.monotonic() - began > AWAY_S:
                raise
            await asyncio.sleep(AWAY_PAUSE_S)

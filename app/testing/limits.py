"""Quotas that grant everything and note it: a test is about the task, not about who else calls. A call may be sent away
once, as when many others are in line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from app.engine.job import ErrorInfo
from app.engine.limits import KEEP, Guest, Quota, Quotas
from app.engine.outcomes import HandedBack
from app.errors import WaitingForQuota
from app.settings import QuotaLimits
from app.store.scripts import Scripts


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """A quota that a task held: what it reserved, and what it said it used (None: it did not say)."""

    key: str
    requests: int
    tokens: int
    used_tokens: int | None


class OpenQuotas(Quotas):
    """Quotas without a line. `waits` are for how long the first call on a key is sent away. A call that can never fit
    into the given limits is refused as by the engine."""

    def __init__(self, scripts: Scripts, limits: Mapping[str, QuotaLimits], waits: Mapping[str, timedelta]) -> None:
        super().__init__(scripts, limits)
        self._waits = dict(waits)
        self._held: list[tuple[str, str, Quota]] = []

    def uses(self, task_id: str) -> list[QuotaUse]:
        """What a task held, in order."""
        return [
            QuotaUse(name, quota.requests, quota.tokens, None if quota.settlement[1] == KEEP else quota.settlement[1])
            for holder, name, quota in self._held
            if holder == task_id
        ]

    @asynccontextmanager
    async def hold(
        self, name: str, *, tokens: int = 0, spare: int = 0, requests: int = 1, guest: Guest | None = None
    ) -> AsyncIterator[Quota]:
        """Grant it. Raises `QuotaTooSmall`."""
        quota = self._quota(name, requests, tokens, spare)
        quota.settlement = (KEEP, KEEP)
        wait = self._waits.pop(name, None)
        if wait is not None and guest is not None:
            reason = WaitingForQuota(f"waiting for quota {name}: asked again in {wait.total_seconds():g} s")
            guest.leave(HandedBack(ErrorInfo.of(reason, retryable=True), wait.total_seconds()))
            await asyncio.Event().wait()  # What interrupts this is on its way.
        self._held.append((guest.task_id if guest else "", name, quota))
        yield quota

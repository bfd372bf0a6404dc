"""Quotas that grant everything at once and note it: a test is about the task, not about who else calls."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from app.engine.limits import KEEP, Guest, Quota, Quotas
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
    """Quotas without waiting. A call that can never fit into the given limits is refused as by the engine."""

    def __init__(self, scripts: Scripts, limits: Mapping[str, QuotaLimits]) -> None:
        super().__init__(scripts, limits)
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
        self._held.append((guest.task_id if guest else "", name, quota))
        yield quota

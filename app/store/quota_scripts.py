"""A typed function for every Lua script about quotas, under the script's name; see `store/scripts.py`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from app.store.items import Arg
from app.store.scripts import Scripts

NO_LIMIT = -1


@dataclass(frozen=True, slots=True)
class StoredLimits:
    """The limits of a key as the scripts read them: `NO_LIMIT` where there is none; per `window_ms`."""

    requests: int
    tokens: int
    slots: int
    window_ms: int


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of a key. `place` is the task whose parked place in line it takes over, `worker` whom to wake."""

    key: str
    id: str
    place: str
    worker: str
    requests: int
    tokens: int


class QuotaScripts:
    """The scripts of quotas, bound to the client of `scripts`."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def reserve_quota(
        self, ask: Ask, limits: StoredLimits, *, lease_ms: int, patience_ms: int
    ) -> tuple[bool, int, int]:
        """Take what is asked for, or nothing: whether it was granted, else ms until it is worth to ask again, and the
        server's time (Unix ms)."""
        granted, wait_ms, time_ms = await self._scripts.run(
            "reserve_quota",
            [
                *(ask.key, ask.id, ask.place, ask.worker, ask.requests, ask.tokens),
                *(limits.requests, limits.tokens, limits.slots, limits.window_ms, lease_ms, patience_ms),
            ],
        )
        return bool(granted), wait_ms, time_ms

    async def settle_quota(
        self, key: str, call_id: str, limits: StoredLimits, *, requests: int, tokens: int, shrink_ms: int
    ) -> bool:
        """End a reservation or an ask, see the script. False where there was none."""
        args: list[Arg] = [
            key,
            call_id,
            requests,
            tokens,
            shrink_ms,
            limits.requests,
            limits.tokens,
            limits.slots,
            limits.window_ms,
        ]
        return bool(await self._scripts.run("settle_quota", args))

    async def park_quota(self, key: str, call_id: str, task_id: str, *, delay_ms: int, grace_ms: int) -> bool:
        """Keep the place in line of an ask for its task. False where it is not kept."""
        return bool(await self._scripts.run("park_quota", [key, call_id, task_id, delay_ms, grace_ms]))

    async def renew_slots(self, lease_ms: int, slots: Iterable[tuple[str, str]]) -> list[int]:
        """Renew slots, given as key and id. 1 for each that is still held, 0 for one that has lapsed."""
        replies: list[int] = await self._scripts.run("renew_slots", [lease_ms, *chain.from_iterable(slots)])
        return replies

    async def quota_stats(self, window_ms: int, names: Sequence[str]) -> list[tuple[int, int, int, int, float, int]]:
        """For each key: requests and tokens used in the window, slots held, how many wait, the share of the limits in
        force, and until when it is less than whole (Unix ms; 0: it is whole)."""
        replies = await self._scripts.run("quota_stats", [window_ms, *names])
        return [(*row[:4], float(row[4]), row[5]) for row in replies]

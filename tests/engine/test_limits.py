"""Quotas: what calls hold, how they wait, what a refusal does, and what a dead process leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from app.engine import limits as limits_module
from app.engine.limits import Guest, Quota, Quotas, is_too_long
from app.engine.outcomes import HandedBack
from app.errors import InvalidInput, LeaseLost, QuotaTooSmall, RemoteStatus
from app.settings import QuotaLimits
from app.store import keys
from app.store.connection import connect
from app.store.embedded import EmbeddedServer
from app.store.scripts import Scripts
from tests.support import PATIENCE_S

LIMITS = {"llm": QuotaLimits(10, 1_000, None), "llm:big": QuotaLimits(tokens_per_minute=100), "web": QuotaLimits(5)}


@pytest.fixture
async def quotas(redis: Redis) -> AsyncIterator[Quotas]:
    made = Quotas(Scripts(redis), LIMITS)
    yield made
    await made.close()


def short(redis: Redis, *, window_s: float = 1.0, lease_s: float = 10.0, **limits: int) -> Quotas:
    """Quotas whose minute takes a second."""
    return Quotas(Scripts(redis), {"llm": QuotaLimits(**limits)}, window_s=window_s, lease_s=lease_s)


class Host:
    """Stands for an attempt: notes what it is told, and leaves by being cancelled."""

    def __init__(self) -> None:
        self.labels: list[str | None] = []
        self.left: HandedBack | None = None
        self._task = asyncio.current_task()

    async def show(self, label: str | None) -> None:
        self.labels.append(label)

    def leave(self, outcome: HandedBack) -> None:
        self.left = outcome
        assert self._task is not None
        self._task.cancel()

    @property
    def guest(self) -> Guest:
        return Guest("task-1", self.show, self.leave)


async def used(quotas: Quotas, key: str = "llm") -> tuple[int, int, int, int]:
    (row,) = [stats for stats in await quotas.stats() if stats.key == key]
    return row.requests_used, row.tokens_used, row.held, row.waiting


@pytest.mark.parametrize(
    ("name", "key"),
    [("llm", "llm"), ("llm:big", "llm:big"), ("llm:small", "llm"), ("llm:big:q4", "llm:big"), ("git", None)],
)
def test_a_key_without_limits_of_its_own_shares_those_of_the_key_before_its_colon(
    quotas: Quotas, name: str, key: str | None
) -> None:
    assert quotas.key_of(name) == key


async def test_a_call_is_settled_with_what_it_used(quotas: Quotas) -> None:
    async with quotas.hold("llm", tokens=300) as quota:
        assert await used(quotas) == (1, 300, 0, 0)
        quota.used(40)
    assert await used(quotas) == (1, 40, 0, 0)


async def test_a_call_that_says_nothing_keeps_its_estimate(quotas: Quotas) -> None:
    async with quotas.hold("llm", tokens=300):
        pass
    assert await used(quotas) == (1, 300, 0, 0)


async def test_a_call_that_fails_keeps_its_estimate_unless_it_said_what_it_used(quotas: Quotas) -> None:
    with pytest.raises(RemoteStatus):
        async with quotas.hold("llm", tokens=300):
            raise RemoteStatus("no", remote_status=500)
    with pytest.raises(ValueError, match="afterwards"):
        async with quotas.hold("llm", tokens=300) as quota:
            quota.used(7)
            raise ValueError("afterwards")
    assert await used(quotas) == (2, 307, 0, 0)


async def test_a_refused_call_used_no_tokens_and_stops_the_key_until_the_reset(quotas: Quotas) -> None:
    with pytest.raises(RemoteStatus):
        async with quotas.hold("llm", tokens=300):
            raise RemoteStatus("slow down", remote_status=429, retry_after_s=120)
    (llm, *_) = await quotas.stats()
    assert (llm.requests_used, llm.tokens_used, llm.share) == (1, 0, 0.0)
    assert llm.shrunk_until is not None
    host = Host()
    with pytest.raises(asyncio.CancelledError):
        async with quotas.hold("llm", guest=host.guest):
            raise AssertionError("the key is stopped")
    assert host.left is not None
    assert 110 < host.left.delay_s <= 120


async def test_a_key_without_limits_costs_no_round_trip() -> None:
    nowhere = connect("redis://127.0.0.1:1")
    quotas = Quotas(Scripts(nowhere), {"llm": QuotaLimits(10)})
    async with quotas.hold("git", tokens=10**9), quotas.hold("llm", requests=0):
        pass
    await nowhere.aclose()


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"tokens": 1_001}, "1001 tokens.*'llm'.*at most 1000"), ({"requests": 11}, "11 requests.*at most 10")],
)
async def test_what_can_never_fit_is_refused_at_once_and_says_why(
    quotas: Quotas, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(QuotaTooSmall, match=words):
        async with quotas.hold("llm", **asked):
            raise AssertionError
    assert await used(quotas) == (0, 0, 0, 0)


async def test_what_is_spare_is_reserved_as_far_as_the_limit_allows(quotas: Quotas) -> None:
    async with quotas.hold("llm:big", tokens=30, spare=500) as quota:
        assert quota.tokens == 100


@pytest.mark.parametrize("asked", [{"tokens": -1}, {"requests": -1}, {"spare": -1}])
async def test_numbers_under_0_are_refused(quotas: Quotas, asked: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="at least 0"):
        async with quotas.hold("llm", **asked):
            raise AssertionError


def test_what_was_used_is_at_least_0() -> None:
    with pytest.raises(InvalidInput, match="at least 0"):
        Quota("llm", "1", 1, 1).used(-1)


async def test_a_short_wait_is_silent(redis: Redis) -> None:
    quotas, host = short(redis, requests_per_minute=1), Host()
    for _ in range(2):
        async with quotas.hold("llm", guest=host.guest):
            pass
    assert (host.labels, host.left) == ([], None)


async def test_a_wait_over_5_s_is_shown_and_its_end_too(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "SHOW_S", 0.5)
    quotas, host = short(redis, requests_per_minute=1), Host()
    for _ in range(2):
        async with quotas.hold("llm:x", guest=host.guest):
            pass
    assert host.labels == ["waiting for quota llm:x", None]


async def test_for_a_longer_wait_the_task_leaves_and_its_place_is_kept(quotas: Quotas) -> None:
    async with quotas.hold("llm", tokens=900):
        pass
    host = Host()
    with pytest.raises(asyncio.CancelledError):
        async with quotas.hold("llm:x", tokens=200, guest=host.guest):
            raise AssertionError("there is no room")
    assert host.left is not None
    assert 50 < host.left.delay_s < 65
    assert "waiting for quota llm:x" in host.left.reason.message
    assert host.labels == []
    assert await used(quotas) == (1, 900, 0, 1)


@pytest.mark.parametrize(
    ("waited_s", "wait_s", "too_long"),
    [
        (0.0, 15.0, False),
        (0.0, 15.1, True),
        (9.0, 6.1, True),
        (13.0, 4.0, False),  # the last seconds
        (15.1, 1.0, True),  # it was said before
    ],
)
def test_a_task_leaves_for_a_long_wait_and_stays_for_its_last_seconds(
    waited_s: float, wait_s: float, too_long: bool
) -> None:
    assert is_too_long(waited_s, wait_s) is too_long


async def test_calls_of_a_task_that_is_leaving_do_not_take_its_place_from_it(
    quotas: Quotas, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with quotas.hold("llm", tokens=1_000):
        pass
    host = Host()
    guest = host.guest
    with pytest.raises(asyncio.CancelledError):
        async with quotas.hold("llm", tokens=1, guest=guest):
            raise AssertionError
    monkeypatch.setattr(limits_module, "HOLD_S", 1_000.0)
    other = asyncio.create_task(_hold_once(quotas, guest))
    await until(quotas, waiting=2)
    other.cancel()
    with pytest.raises(asyncio.CancelledError):
        await other
    assert await used(quotas) == (1, 1_000, 0, 1)


async def test_what_was_granted_to_a_call_that_is_not_made_after_all_is_given_back(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits_module, "SHOW_S", 0.1)
    quotas = short(redis, tokens_per_minute=100, requests_per_minute=1)

    async def show(label: str | None) -> None:
        if label is None:
            raise LeaseLost("gone")

    async with quotas.hold("llm", tokens=40):
        pass
    with pytest.raises(LeaseLost):
        async with quotas.hold("llm", tokens=30, guest=Guest("task-1", show, Host().leave)):
            raise AssertionError("the lease is lost")
    assert (await used(quotas))[:2] == (0, 0)


async def test_cancelled_while_it_waits_a_call_leaves_the_line(redis: Redis) -> None:
    quotas = short(redis, window_s=60.0, concurrency=1)
    async with quotas.hold("llm"):
        waiting = asyncio.create_task(_hold_once(quotas))
        await until(quotas, waiting=1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await used(quotas) == (1, 0, 1, 0)
    assert await used(quotas) == (1, 0, 0, 0)


async def test_a_freed_slot_wakes_who_waits_for_it_in_another_process(redis: Redis) -> None:
    quotas = short(redis, concurrency=1)
    other = Quotas(Scripts(redis), {"llm": QuotaLimits(concurrency=1)}, worker_id="w2")
    async with quotas.hold("llm"):
        waiting = asyncio.create_task(_hold_once(other))
        await until(quotas, waiting=1)
    message = await redis.lpop(keys.wake("w2"))
    assert message is not None
    other.wake(message.decode().removeprefix("?"))
    await waiting


async def test_a_held_slot_is_renewed_and_that_of_a_dead_process_is_free_after_its_lease(redis: Redis) -> None:
    quotas = short(redis, lease_s=0.3, concurrency=2)
    dead = short(redis, lease_s=0.3, concurrency=2)
    renewing = asyncio.create_task(quotas.run())
    holding = dead.hold("llm")
    await holding.__aenter__()
    # The second one waits until the dead one's lease is over; the first is renewed meanwhile.
    async with quotas.hold("llm") as alive, quotas.hold("llm") as second:
        assert second.granted_ms is not None
        assert alive.granted_ms is not None
        assert second.granted_ms - alive.granted_ms >= 250
        assert (await used(quotas))[2] == 2
    renewing.cancel()
    await holding.__aexit__(None, None, None)


async def test_a_restart_of_redis_while_it_waits_is_ridden_out(own_server: EmbeddedServer) -> None:
    redis = connect(own_server.url)
    quotas = Quotas(Scripts(redis), {"llm": QuotaLimits(concurrency=1)})
    await redis.ping()
    own_server.kill()
    waiting = asyncio.create_task(_hold_once(quotas))
    own_server.restart()
    await waiting
    await redis.aclose()


async def test_a_settlement_that_cannot_be_written_does_not_fail_the_call(own_server: EmbeddedServer) -> None:
    redis = connect(own_server.url)
    quotas = Quotas(Scripts(redis), {"llm": QuotaLimits(concurrency=1)})
    async with quotas.hold("llm"):
        own_server.kill()
    await redis.aclose()


async def _hold_once(quotas: Quotas, guest: Guest | None = None) -> None:
    async with quotas.hold("llm", guest=guest, tokens=1 if guest else 0):
        pass


async def until(quotas: Quotas, *, waiting: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await used(quotas))[3] != waiting:
            await asyncio.sleep(0.005)

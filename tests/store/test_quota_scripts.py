"""The scripts of quotas, on a clock that the test sets: what is granted never exceeds a limit over any window."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from app.store import keys
from app.store.connection import connect
from app.store.embedded import EmbeddedServer
from app.store.quota_scripts import NO_LIMIT, Ask, QuotaScripts, StoredLimits
from app.store.scripts import Scripts

WINDOW_MS = 60_000
LEASE_MS = 10_000
PATIENCE_MS = 10_000
START_MS = 1_790_000_000_123
CLOCK = "now = function() return tonumber(redis.call('GET', 'test-clock')) end\n"
BUCKET_MS = WINDOW_MS // 100


class Shop:
    """One key, with a clock of its own."""

    def __init__(self, redis: Redis, requests: int = NO_LIMIT, tokens: int = NO_LIMIT, slots: int = NO_LIMIT) -> None:
        scripts = Scripts(redis)
        scripts._prelude = CLOCK
        self.redis = redis
        self.scripts = QuotaScripts(scripts)
        self.limits = StoredLimits(requests, tokens, slots, WINDOW_MS)
        self.now_ms = START_MS

    async def at(self, after_ms: int) -> None:
        self.now_ms += after_ms
        await self.redis.set("test-clock", self.now_ms)

    async def ask(self, call_id: str, tokens: int = 1, requests: int = 1, *, place: str = "", worker: str = "") -> int:
        """Ms to wait, 0 when it was granted."""
        await self.at(0)
        ask = Ask("llm", call_id, place, worker, requests, tokens)
        granted, wait_ms, time_ms = await self.scripts.reserve_quota(
            ask, self.limits, lease_ms=LEASE_MS, patience_ms=PATIENCE_MS
        )
        assert time_ms == self.now_ms
        assert granted == (wait_ms == 0)
        return wait_ms

    async def settle(self, call_id: str, tokens: int = -1, requests: int = -1, *, shrink_ms: int = -1) -> bool:
        await self.at(0)
        return await self.scripts.settle_quota(
            "llm", call_id, self.limits, requests=requests, tokens=tokens, shrink_ms=shrink_ms
        )

    async def stats(self) -> tuple[int, int, int, int, float, int]:
        await self.at(0)
        (row,) = await self.scripts.quota_stats(WINDOW_MS, ["llm"])
        return row


@dataclass
class Log:
    """Every grant with its time and what it used, as exactly as can be."""

    grants: dict[str, list[int]] = field(default_factory=dict)

    def used(self, now_ms: int) -> tuple[int, int]:
        recent = [grant for grant in self.grants.values() if now_ms - WINDOW_MS < grant[0] <= now_ms]
        return sum(grant[1] for grant in recent), sum(grant[2] for grant in recent)


# Often such that something is about to leave the window.
PAUSES_MS = st.one_of(st.integers(0, 40_000), st.integers(56_000, WINDOW_MS), st.integers(0, 2 * BUCKET_MS))
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), PAUSES_MS),
        st.tuples(st.just("ask"), st.integers(0, 300)),
        st.tuples(st.just("settle"), st.integers(0, 400)),
    ),
    max_size=60,
)


@pytest.fixture(scope="module")
def loop_and_redis(server: EmbeddedServer):
    loop = asyncio.new_event_loop()
    redis = connect(server.url)
    yield loop, redis
    loop.run_until_complete(redis.aclose())
    loop.close()


@given(actions=ACTIONS)
@settings(max_examples=120, deadline=None)
def test_no_window_ever_holds_more_than_the_limits(loop_and_redis, actions: list[tuple[str, int]]) -> None:
    loop, redis = loop_and_redis
    loop.run_until_complete(_compare_with_log(redis, actions))


async def _compare_with_log(redis: Redis, actions: list[tuple[str, int]]) -> None:
    await redis.flushall()
    shop, log = Shop(redis, requests=5, tokens=300), Log()
    for number, (action, value) in enumerate(actions):
        if action == "pass":
            await shop.at(value)
        elif action == "ask":
            if await shop.ask(f"c{number}", value) == 0:
                log.grants[f"c{number}"] = [shop.now_ms, 1, value]
                requests, tokens = log.used(shop.now_ms)
                assert requests <= 5
                assert tokens <= 300 or value == 0
            else:
                await shop.settle(f"c{number}")
        elif log.grants:
            latest = list(log.grants)[-1 - value % len(log.grants)]
            if await shop.settle(latest, tokens=value):
                log.grants[latest][2] = value
        counted = await shop.stats()
        exact = log.used(shop.now_ms)
        assert counted[0] >= exact[0]
        assert counted[1] >= exact[1]


@given(costs=st.lists(st.integers(1, 100), min_size=1, max_size=25))
@settings(max_examples=60, deadline=None)
def test_who_asks_again_when_it_was_told_is_granted(loop_and_redis, costs: list[int]) -> None:
    loop, redis = loop_and_redis
    loop.run_until_complete(_serve_in_turn(redis, costs))


async def _serve_in_turn(redis: Redis, costs: list[int]) -> None:
    await redis.flushall()
    shop = Shop(redis, requests=7, tokens=100)
    for number, cost in enumerate(costs):
        wait_ms = await shop.ask(f"c{number}", cost)
        await shop.at(wait_ms)
        assert wait_ms == 0 or await shop.ask(f"c{number}", cost) == 0
        assert wait_ms <= 102 * BUCKET_MS


@pytest.fixture
async def shop(redis: Redis) -> AsyncIterator[Shop]:
    """100 requests and 1,000 tokens a minute."""
    yield Shop(redis, requests=100, tokens=1_000)


async def test_under_load_at_least_95_percent_of_the_limit_is_used(shop: Shop) -> None:
    granted, call = 0, 0
    for _ in range(4 * 600):  # four minutes, in steps of 100 ms
        while await shop.ask(f"c{call}", 10) == 0:
            granted, call = granted + 1, call + 1
        await shop.at(100)
    assert 0.95 * 400 <= granted <= 400 + 100


async def test_what_those_ahead_want_is_held_back_so_a_large_one_does_not_starve(shop: Shop) -> None:
    assert await shop.ask("first", 600) == 0
    assert await shop.ask("large", 900) > 0
    assert await shop.ask("small", 10) > 0, "it would fit, but somebody waits who would wait for longer then"
    await shop.at(102 * BUCKET_MS)
    assert await shop.ask("small", 10) > 0 or await shop.ask("large", 900) == 0
    assert await shop.ask("large", 900) == 0


async def test_one_that_does_not_ask_again_loses_its_place(shop: Shop) -> None:
    assert await shop.ask("first", 600) == 0
    assert await shop.ask("dead", 900) > 0
    assert await shop.ask("small", 10) > 0
    await shop.at(PATIENCE_MS + 1)
    assert await shop.ask("small", 10) == 0


async def test_those_in_line_are_served_though_the_one_ahead_has_not_asked_yet(shop: Shop) -> None:
    assert await shop.ask("first", 900) == 0
    waits = [await shop.ask(f"w{number}", 300) for number in range(3)]
    assert min(waits) > 0
    await shop.at(1_000)
    assert await shop.settle("first", tokens=0)
    assert await shop.ask("w2", 300) == 0, "1,000 are free, and the two ahead want 600 of them"
    assert await shop.ask("w0", 300) == 0
    assert await shop.ask("w1", 300) == 0
    assert await shop.ask("more", 101) > 0


async def test_a_long_line_is_served_in_order_and_told_how_long_it_is(redis: Redis) -> None:
    shop = Shop(redis, tokens=100, slots=3)
    for number in range(3):
        assert await shop.ask(f"c{number}", 10) == 0
    waits = []
    for number in range(130):
        await shop.at(1)
        waits.append(await shop.ask(f"w{number}", 10))
    assert waits[129] > 10 * WINDOW_MS
    assert waits[60] > waits[20] > 0
    for number in range(130):
        await shop.at(1)
        await shop.settle(f"c{number}" if number < 3 else f"w{number - 3}", tokens=0)
        others = {129, min(number + 1, 129), min(number + 70, 129)} - {number}
        assert all([await shop.ask(f"w{other}", 10) > 0 for other in others])
        assert await shop.ask(f"w{number}", 10) == 0


async def test_those_that_are_away_hold_nobody_up_however_many_they_are(shop: Shop) -> None:
    assert await shop.ask("first", 995) == 0
    for number in range(120):
        assert await shop.ask(f"w{number}", 10) > 0
        await shop.scripts.park_quota("llm", f"w{number}", f"task-{number}", delay_ms=60_000, grace_ms=5_000)
    assert await shop.ask("small", 5) == 0
    assert (await shop.stats())[3] == 120


@pytest.mark.parametrize(("used", "left"), [(0, 1_000), (400, 600), (900, 100), (1_500, -500)])
async def test_a_settlement_corrects_in_both_directions_and_once(shop: Shop, used: int, left: int) -> None:
    assert await shop.ask("call", 900) == 0
    await shop.at(5_000)
    assert await shop.settle("call", tokens=used)
    assert not await shop.settle("call", tokens=0)
    assert 1_000 - (await shop.stats())[1] == left
    await shop.at(102 * BUCKET_MS - 5_000)
    assert (await shop.stats())[:2] == (0, 0), "it counts from its grant, not from its settlement"


async def test_a_settlement_after_its_minute_corrects_nothing(shop: Shop) -> None:
    assert await shop.ask("long", 900) == 0
    await shop.at(200 * BUCKET_MS)
    assert await shop.ask("next", 900) == 0
    await shop.settle("long", tokens=0)
    assert (await shop.stats())[:2] == (1, 900)


async def test_a_lost_reply_costs_nothing(shop: Shop) -> None:
    assert await shop.ask("call", 900) == 0
    assert await shop.ask("call", 900) == 0
    assert (await shop.stats())[:2] == (1, 900)


async def test_requests_and_tokens_are_taken_together_or_not_at_all(redis: Redis) -> None:
    shop = Shop(redis, requests=1, tokens=100)
    assert await shop.ask("first", 10) == 0
    assert await shop.ask("no request left", 10) > 0
    assert (await shop.stats())[:2] == (1, 10)
    await shop.settle("no request left")
    assert await shop.ask("no request asked", 90, requests=0) == 0


async def test_slots_are_held_renewed_given_back_and_free_when_their_holder_is_dead(redis: Redis) -> None:
    shop = Shop(redis, slots=2)
    assert [await shop.ask(name) for name in ("alive", "dead")] == [0, 0]
    assert await shop.ask("third") > 0
    await shop.at(LEASE_MS - 1)
    assert await shop.scripts.renew_slots(LEASE_MS, [("llm", "alive"), ("llm", "nobody")]) == [1, 0]
    assert await shop.ask("third") > 0
    await shop.at(2)
    assert await shop.ask("third") == 0
    assert await shop.scripts.renew_slots(LEASE_MS, [("llm", "dead")]) == [0]
    assert await shop.ask("fourth") > 0
    await shop.settle("alive")
    assert await shop.ask("fourth") == 0


async def test_who_fits_is_woken_when_something_is_given_back(redis: Redis) -> None:
    shop = Shop(redis, slots=1)
    await shop.ask("holder")
    for name in ("second", "third"):
        assert await shop.ask(name, worker=f"host:{name}") > 0
    await shop.settle("holder")
    assert await redis.lrange(keys.wake("host:second"), 0, -1) == [b"?second"]
    assert await redis.exists(keys.wake("host:third")) == 0


async def test_who_has_been_woken_is_not_woken_again_until_it_asks(redis: Redis) -> None:
    shop = Shop(redis, tokens=100)
    for name in ("a", "b", "c"):
        assert await shop.ask(name, 30) == 0
    assert await shop.ask("waits", 60, worker="host:w") > 0
    for name in ("a", "b"):
        await shop.settle(name, tokens=0)
    await shop.settle("c", tokens=0)
    assert await redis.lrange(keys.wake("host:w"), 0, -1) == [b"?waits"]
    assert await shop.ask("waits", 60) == 0


async def test_a_refusal_stops_the_key_until_the_reset(shop: Shop) -> None:
    assert await shop.ask("refused", 10) == 0
    await shop.settle("refused", tokens=0, shrink_ms=20_000)
    assert await shop.ask("next", 10) == 20_000
    await shop.at(19_999)
    assert await shop.ask("next", 10) == 1
    await shop.at(1)
    assert await shop.ask("next", 10) == 0


async def test_a_refusal_without_a_reset_halves_the_limits_for_a_minute(redis: Redis) -> None:
    shop = Shop(redis, tokens=1_000)
    for number, left in enumerate((500, 250, 125, 62, 62)):
        assert await shop.ask(f"c{number}", 10) == 0
        await shop.settle(f"c{number}", tokens=0, shrink_ms=0)
        assert await shop.ask(f"too large {number}", left + 1) > 0
        await shop.settle(f"too large {number}")
        assert await shop.ask(f"fits {number}", left) == 0
        await shop.settle(f"fits {number}", tokens=0)
    assert (await shop.stats())[4:] == (1 / 16, shop.now_ms + WINDOW_MS)
    await shop.at(WINDOW_MS)
    assert await shop.ask("whole again", 1_000) == 0


async def test_a_shorter_reset_does_not_undo_a_longer_one(shop: Shop) -> None:
    for name, reset_ms in (("a", 30_000), ("b", 10_000), ("c", 0)):
        await shop.settle(name, shrink_ms=reset_ms)
    assert await shop.ask("next", 10) == 30_000


async def test_a_task_that_was_sent_away_comes_back_to_its_place(shop: Shop) -> None:
    assert await shop.ask("first", 900) == 0
    assert await shop.ask("early", 500) > 0
    assert await shop.scripts.park_quota("llm", "early", "task-1", delay_ms=30_000, grace_ms=5_000)
    assert await shop.ask("small", 100) == 0, "nothing is held back for one that is away"
    await shop.at(1)
    assert await shop.ask("late", 600) > 0
    await shop.settle("first", tokens=0)
    await shop.at(9_000)
    assert await shop.ask("back too late for nobody", 301) > 0
    await shop.settle("back too late for nobody")
    assert await shop.ask("early again", 500, place="task-1") == 0
    assert (await shop.stats())[3] == 1


async def test_a_place_counts_when_its_time_has_come_and_not_for_ever(shop: Shop) -> None:
    assert await shop.ask("first", 900) == 0
    assert await shop.ask("early", 500) > 0
    assert await shop.scripts.park_quota("llm", "early", "task-1", delay_ms=5_000, grace_ms=5_000)
    await shop.settle("first", tokens=0)
    await shop.at(5_000)
    assert await shop.ask("other", 600) > 0
    await shop.at(5_001)
    assert await shop.ask("other", 600) == 0


@pytest.mark.parametrize("step_ms", [-3_600_000, -500, 86_400_000])
async def test_a_clock_that_was_set_does_not_break_the_key(shop: Shop, step_ms: int) -> None:
    assert await shop.ask("before", 900) == 0
    await shop.at(step_ms)
    wait_ms = await shop.ask("after", 900)
    assert (wait_ms == 0) == (step_ms > 0)
    assert (await shop.stats())[1] == 900


async def test_what_is_over_leaves_nothing_behind(redis: Redis) -> None:
    scripts = QuotaScripts(Scripts(redis))
    limits = StoredLimits(10, 10, 1, 100)
    for number in range(2):
        await scripts.reserve_quota(Ask("llm", f"c{number}", "", "", 1, 1), limits, lease_ms=20, patience_ms=20)
    await scripts.settle_quota("llm", "c1", limits, requests=-1, tokens=-1, shrink_ms=10)
    async with asyncio.timeout(10):
        while left := await redis.keys():
            await asyncio.sleep(0.01)
    assert left == []

"""Listeners and the hub: order, no gap, no double, whatever happens to the connection, the log or the reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from app.engine.events import START, Event
from app.engine.hub import EventHub
from app.engine.listeners import MAX_ASIDE, Listener, SlowListener
from app.engine.service import Engine
from app.errors import InvalidInput
from app.store import keys
from app.store.connection import connect
from app.store.embedded import EmbeddedServer
from tests.event_support import append, listening_on, numbers_of, take
from tests.support import PATIENCE_S

U = "user:ada"


@pytest.fixture
async def engine(redis_url: str) -> AsyncIterator[Engine]:
    async with listening_on(redis_url) as engine:
        yield engine


async def until(condition: Callable[[], Awaitable[Any]]) -> None:
    """Wait for something that only Redis can be asked for."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            await asyncio.sleep(0)


async def subscribers(redis: Redis, stream: str) -> int:
    [(_, count)] = await redis.pubsub_numsub(keys.events(stream))
    return int(count)


async def test_a_listener_without_a_last_id_gets_what_comes_from_now_on(engine: Engine, redis: Redis) -> None:
    await append(redis, U, range(3))
    listener = Listener(engine.hub)
    start = await listener.add(U, U)
    assert (start.last_id, start.gap) == (await engine.events.last_id(U), False)
    await append(redis, U, range(3, 6))
    assert numbers_of(await take(listener, 3)) == [3, 4, 5]
    listener.close()


async def test_a_replay_of_several_pages_runs_into_the_live_events(engine: Engine, redis: Redis) -> None:
    await append(redis, U, range(900))
    listener = Listener(engine.hub)
    await listener.add(U, U, START)
    feeding = asyncio.create_task(_feed(redis, U, range(900, 1_200), step=10))
    assert numbers_of(await take(listener, 1_200)) == list(range(1_200))
    await feeding
    listener.close()


async def _feed(redis: Redis, stream: str, numbers: range, step: int) -> None:
    for start in range(numbers.start, numbers.stop, step):
        await append(redis, stream, range(start, start + step))


async def test_what_is_published_between_subscribing_and_reading_comes_once(
    engine: Engine, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_on = engine.events.read_on

    async def published_around(*args: Any) -> Any:
        await append(redis, U, [1])
        page = await read_on(*args)
        await append(redis, U, [2])
        return page

    await append(redis, U, [0])
    listener = Listener(engine.hub)
    with monkeypatch.context() as patch:
        patch.setattr(engine.events, "read_on", published_around)
        # `add` reads once itself, then the replay does: each time one event before, one behind.
        await listener.add(U, U, START)
        events = await take_until(listener, 5)
    assert numbers_of(events) == [0, 1, 2, 1, 2]
    assert [event.key[1] for event in events] == [1, 2, 3, 4, 5]
    listener.close()


async def take_until(listener: Listener, number: int) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(PATIENCE_S):
        while not events or events[-1].key[1] < number:
            events += [item for item in await listener.get() if isinstance(item, Event)]
    return events


async def test_more_live_events_than_fit_aside_during_a_replay_are_read_from_the_log(
    engine: Engine, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await append(redis, U, range(10))
    listener = Listener(engine.hub)
    read_on = engine.events.read_on
    reads = 0

    async def flooded(*args: Any) -> Any:
        nonlocal reads
        reads += 1
        page = await read_on(*args)
        if reads == 2:
            for start in range(10, 10 + 3 * MAX_ASIDE, 10):
                await append(redis, U, range(start, start + 10))
            # All of them have passed the hub when a later message on the same connection has.
            await witness.add("user:bob", "user:bob")
            await append(redis, "user:bob", [0])
            await take(witness, 1)
        return page

    witness = Listener(engine.hub)
    monkeypatch.setattr(engine.events, "read_on", flooded)
    await listener.add(U, U, START)
    assert numbers_of(await take(listener, 10 + 3 * MAX_ASIDE)) == list(range(10 + 3 * MAX_ASIDE))
    listener.close()
    witness.close()


async def test_channels_keep_their_own_order_and_a_note_stands_before_the_first_event(
    engine: Engine, redis: Redis
) -> None:
    await append(redis, U, range(3))
    await append(redis, "task:1", range(3))
    listener = Listener(engine.hub)
    await listener.add(U, U, START)
    await take(listener, 3)
    await listener.add("task:1", "task:1", START)
    listener.put("here it begins")
    items: list[Event | str] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(items) < 4:
            items += await listener.get()
    assert items[0] == "here it begins"
    assert numbers_of(item for item in items[1:] if isinstance(item, Event)) == [0, 1, 2]
    listener.close()


async def test_leaving_and_following_again_at_once_neither_loses_nor_doubles(engine: Engine, redis: Redis) -> None:
    listener = Listener(engine.hub)
    await listener.add(U, U)
    await append(redis, U, range(5))
    seen = (await take_until(listener, 5))[-1]
    for turn in range(20):
        await append(redis, U, [turn])
        listener.remove(U)
        await listener.add(U, U, seen.id)
        [event] = await take(listener, 1)
        assert event.key[1] == seen.key[1] + 1
        seen = event
    listener.close()
    await until(lambda: _is_zero(redis, U))


async def _is_zero(redis: Redis, stream: str) -> bool:
    return await subscribers(redis, stream) == 0


async def test_following_a_channel_that_is_followed_begins_anew(engine: Engine, redis: Redis) -> None:
    await append(redis, U, range(400))
    listener = Listener(engine.hub)
    await listener.add(U, U, START)
    async with asyncio.timeout(PATIENCE_S):
        while len(listener._unread) < 400:
            await asyncio.sleep(0)
    await listener.add(U, U, START)
    await append(redis, U, [400])
    events = await take_until(listener, 401)
    assert numbers_of(events) == list(range(401))
    listener.close()


async def test_listeners_of_one_channel_share_one_subscription(engine: Engine, redis: Redis) -> None:
    first, second = Listener(engine.hub), Listener(engine.hub)
    await asyncio.gather(first.add(U, U), second.add(U, U))
    assert await subscribers(redis, U) == 1
    first.close()
    await append(redis, U, [7])
    [event] = await take(second, 1)
    assert event.data() == {"n": 7}
    third = Listener(engine.hub)
    await third.add(U, U)
    await append(redis, U, [8])
    assert await take(second, 1) == await take(third, 1)
    second.close()
    third.close()
    await until(lambda: _is_zero(redis, U))


async def test_a_thousand_new_channels_are_subscribed_to_with_a_few_commands(engine: Engine, redis: Redis) -> None:
    listeners = [Listener(engine.hub) for _ in range(1_000)]
    before = await _calls(redis, "subscribe")
    await asyncio.gather(*(one.add(f"task:{n}", f"task:{n}") for n, one in enumerate(listeners)))
    assert await _calls(redis, "subscribe") - before <= 20
    for one in listeners:
        one.close()


async def _calls(redis: Redis, command: str) -> int:
    return int((await redis.info("commandstats")).get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def test_a_reader_that_falls_behind_is_over_and_holds_nothing_while_others_go_on(
    engine: Engine, redis: Redis
) -> None:
    slow = Listener(engine.hub, max_unread=50)
    quick = Listener(engine.hub)
    await slow.add(U, U)
    await quick.add(U, U)
    await append(redis, U, [-1])
    await take(slow, 1)  # it is live now
    for start in range(0, 200, 10):
        await append(redis, U, range(start, start + 10))
    assert numbers_of(await take(quick, 201)) == list(range(-1, 200))
    assert str(slow.over.result()) == "more than 50 events or 8388608 bytes behind"
    with pytest.raises(SlowListener):
        await slow.get()
    assert not slow._unread
    slow.close()
    quick.close()


async def test_events_are_bounded_in_bytes_too(engine: Engine, redis: Redis) -> None:
    slow = Listener(engine.hub, max_unread_bytes=10_000)
    await slow.add(U, U)
    await append(redis, U, [-1])
    await take(slow, 1)
    for number in range(11):
        await append(redis, U, [number], padding=1_000)
    async with asyncio.timeout(PATIENCE_S):
        assert "10000 bytes behind" in str(await slow.over)
    slow.close()


async def test_a_burst_does_not_drown_a_reader_that_reads(engine: Engine, redis: Redis) -> None:
    listener = Listener(engine.hub, max_unread=400)
    await listener.add(U, U)
    await append(redis, U, [-1])
    await take(listener, 1)  # it is live now
    # One script, so one burst: hundreds of messages come with one read from the connection.
    await append(redis, U, range(4_000))
    assert numbers_of(await take(listener, 4_000)) == list(range(4_000))
    listener.close()


async def test_a_long_replay_leaves_room_for_live_events_of_other_channels(engine: Engine, redis: Redis) -> None:
    await append(redis, "user:bob", range(300))
    listener = Listener(engine.hub, max_unread=100)
    witness = Listener(engine.hub)
    await witness.add(U, U)
    await listener.add(U, U)
    await append(redis, U, [-1])
    await take(listener, 1)  # it is live now
    await listener.add("user:bob", "user:bob", START)
    async with asyncio.timeout(PATIENCE_S):
        while listener._unread.has_room:
            await asyncio.sleep(0)
    await append(redis, U, range(40))
    await take(witness, 41)
    events = await take(listener, 340)
    assert numbers_of(event for event in events if event.channel == U) == list(range(40))
    assert numbers_of(event for event in events if event.channel == "user:bob") == list(range(300))
    listener.close()
    witness.close()


async def test_leaving_a_channel_makes_room_for_the_replay_of_another(engine: Engine, redis: Redis) -> None:
    for user in ("user:bob", "user:eve"):
        await append(redis, user, range(100))
    listener = Listener(engine.hub, max_unread=20)
    await listener.add("user:bob", "user:bob", START)
    async with asyncio.timeout(PATIENCE_S):
        while listener._unread.has_room:
            await asyncio.sleep(0)
    await listener.add("user:eve", "user:eve", START)
    async with asyncio.timeout(PATIENCE_S):
        while len(listener._room._waiters) < 2:  # type: ignore[attr-defined]  # both replays wait
            await asyncio.sleep(0)
    listener.remove("user:bob")
    assert numbers_of(await take(listener, 100)) == list(range(100))
    listener.close()


async def test_a_log_that_is_cut_during_a_replay_ends_the_listener(engine: Engine, redis: Redis) -> None:
    await append(redis, U, range(400))
    listener = Listener(engine.hub, max_unread=20)
    await listener.add(U, U, START)
    async with asyncio.timeout(PATIENCE_S):
        while listener._unread.has_room:
            await asyncio.sleep(0)
    await redis.lpop(keys.events(U), 300)
    with pytest.raises(SlowListener, match="dropped"):
        await take(listener, 400)
    listener.close()


async def test_a_wrong_id_leaves_nothing_behind(engine: Engine, redis: Redis) -> None:
    listener = Listener(engine.hub)
    with pytest.raises(InvalidInput):
        await listener.add(U, U, "yesterday")
    await until(lambda: _is_zero(redis, U))
    assert engine.hub._streams == {}


async def test_cancelled_subscriptions_leave_nothing_behind(engine: Engine, redis: Redis) -> None:
    for _ in range(50):
        listener = Listener(engine.hub)
        adding = asyncio.create_task(listener.add(U, U, START))
        await asyncio.sleep(0)
        adding.cancel()
        await asyncio.wait({adding})
    async with asyncio.timeout(PATIENCE_S):
        # The last of the fifty is not under way any more when the server has answered all of them.
        while engine.hub._streams or not await _is_zero(redis, U):
            await asyncio.sleep(0)


@pytest.mark.parametrize("cut", ["kill", "connection"])
async def test_nothing_is_lost_or_doubled_when_the_subscription_breaks(own_server: EmbeddedServer, cut: str) -> None:
    async with listening_on(own_server.url) as engine:
        listener = Listener(engine.hub)
        await listener.add(U, U)
        expected = 0
        events: list[Event] = []
        for _ in range(3):
            await append(engine.redis, U, range(expected, expected + 10))
            if cut == "kill":
                await asyncio.to_thread(own_server.restart)
            else:
                await engine.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await append(engine.redis, U, range(expected + 10, expected + 20))
            expected += 20
            events += await take_until(listener, expected)
        assert numbers_of(events) == list(range(60))
        listener.close()


async def test_what_is_wanted_while_redis_is_away_comes_when_it_is_back(own_server: EmbeddedServer) -> None:
    async with listening_on(own_server.url) as engine:
        listener = Listener(engine.hub)
        await listener.add(U, U)
        own_server.kill()
        async with asyncio.timeout(PATIENCE_S):
            while engine.hub.connected:
                await asyncio.sleep(0)
        adding = asyncio.create_task(listener.add("task:1", "task:1"))
        await asyncio.sleep(0)
        await asyncio.to_thread(own_server.start)
        await adding
        await append(engine.redis, "task:1", [1])
        assert [event.channel for event in await take(listener, 1)] == ["task:1"]
        listener.close()


async def test_a_connection_that_says_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and never answers, as behind a firewall that dropped the connection."""
    monkeypatch.setattr("app.engine.hub.SILENCE_S", 0.02)
    accepted: asyncio.Queue[None] = asyncio.Queue()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"+OK\r\n+OK\r\n")  # to CLIENT SETINFO, twice
        accepted.put_nowait(None)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(deaf, "127.0.0.1", 0)
    async with server:
        redis = connect(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        hub = EventHub(redis, log=None)  # type: ignore[arg-type]  # nobody reads a log here
        running = asyncio.create_task(hub.run())
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(3):
                await accepted.get()
        running.cancel()
        await asyncio.wait({running})
        await redis.aclose()

"""The event log: ids, replay, gaps, and the form that clients read."""

from __future__ import annotations

import pytest
from pydantic_core import from_json
from redis.asyncio import Redis

from app.engine.events import START, Event, EventLog, Start, event_key, parse_message, stream_name
from app.errors import InvalidInput
from app.store import keys
from app.store.scripts import CHANNEL_LENGTH, Scripts
from tests.event_support import append, numbers_of


@pytest.fixture
def log(redis: Redis) -> EventLog:
    return EventLog(Scripts(redis))


async def test_events_are_read_in_order_from_any_point(redis: Redis, log: EventLog) -> None:
    await append(redis, "user:ada", range(5))
    events = await log.read("user:ada", "user:ada")
    assert numbers_of(events) == [0, 1, 2, 3, 4]
    assert [event.key[1] for event in events] == [1, 2, 3, 4, 5]
    assert numbers_of(await log.read("user:ada", "user:ada", events[2].id)) == [3, 4]
    assert numbers_of(await log.read("user:ada", "user:ada", events[0].id, limit=2)) == [1, 2]
    assert await log.read("user:ada", "user:ada", events[4].id) == []


async def test_an_event_is_one_line_of_json_with_its_payload_as_stored() -> None:
    event = parse_message('project:a "b"', b'1763760000123-7 agent_progress t1 {"step":  "x","n":1.50}')
    assert "\n" not in event.text
    assert '"payload":{"step":  "x","n":1.50}}' in event.text
    assert from_json(event.text) == {
        "type": "agent_progress",
        "id": "1763760000123-7",
        "channel": 'project:a "b"',
        "task_id": "t1",
        "at": "2025-11-21T21:20:00.123Z",
        "payload": {"step": "x", "n": 1.5},
    }


async def test_an_event_of_no_task_names_none() -> None:
    assert "task_id" not in from_json(Event("1-1", "user:ada", "note", "", b"{}").text)


async def test_a_task_id_may_hold_blanks_as_arqs_clients_may_choose_them() -> None:
    event = parse_message("user:ada", b'5-1 note my own id {"a b": {}}')
    assert (event.task_id, event.payload) == ("my own id", b'{"a b": {}}')


async def test_a_reader_starts_where_it_asks_to(redis: Redis, log: EventLog) -> None:
    assert await log.start("user:ada", None) == Start(START, gap=False)
    await append(redis, "user:ada", range(3))
    events = await log.read("user:ada", "user:ada")
    assert await log.start("user:ada", None) == Start(events[2].id, gap=False)
    assert await log.start("user:ada", events[0].id) == Start(events[0].id, gap=False)
    assert await log.start("user:ada", START) == Start(START, gap=False)


async def test_a_cut_log_says_so_and_still_gives_all_it_keeps(redis: Redis, log: EventLog) -> None:
    for _ in range(12):
        await append(redis, "user:ada", range(1_000))
    kept = await redis.llen(keys.events("user:ada"))
    assert CHANNEL_LENGTH <= kept < 12_000
    newest = event_key(await log.last_id("user:ada"))
    for seen in (START, f"{newest[0]}-5", "1-1"):
        assert (await log.start("user:ada", seen)).gap
    # What was seen may be of the same millisecond as what is kept.
    first = (await log.read("user:ada", "user:ada"))[0]
    await redis.lpop(keys.events("user:ada"), 10)
    events, gap = await log.read_on("user:ada", "user:ada", first.key, 5)
    assert gap
    assert [event.key[1] for event in events] == [first.key[1] + step for step in range(10, 15)]


async def test_the_event_before_the_first_kept_one_is_no_gap(redis: Redis, log: EventLog) -> None:
    await append(redis, "user:ada", range(3))
    seen = (await log.read("user:ada", "user:ada"))[0]
    await redis.lpop(keys.events("user:ada"))
    events, gap = await log.read_on("user:ada", "user:ada", seen.key)
    assert (numbers_of(events), gap) == ([1, 2], False)


async def test_a_log_that_is_gone_is_a_gap_and_one_begun_anew_is_read_whole(redis: Redis, log: EventLog) -> None:
    await append(redis, "user:ada", range(3))
    seen = await log.last_id("user:ada")
    await redis.delete(keys.events("user:ada"))
    assert await log.start("user:ada", seen) == Start(START, gap=True)


async def test_an_id_ahead_of_the_log_starts_at_its_end(redis: Redis, log: EventLog) -> None:
    await append(redis, "user:ada", range(3))
    last = await log.last_id("user:ada")
    assert await log.start("user:ada", "999999999999999-1") == Start(last, gap=True)


@pytest.mark.parametrize("bad", ["", "x", "1-", "-1", "1-1-1", "１-１", "1 -1", "9" * 16, "1-1\n"])
async def test_what_is_no_event_id_is_refused(bad: str) -> None:
    with pytest.raises(InvalidInput, match="last_event_id"):
        event_key(bad)


def test_a_project_is_another_stream_for_each_user() -> None:
    assert stream_name("project:my project", "ada") != stream_name("project:my project", "bob")
    assert stream_name("project:b:c", "a") != stream_name("project:c", "a:b")
    assert stream_name("user:ada", "bob") == "user:ada"


@pytest.mark.parametrize("bad", ["", "task", "task:", ":x", "Task:x", "task:a\nb", "task:" + "x" * 257])
def test_what_is_no_channel_is_refused(bad: str) -> None:
    with pytest.raises(InvalidInput, match="channel"):
        stream_name(bad, "ada")

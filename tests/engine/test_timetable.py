"""Schedules as they are declared, and what is due of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.registry import Catalogue, task
from app.engine.timetable import LATE_S, LOOK_BACK_S, MAX_JITTER_S, Entry, Schedule, Tick, Timetable
from app.errors import NotFound, SettingsError

BERLIN = ZoneInfo("Europe/Berlin")
NOON_MS = 1_795_348_800_000
"""2026-11-22, 12:00 UTC."""


class Count(BaseModel):
    n: int = 0


@task("test.count")
async def count(ctx: TaskContext, params: Count) -> int:
    return params.n


CATALOGUE = Catalogue((count,), ("default",))


def timetable(*schedules: Schedule) -> Timetable:
    return Timetable(schedules, CATALOGUE, BERLIN)


def entry(cron: str = "* * * * *", **options: object) -> Entry:
    return timetable(Schedule("every", "test.count", cron=cron, **options))["every"]  # type: ignore[arg-type]


def ms(seconds: float) -> int:
    """So many seconds after noon, Unix ms."""
    return NOON_MS + int(seconds * 1000)


def undecided(subject: Entry, seen_s: float, now_s: float) -> list[tuple[int, str]]:
    """What is to become of ticks, by seconds after noon."""
    return [(tick.at_s - NOON_MS // 1000, tick.outcome) for tick in subject.undecided(ms(seen_s), ms(now_s))]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Schedule("Every", "test.count", cron="* * * * *"), "expected a name"),
        (Schedule("every day", "test.count", cron="* * * * *"), "expected a name"),
        (Schedule("every", "test.nothing", cron="* * * * *"), "no task is called 'test.nothing'"),
        (Schedule("every", "test.count", cron="* * * * *", params={"n": "x"}), "params/n"),
        (Schedule("every", "test.count", cron="61 * * * *"), "minute '61'"),
        (Schedule("every", "test.count", cron="* * * * *", timezone="Mars/Olympus"), "timezone='Mars/Olympus'"),
        (Schedule("every", "test.count", cron="* * * * *", timezone="../etc"), "timezone='../etc'"),
        (Schedule("every", "test.count", cron="* * * * *", jitter_s=-1), "jitter_s=-1"),
        (Schedule("every", "test.count", cron="* * * * *", jitter_s=MAX_JITTER_S + 1), "jitter_s=86401"),
        (Schedule("every", "test.count", cron="* * * * *", jitter_s=float("nan")), "jitter_s=nan"),
        (Schedule("every", "test.count", cron="* * * * *", catch_up="all"), "catch_up='all'"),  # type: ignore[arg-type]
        (Schedule("every", "test.count", cron="* * * * *", user_id=""), "user_id"),
    ],
)
def test_a_wrong_declaration_is_refused_by_name(wrong: Schedule, words: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        timetable(wrong)
    assert f"schedule {wrong.name!r}" in str(refusal.value)
    assert words in str(refusal.value)


def test_two_schedules_of_one_name_are_refused() -> None:
    with pytest.raises(SettingsError, match="'every' is declared twice"):
        timetable(*[Schedule("every", "test.count", cron="* * * * *")] * 2)


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(NotFound, match="known are every"):
        timetable(Schedule("every", "test.count", cron="* * * * *"))["other"]


def test_a_schedule_without_a_zone_is_meant_in_that_of_the_settings() -> None:
    assert entry().zone == BERLIN
    assert entry(timezone="Asia/Tokyo").zone == ZoneInfo("Asia/Tokyo")
    assert entry().definition != entry(timezone="Asia/Tokyo").definition
    assert entry().definition != entry("*/2 * * * *").definition


@pytest.mark.parametrize("catch_up", ["skip", "once"])
@pytest.mark.parametrize(
    ("seen_s", "now_s", "expected"),
    [
        (0, 0, []),
        (-1, -0.001, []),
        (-1, 0, [(0, "fired")]),
        (-0.001, 0, [(0, "fired")]),
        (0, 59.999, []),
        (0, 60, [(60, "fired")]),
        (0, 60 + LATE_S - 0.001, [(60, "fired")]),
        (60, 60 + LATE_S, []),
        (100_000, 60, []),  # the server's clock was set back
    ],
)
def test_a_tick_that_is_not_late_is_fired(
    catch_up: str, seen_s: float, now_s: float, expected: list[tuple[int, str]]
) -> None:
    assert undecided(entry(catch_up=catch_up), seen_s, now_s) == expected


@pytest.mark.parametrize(
    ("catch_up", "now_s", "expected"),
    [
        ("skip", 100, [(60, "missed")]),
        ("once", 100, [(60, "caught_up")]),
        ("skip", 3_600 + LATE_S + 1, [(3_600, "missed")]),
        ("once", 3_600 + LATE_S + 1, [(3_600, "caught_up")]),
        ("skip", 3_605, [(3_540, "missed"), (3_600, "fired")]),
        ("once", 3_605, [(3_600, "fired")]),  # which stands for those before
    ],
)
def test_what_was_missed_is_forgotten_or_fired_as_one(
    catch_up: str, now_s: float, expected: list[tuple[int, str]]
) -> None:
    assert undecided(entry(catch_up=catch_up), 0, now_s) == expected


def test_what_was_missed_long_ago_is_not_caught_up() -> None:
    weekly = entry("0 13 * * SUN", catch_up="once")  # noon in UTC
    seen_s = -1.0
    assert undecided(weekly, seen_s, LOOK_BACK_S - 1) == [(0, "caught_up")]
    assert undecided(weekly, seen_s, LOOK_BACK_S - 1 + 1.001) == [(LOOK_BACK_S, "fired")]
    yearly = entry("0 13 22 11 *", catch_up="once")
    assert undecided(yearly, seen_s, LOOK_BACK_S + 1) == []


@given(
    seen_s=st.integers(-100_000, 100_000),
    now_s=st.floats(-100_000, 100_000),
    cron=st.sampled_from(["* * * * * *", "*/7 * * * * *", "* * * * *", "0 * * * *", "0 3 * * *"]),
    catch_up=st.sampled_from(["skip", "once"]),
)
def test_ticks_are_decided_in_order_and_all_of_them_at_once(
    seen_s: int, now_s: float, cron: str, catch_up: str
) -> None:
    subject = entry(cron, catch_up=catch_up)
    ticks = subject.undecided(ms(seen_s), ms(now_s))
    assert all(ms(seen_s) < tick.at_s * 1000 <= ms(now_s) for tick in ticks)
    assert [tick.at_s for tick in ticks] == sorted({tick.at_s for tick in ticks})
    assert len([tick for tick in ticks if tick.outcome != "fired"]) <= 1
    assert len(ticks) <= LATE_S + 2
    if ticks:
        # A worker that looks again finds nothing left, nor does it if it comes to the same in two looks.
        assert subject.undecided(ticks[-1].at_s * 1000, ms(now_s)) == []
    if len(ticks) > 1:
        assert subject.undecided(ticks[0].at_s * 1000, ms(now_s)) == ticks[1:]


def test_jitter_is_the_same_for_all_workers_and_another_for_each_tick() -> None:
    ticks = range(NOON_MS // 1000, NOON_MS // 1000 + 6_000, 60)
    drawn = [entry(jitter_s=30).starts_at(at_s) - datetime.fromtimestamp(at_s, UTC) for at_s in ticks]
    assert drawn == [entry(jitter_s=30).starts_at(at_s) - datetime.fromtimestamp(at_s, UTC) for at_s in ticks]
    assert all(timedelta(0) <= delay < timedelta(seconds=30) for delay in drawn)
    assert len(set(drawn)) > 90
    assert max(drawn) - min(drawn) > timedelta(seconds=20)
    assert entry().starts_at(ticks[0]) == datetime.fromtimestamp(ticks[0], UTC)


def test_the_task_of_a_tick_is_the_declared_one() -> None:
    subject = entry(params={"n": 3}, jitter_s=10)
    made = subject.submission(NOON_MS // 1000)
    assert (made.task, made.params, made.tags) == ("test.count", {"n": 3}, ("schedule:every",))
    assert made.run_at == subject.starts_at(NOON_MS // 1000)
    assert subject.submission(None).run_at is None


def test_a_tick_says_when_and_what() -> None:
    assert entry().undecided(ms(-1), ms(0)) == [Tick(NOON_MS // 1000, "fired")]

"""When a cron expression is due, in zones whose clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.engine.cron import Cron, all_due, last_due, moment_of, next_due

ZONES = (
    *("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Africa/Casablanca", "Atlantic/Azores"),
    *("Australia/Lord_Howe", "America/Havana", "Africa/Cairo", "Pacific/Chatham", "America/Santiago", "Pacific/Apia"),
)
"""Among them clocks that change by half an hour, at midnight, against the seasons, and one that skipped a day."""
HOUR_S = 3_600


def seconds(text: str) -> int:
    """A moment, written in RFC 3339."""
    return int(datetime.fromisoformat(text).timestamp())


def texts(zone: str, moments: list[int]) -> list[str]:
    """Moments as the clocks of a zone show them."""
    return [datetime.fromtimestamp(moment, ZoneInfo(zone)).isoformat() for moment in moments]


def due(cron: str, zone: str, since: str, until: str) -> list[str]:
    """When an expression is due between two moments."""
    return texts(zone, list(all_due(Cron.parse(cron), ZoneInfo(zone), seconds(since), seconds(until))))


@pytest.mark.parametrize(
    ("cron", "after", "expected"),
    [
        ("0 3 * * *", "2026-11-22T03:00:00", "2026-11-23T03:00:00"),
        ("0 3 * * *", "2026-11-22T02:59:59", "2026-11-22T03:00:00"),
        ("* * * * * *", "2026-11-22T02:59:59", "2026-11-22T03:00:00"),
        ("*/15 * * * *", "2026-11-22T03:46:00", "2026-11-22T04:00:00"),
        ("5/20 8-18/5 * * *", "2026-11-22T08:45:00", "2026-11-22T13:05:00"),
        ("30 10 0 * * *", "2026-11-22T00:10:00", "2026-11-22T00:10:30"),
        ("0 9 * * mon-fri", "2026-11-20T09:00:00", "2026-11-23T09:00:00"),
        ("0 9 * * 7", "2026-11-20T09:00:00", "2026-11-22T09:00:00"),
        ("0 0 1 jan,JUL *", "2026-11-20T09:00:00", "2027-01-01T00:00:00"),
        ("0 0 31 * *", "2026-11-20T09:00:00", "2026-12-31T00:00:00"),
        ("0 0 29 2 *", "2026-11-20T09:00:00", "2028-02-29T00:00:00"),
        ("0 0 29 2 */7", "2096-03-01T00:00:00", "2128-02-29T00:00:00"),
        ("0 0 13 * FRI", "2026-11-21T00:00:00", "2026-11-27T00:00:00"),  # one of the two is enough
        ("0 0 13 * */5", "2026-11-21T00:00:00", "2026-12-13T00:00:00"),  # Sundays and Fridays: both must match
    ],
)
def test_an_expression_is_due_where_crontab_says(cron: str, after: str, expected: str) -> None:
    found = next_due(Cron.parse(cron), ZoneInfo("UTC"), seconds(after + "+00:00"))
    assert found == seconds(expected + "+00:00")


@pytest.mark.parametrize(
    ("cron", "word"),
    [
        ("", "5 fields"),
        ("* * * *", "5 fields"),
        ("* * * * * * *", "5 fields"),
        ("* " * 200, "5 fields"),
        ("60 * * * *", "minute '60'"),
        ("* 24 * * *", "hour '24'"),
        ("* * 0 * *", "day of the month '0'"),
        ("* * * 13 *", "month '13'"),
        ("* * * * 8", "day of the week '8'"),
        ("* * * * MOON", "SUN to SAT"),
        ("5-3 * * * *", "low to high"),
        ("*/0 * * * *", "step"),
        ("*/60 * * * *", "step"),
        ("*/x * * * *", "step"),
        ("1,,2 * * * *", "minute ''"),
        ("-1 * * * *", "minute '-1'"),
        ("٣ * * * *", "minute"),
        ("0 0 30 2 *", "a day that exists"),
    ],
)
def test_what_is_wrong_with_an_expression_is_said(cron: str, word: str) -> None:
    with pytest.raises(ValueError, match="cron") as refusal:
        Cron.parse(cron)
    assert word in str(refusal.value)


@pytest.mark.parametrize("cron", ["30 2 * * *", "*/20 2 * * *", "* * 2 * * *", "0 2,3 * * *", "59 59 2 * * *"])
def test_a_time_that_the_clock_skips_is_due_once_after_the_gap(cron: str) -> None:
    found = due(cron, "Europe/Berlin", "2026-03-29T01:59:59+01:00", "2026-03-29T03:19:59+02:00")
    assert found == ["2026-03-29T03:00:00+02:00"]


def test_a_time_that_the_clock_shows_twice_is_due_the_first_time() -> None:
    assert due("*/30 2 * * *", "Europe/Berlin", "2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00") == [
        "2026-10-25T02:00:00+02:00",
        "2026-10-25T02:30:00+02:00",
    ]


def test_a_day_that_the_clock_skips_is_made_up_for_at_its_end() -> None:
    found = due("0 3,9 * * *", "Pacific/Apia", "2011-12-29T09:00:00-10:00", "2011-12-31T03:00:00+14:00")
    assert found == ["2011-12-31T00:00:00+14:00", "2011-12-31T03:00:00+14:00"]


@pytest.mark.parametrize(
    ("since", "until", "count"),
    [
        ("2026-03-29T00:00:00+01:00", "2026-03-30T00:00:00+02:00", 23),
        ("2026-10-25T00:00:00+02:00", "2026-10-26T00:00:00+01:00", 25),
        ("2026-06-01T00:00:00+02:00", "2026-06-02T00:00:00+02:00", 24),
    ],
)
def test_every_hour_means_hours_that_really_pass(since: str, until: str, count: int) -> None:
    found = [seconds(text) for text in due("30 * * * *", "Europe/Berlin", since, until)]
    assert len(found) == count
    assert {second - first for first, second in pairwise(found)} == {HOUR_S}


# Against definitions that look at every single moment.


def clock_times(cron: Cron, zone: ZoneInfo, since_s: int, until_s: int) -> set[int]:
    """By definition: what each time on the clock means, whether it is shown or not."""
    found = set()
    wall = datetime.fromtimestamp(since_s, zone).replace(tzinfo=None) - timedelta(days=2)
    end = datetime.fromtimestamp(until_s, zone).replace(tzinfo=None) + timedelta(days=2)
    wall = wall.replace(second=0)
    while wall <= end:
        if cron.matches(wall):
            aware = wall.replace(tzinfo=zone)
            there = aware.astimezone(UTC).astimezone(zone)
            moment = int(aware.timestamp())
            if there.replace(tzinfo=None) != wall:
                # It is skipped: back, minute by minute, to the first one behind the gap.
                after = there.utcoffset()
                while datetime.fromtimestamp(moment - 60, zone).utcoffset() == after:
                    moment -= 60
            found.add(moment)
        wall += timedelta(minutes=1)
    return {moment for moment in found if since_s < moment <= until_s}


def shown_times(cron: Cron, zone: ZoneInfo, since_s: int, until_s: int) -> set[int]:
    """By definition: each moment at which the clock shows a time of the expression."""
    return {
        moment
        for moment in range(since_s + 60, until_s + 60, 60)
        if moment <= until_s and cron.matches(datetime.fromtimestamp(moment, zone).replace(tzinfo=None))
    }


def fields(low: int, high: int) -> st.SearchStrategy[str]:
    numbers = st.integers(low, high)
    return st.one_of(
        st.just("*"),
        st.integers(1, high).map(lambda step: f"*/{step}"),
        st.lists(numbers, min_size=1, max_size=3).map(lambda values: ",".join(map(str, values))),
        st.tuples(numbers, numbers).map(lambda ends: f"{min(ends)}-{max(ends)}"),
    )


hours = st.one_of(st.just("*"), st.sampled_from(["0", "1", "2", "23", "0-3", "*/2", "1,2,23"]), fields(0, 23))
expressions = st.tuples(
    fields(0, 59), hours, st.just("*") | fields(1, 31), st.just("*"), st.just("*") | fields(0, 7)
).map(" ".join)
moments = st.one_of(
    # Around changes of the clock in these zones, and anywhere.
    st.tuples(
        st.sampled_from(
            [
                *("2026-03-29T01:00Z", "2026-10-25T01:00Z", "2026-03-08T07:00Z", "2026-11-01T06:00Z"),
                *("2026-04-04T15:00Z", "2026-10-03T15:30Z", "2026-03-08T05:00Z", "2026-11-01T05:00Z"),
                *("2026-04-23T22:00Z", "2026-10-29T21:00Z", "2026-02-15T02:00Z", "2026-04-05T03:00Z"),
                *("2026-09-06T04:00Z", "2011-12-30T10:00Z"),
            ]
        ),
        st.integers(-1_500, 1_500),
    ).map(lambda drawn: seconds(drawn[0].replace("Z", ":00+00:00")) + 60 * drawn[1]),
    st.integers(seconds("2020-01-01T00:00:00+00:00") // 60, seconds("2035-01-01T00:00:00+00:00") // 60).map(
        lambda minutes: minutes * 60
    ),
)


@given(text=expressions, zone=st.sampled_from(ZONES), since_s=moments, minutes=st.integers(1, 1_800))
@example("45 * * * *", "Australia/Lord_Howe", seconds("2026-04-04T14:50:00+00:00"), 200)
@example("30 * 24 10 *", "Atlantic/Azores", seconds("2026-10-25T00:50:00+00:00"), 200)
@example("0 12 * * *", "Pacific/Apia", seconds("2011-12-30T09:00:00+00:00"), 200)
@settings(max_examples=150, deadline=None)
def test_it_is_due_exactly_when_the_definition_says(text: str, zone: str, since_s: int, minutes: int) -> None:
    try:
        cron = Cron.parse(text)
    except ValueError:
        return  # a day that does not exist
    until_s = since_s + minutes * 60
    by_definition = shown_times if cron.every_hour else clock_times
    expected = sorted(by_definition(cron, ZoneInfo(zone), since_s, until_s))
    assert list(all_due(cron, ZoneInfo(zone), since_s, until_s)) == expected
    assert last_due(cron, ZoneInfo(zone), since_s, until_s) == (expected[-1] if expected else None)


@given(text=expressions, zone=st.sampled_from(ZONES), after_s=moments, early_s=st.integers(0, 200_000))
@settings(max_examples=150, deadline=None)
def test_nothing_is_due_between_a_moment_and_the_next(text: str, zone: str, after_s: int, early_s: int) -> None:
    try:
        cron = Cron.parse(text)
    except ValueError:
        return
    found = next_due(cron, ZoneInfo(zone), after_s)
    assert found is not None
    assert found > after_s
    between = after_s + early_s % (found - after_s)
    assert next_due(cron, ZoneInfo(zone), between) == found
    assert last_due(cron, ZoneInfo(zone), after_s, found) == found
    assert last_due(cron, ZoneInfo(zone), after_s, found - 1) is None


@given(wall=st.datetimes(datetime(1975, 1, 1), datetime(2036, 1, 1)), zone=st.sampled_from(ZONES))
def test_a_time_on_the_clock_is_the_moment_it_is_first_shown(wall: datetime, zone: str) -> None:
    wall = wall.replace(microsecond=0)
    moment = moment_of(wall, ZoneInfo(zone))
    shown = datetime.fromtimestamp(moment, ZoneInfo(zone))
    assert shown.fold == 0
    assert shown.replace(tzinfo=None) >= wall
    just_before = datetime.fromtimestamp(moment - 1, ZoneInfo(zone)).replace(tzinfo=None)
    assert just_before < wall

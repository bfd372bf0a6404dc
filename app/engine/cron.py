"""Cron expressions in a time zone: when a schedule is due. Pure, and the same on every host.

An expression is five fields, as crontab(5) has them, or six with seconds in front:

    [second] minute hour day-of-month month day-of-week        0 3 * * MON-FRI

A field is `*`, a value, a range `a-b`, each also with a step (`*/15`, `8-18/2`), or several of these separated by
commas. Months and days of the week have English names too (`JAN`, `SUN`); Sunday is 0 and 7. Where both day fields are
given, a day that matches one of them is enough; where one begins with `*`, both must match.

What a change of the clock does depends on the hour field:

- It names hours: the schedule means a time on the clock. A time that the clock skips is due once, at the first moment
  after the gap, whatever else is due there. A time that the clock shows twice is due the first time only.
- It is `*`: the schedule means elapsed time. Every hour that really passes counts, also the one that the clock shows a
  second time; one that the clock skips has not passed, and nothing of it is made up for.

Moments are Unix time in whole seconds; the server's clock is compared with them, never that of a host.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
MAX_LENGTH = 200
HORIZON_DAYS = 41 * 366
"""How far ahead a day is looked for. A leap day on one day of the week comes every 28 years, or after 40 where a
century lies between; what has not come by then never comes."""
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


_FIELDS = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of the month", 1, 31),
    _Field("month", 1, 12, MONTHS),
    _Field("day of the week", 0, 7, WEEKDAYS),
)


@dataclass(frozen=True, slots=True)
class Cron:
    """A parsed expression. The values of each field are sorted; days of the week are 0 (Sunday) to 6."""

    text: str
    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    both_days: bool
    """Whether a day must match both day fields."""
    every_hour: bool
    """Whether the expression means elapsed time rather than times on the clock."""

    @classmethod
    def parse(cls, text: str) -> Cron:
        """Read an expression. Raises ValueError that names the field, the value and what is expected."""
        parts = text.upper().split() if len(text) <= MAX_LENGTH else []
        if len(parts) not in (5, 6):
            raise ValueError(f"cron {text[:MAX_LENGTH]!r}: expected 5 fields, or 6 with seconds in front")
        parts = ["0", *parts] if len(parts) == 5 else parts
        seconds, minutes, hours, days, months, weekdays = (
            _parse(field, part) for field, part in zip(_FIELDS, parts, strict=True)
        )
        cron = cls(
            text=text,
            seconds=tuple(sorted(seconds)),
            minutes=tuple(sorted(minutes)),
            hours=tuple(sorted(hours)),
            days=frozenset(days),
            months=frozenset(months),
            weekdays=frozenset(day % 7 for day in weekdays),
            both_days=parts[3].startswith("*") or parts[5].startswith("*"),
            every_hour=parts[2] == "*",
        )
        if cron.next_wall(datetime(2000, 1, 1)) is None:
            raise ValueError(f"cron {text!r}: expected a day that exists")
        return cron

    def matches(self, wall: datetime) -> bool:
        """Whether a time on the clock (naive, whole seconds) is one of the expression's."""
        return (
            wall.second in self.seconds
            and wall.minute in self.minutes
            and wall.hour in self.hours
            and self._is_day(wall.date())
        )

    def next_wall(self, wall: datetime) -> datetime | None:
        """The first time on the clock, at or after `wall` (naive, whole seconds), that matches; None: there is none."""
        time = self._time_from(wall.hour, wall.minute, wall.second)
        day: date | None = wall.date()
        if time is None or not self._is_day(wall.date()):
            time = (self.hours[0], self.minutes[0], self.seconds[0])
            day = self._day_after(wall.date())
        return None if day is None else datetime(day.year, day.month, day.day, *time)

    def _time_from(self, hour: int, minute: int, second: int) -> tuple[int, int, int] | None:
        if hour in self.hours:
            if minute in self.minutes and second <= self.seconds[-1]:
                return hour, minute, self.seconds[bisect_left(self.seconds, second)]
            if minute < self.minutes[-1]:
                return hour, self.minutes[bisect_left(self.minutes, minute + 1)], self.seconds[0]
        if hour < self.hours[-1]:
            return self.hours[bisect_left(self.hours, hour + 1)], self.minutes[0], self.seconds[0]
        return None

    def _day_after(self, day: date) -> date | None:
        last = min(day.toordinal() + HORIZON_DAYS, date.max.toordinal())
        number = day.toordinal() + 1
        while number <= last:
            day = date.fromordinal(number)
            if day.month not in self.months:
                number = _first_of_next_month(day)
            elif self._is_day(day):
                return day
            else:
                number += 1
        return None

    def _is_day(self, day: date) -> bool:
        in_month, in_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return day.month in self.months and ((in_month and in_week) if self.both_days else (in_month or in_week))


def _first_of_next_month(day: date) -> int:
    return (day.replace(day=28) + timedelta(days=4)).replace(day=1).toordinal()


def _parse(field: _Field, text: str) -> set[int]:
    values: set[int] = set()
    for part in text.split(","):
        values.update(_values(field, part))
    return values


def _values(field: _Field, part: str) -> range:
    span, slash, step = part.partition("/")
    if slash and not (step.isascii() and step.isdigit() and 1 <= int(step) <= field.high):
        raise ValueError(f"cron: {field.name} {part!r}: expected a step of 1 to {field.high}")
    if span == "*":
        # Sunday has two numbers; a star counts it once.
        return range(field.low, (6 if field.high == 7 else field.high) + 1, int(step or 1))
    first, dash, last = span.partition("-")
    low = _value(field, first, part)
    high = _value(field, last, part) if dash else (field.high if slash else low)
    if high < low:
        raise ValueError(f"cron: {field.name} {part!r}: expected a range from low to high")
    return range(low, high + 1, int(step or 1))


def _value(field: _Field, text: str, part: str) -> int:
    if text in field.names:
        return field.names.index(text) + field.low
    if text.isascii() and text.isdigit() and len(text) <= 2 and field.low <= int(text) <= field.high:
        return int(text)
    names = f" or {field.names[0]} to {field.names[-1]}" if field.names else ""
    raise ValueError(f"cron: {field.name} {part!r}: expected {field.low} to {field.high}{names}")


def next_due(cron: Cron, zone: ZoneInfo, after_s: int) -> int | None:
    """The first moment after `after_s` at which the expression is due; None: there is none."""
    if cron.every_hour:
        return _next_elapsed(cron, zone, after_s)
    wall = _wall(zone, after_s)
    while True:
        found = cron.next_wall(wall + timedelta(seconds=1))
        if found is None:
            return None
        due_s = moment_of(found, zone)
        # What the clock shows for the second time was due the first time.
        if due_s > after_s:
            return due_s
        wall = found


def last_due(cron: Cron, zone: ZoneInfo, since_s: int, until_s: int) -> int | None:
    """The last moment after `since_s`, and not after `until_s`, at which it is due; None: there is none."""
    found = next_due(cron, zone, since_s)
    if found is None or found > until_s:
        return None
    low, high = since_s, until_s  # due in (low, until_s], and not in (high, until_s]
    while high - low > 1:
        middle = (low + high) // 2
        later = next_due(cron, zone, middle)
        if later is not None and later <= until_s:
            low, found = middle, later
        else:
            high = middle
    return found


def all_due(cron: Cron, zone: ZoneInfo, since_s: int, until_s: int) -> Iterator[int]:
    """Every moment after `since_s`, and not after `until_s`, at which it is due, in order."""
    due_s = next_due(cron, zone, since_s)
    while due_s is not None and due_s <= until_s:
        yield due_s
        due_s = next_due(cron, zone, due_s)


def moment_of(wall: datetime, zone: ZoneInfo) -> int:
    """When the clocks of a zone show a time: the first time they do, or the first moment after the gap it lies in."""
    before, after = (_offset_s(wall.replace(tzinfo=zone, fold=fold)) for fold in (0, 1))
    naive_s = int(wall.replace(tzinfo=UTC).timestamp())
    if after <= before:
        return naive_s - before
    # The time lies in a gap: the clock changed between these two, from the one offset to the other.
    return _change(zone, naive_s - after, naive_s - before)


def _next_elapsed(cron: Cron, zone: ZoneInfo, after_s: int) -> int | None:
    # From change to change of the clock: between two of them it runs as time does.
    at_s = after_s + 1
    while True:
        wall = _wall(zone, at_s)
        found = cron.next_wall(wall)
        if found is None:
            return None
        due_s = at_s + int((found - wall).total_seconds())
        # No zone changes its offset there and back within a day.
        soon_s = min(due_s, at_s + DAY_S)
        if _offset_at(zone, at_s) != _offset_at(zone, soon_s):
            at_s = _change(zone, at_s, soon_s)
        elif soon_s == due_s:
            return due_s
        else:
            # No clock goes back so far that it would show a time of the expression again before this.
            at_s = max(soon_s, moment_of(found - timedelta(days=1), zone))


def _change(zone: ZoneInfo, low: int, high: int) -> int:
    """The first moment with the offset of `high`; at `low` it is another."""
    offset = _offset_at(zone, high)
    while high - low > 1:
        middle = (low + high) // 2
        if _offset_at(zone, middle) == offset:
            high = middle
        else:
            low = middle
    return high


def _offset_at(zone: ZoneInfo, moment_s: int) -> int:
    return _offset_s(datetime.fromtimestamp(moment_s, zone))


def _offset_s(aware: datetime) -> int:
    offset = aware.utcoffset()
    assert offset is not None
    return int(offset.total_seconds())


def _wall(zone: ZoneInfo, moment_s: int) -> datetime:
    return datetime.fromtimestamp(moment_s, zone).replace(tzinfo=None, fold=0)

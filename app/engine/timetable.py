"""Which tasks start by the clock: schedules as they are declared, and what is due of them. Pure.

    SCHEDULES = (
        Schedule("signals.nightly", "signals.consolidate", cron="0 3 * * *", timezone="Europe/Berlin", catch_up="once"),
    )

When an expression is due, also while the clocks change, is in `app/engine/cron.py`; how a tick becomes one task, over
any number of workers, in `app/engine/schedules.py`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

from app.engine.cron import Cron, all_due, last_due, next_due
from app.engine.registry import Catalogue
from app.engine.submissions import LABEL, Submission, validated
from app.errors import NightshiftError, NotFound, SettingsError

SCHEDULE_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,99}")
SCHEDULE_USER = "schedules"
"""Who owns the tasks of a schedule that names nobody."""
MAX_JITTER_S = 86_400
LATE_S = 30
"""A tick is fired by any worker that looks within this time; after it, it is missed, and the catch-up policy
decides."""
LOOK_BACK_S = 7 * 86_400
"""What was missed before is not caught up."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A task that starts by the clock.

    `cron` has five fields, or six with seconds in front, meant in the IANA zone `timezone` (default:
    `NIGHTSHIFT_TIMEZONE`). `params` are the task's parameters as a client would post them. A task starts up to
    `jitter_s` seconds after its tick, always the same for a tick. Unless `overlap` is set, a tick finds the task of the
    tick before finished, or is passed over. A tick that was missed because no worker was up, or no Redis, is forgotten
    (`catch_up="skip"`), or all that were missed in the last seven days are fired as one when a worker is back
    (`"once"`). Tasks belong to `user_id`, and carry the tag `schedule:<name>`.
    """

    name: str
    task: str
    cron: str
    params: Mapping[str, Any] = field(default_factory=dict)
    timezone: str | None = None
    jitter_s: float = 0.0
    overlap: bool = False
    catch_up: Literal["skip", "once"] = "skip"
    user_id: str = SCHEDULE_USER


@dataclass(frozen=True, slots=True)
class Tick:
    """A moment at which a schedule is due (Unix seconds), and what is to become of it: `fired`, `caught_up` (it stands
    for all that were missed) or `missed`."""

    at_s: int
    outcome: Literal["fired", "caught_up", "missed"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A checked schedule with its expression and its zone."""

    schedule: Schedule
    cron: Cron
    zone: ZoneInfo

    @property
    def name(self) -> str:
        """The name of the schedule."""
        return self.schedule.name

    @property
    def definition(self) -> bytes:
        """What decides when it is due, to be compared."""
        return f"{self.cron.text} {self.zone.key}".encode()

    def next_s(self, after_s: int) -> int | None:
        """The first tick after a moment, Unix seconds; None: there is none."""
        return next_due(self.cron, self.zone, after_s)

    def undecided(self, seen_ms: int, now_ms: int) -> list[Tick]:
        """What is to become of the ticks after `seen_ms`, in order.

        Those of the last `LATE_S` are fired, each. Older ones are missed: where the policy is to catch up they are
        fired as one, unless a tick that is fired anyway stands for them.
        """
        seen_s, now_s = seen_ms // 1000, now_ms // 1000
        late_s = now_s - LATE_S
        fresh = [Tick(at_s, "fired") for at_s in all_due(self.cron, self.zone, max(seen_s, late_s), now_s)]
        since_s = max(seen_s, now_s - LOOK_BACK_S)
        missed_s = last_due(self.cron, self.zone, since_s, late_s) if since_s < late_s else None
        if missed_s is None or (fresh and self.schedule.catch_up == "once"):
            return fresh
        return [Tick(missed_s, "missed" if self.schedule.catch_up == "skip" else "caught_up"), *fresh]

    def starts_at(self, tick_s: int) -> datetime:
        """When the task of a tick starts: jitter is drawn from a hash of name and tick, so that all workers agree."""
        digest = hashlib.sha256(f"{self.name} {tick_s}".encode()).digest()
        jitter_s = int.from_bytes(digest[:6]) / 2**48 * self.schedule.jitter_s
        return datetime.fromtimestamp(tick_s, UTC) + timedelta(seconds=jitter_s)

    def submission(self, tick_s: int | None) -> Submission:
        """The task of a tick, or of a trigger by hand (None), which starts at once."""
        return Submission(
            self.schedule.task,
            params=dict(self.schedule.params),
            run_at=None if tick_s is None else self.starts_at(tick_s),
            tags=(f"schedule:{self.name}",),
        )


class Timetable:
    """All schedules of a process, by name, checked against the tasks that there are.

    `zone` is that of schedules which name none. Raises `SettingsError`, naming schedule and value: two of one name, an
    unknown task, wrong parameters, a cron expression, zone, jitter or owner that cannot be used.
    """

    def __init__(self, schedules: Iterable[Schedule], catalogue: Catalogue, zone: ZoneInfo) -> None:
        self._entries: dict[str, Entry] = {}
        for schedule in schedules:
            if schedule.name in self._entries:
                raise SettingsError(f"schedule {schedule.name!r} is declared twice")
            try:
                self._entries[schedule.name] = _checked(schedule, catalogue, zone)
            except (ValueError, NightshiftError) as error:
                raise SettingsError(f"schedule {schedule.name!r}: {error}") from error

    def __getitem__(self, name: str) -> Entry:
        found = self._entries.get(name)
        if found is None:
            known = ", ".join(sorted(self._entries)) or "none"
            raise NotFound(f"no schedule {name!r}; known are {known}")
        return found

    def __iter__(self) -> Iterator[Entry]:
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def __len__(self) -> int:
        return len(self._entries)


def _checked(schedule: Schedule, catalogue: Catalogue, zone: ZoneInfo) -> Entry:
    if not SCHEDULE_NAME.fullmatch(schedule.name):
        raise ValueError("expected a name in lower case, of letters, digits and _ . -, at most 100 characters")
    if not 0 <= schedule.jitter_s <= MAX_JITTER_S:
        raise ValueError(f"jitter_s={schedule.jitter_s}: expected 0 to {MAX_JITTER_S}")
    if schedule.catch_up not in ("skip", "once"):
        raise ValueError(f"catch_up={schedule.catch_up!r}: expected 'skip' or 'once'")
    if not LABEL.fullmatch(schedule.user_id):
        raise ValueError("user_id: expected 1 to 128 characters and no control characters")
    validated(catalogue[schedule.task].spec, dict(schedule.params))
    return Entry(schedule, Cron.parse(schedule.cron), _zone(schedule.timezone, zone))


def _zone(name: str | None, default: ZoneInfo) -> ZoneInfo:
    if name is None:
        return default
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"timezone={name!r}: expected an IANA time zone such as Europe/Berlin") from error

"""Events: an append-only log per channel, replayed from any point and then followed live.

Channels: `task:<id>`, `user:<id>`, `project:<id>` (a user's view of a project: the tasks of that user in it), and
channels of domains. An event's id is `<ms>-<number>`: the server's time, and the event's number in its channel, without
holes.

Invariant of a subscription: the reader gets every event after the id it named, in order, none twice. The script appends
and publishes in one step, so on one connection the published messages come in the order of the log. A subscription
first subscribes, then reads the log up to its end, then takes from the live messages only ids behind the last one it
handed out. When the connection breaks, messages may be missed, so each channel reads its log again from the last id.

What can be lost is only what the log has dropped: it keeps at least `CHANNEL_LENGTH` events, that of a task as long as
the task, the others for a week after their last one. A reader that was away for longer is told so (`gap`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from app.engine.job import moment
from app.errors import InvalidInput, TooLarge
from app.store import keys
from app.store.scripts import Scripts

MAX_EVENT_BYTES = 64 * 1024
TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}")
EVENT_ID = re.compile(r"[0-9]{1,15}(-[0-9]{1,15})?")
CHANNEL = re.compile(r"[a-z][a-z_]{0,31}:[^\x00-\x1f\x7f]{1,256}")
PAGE = 200
"""Events of one read; of the largest they are 13 MB."""
START = "0-0"
"""The id that stands before every event."""

FINAL_TYPES = frozenset({"task_complete", "task_failed", "task_cancelled"})
"""The last event of a task is one of these, in each of its channels."""

Position = tuple[int, int]


@dataclass(frozen=True)
class Event:
    """One event. `id` orders it within its channel; `payload` is JSON text as it was stored, so that it is passed on as
    is. One event goes to many readers, so what they all need is made once."""

    id: str
    channel: str
    type: str
    task_id: str
    payload: bytes

    @property
    def at(self) -> datetime:
        """When it was appended, on the server's clock."""
        return moment(self.id.partition("-")[0])

    @cached_property
    def key(self) -> Position:
        """The id as numbers, for comparison."""
        return event_key(self.id)

    @cached_property
    def text(self) -> str:
        """The event as clients read it: one line of JSON, `{type, id, channel, task_id?, at, payload}`."""
        at = self.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        task = f'"task_id":{to_json(self.task_id).decode()},' if self.task_id else ""
        channel = to_json(self.channel).decode()
        return (
            f'{{"type":"{self.type}","id":"{self.id}","channel":{channel},{task}"at":"{at}",'
            f'"payload":{self.payload.decode()}}}'
        )

    def data(self) -> Any:
        """The decoded payload."""
        return from_json(self.payload)


def event_key(event_id: str) -> Position:
    """An event id as numbers. Raises `InvalidInput` for what is none."""
    if not EVENT_ID.fullmatch(event_id):
        raise InvalidInput(f"last_event_id {event_id[:40]!r}: expected an id such as 1763760000000-1")
    ms, _, number = event_id.partition("-")
    return int(ms), int(number or 0)


def stream_name(channel: str, user_id: str) -> str:
    """The stream behind a channel's name: `project:` channels are one per user. Raises `InvalidInput` for a bad
    name."""
    if not CHANNEL.fullmatch(channel):
        raise InvalidInput(f"channel {channel[:80]!r}: expected kind:id such as task:0190")
    kind, _, name = channel.partition(":")
    return f"project:{keys.pair(user_id, name)}" if kind == "project" else channel


class EventLog:
    """Reads the logs. `channel` is the name that events carry, `stream` comes from `stream_name`."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def read(self, stream: str, channel: str, after: str = START, limit: int = PAGE) -> list[Event]:
        """Events after the id `after`, oldest first, `limit` at most. Raises `InvalidInput` when `after` is no id."""
        events, _ = await self.read_on(stream, channel, event_key(after), limit)
        return events

    async def read_on(
        self, stream: str, channel: str, position: Position, limit: int = PAGE
    ) -> tuple[list[Event], bool]:
        """Events behind a position, oldest first, and whether some behind it are not kept any more."""
        gap, entries = await self._scripts.read_events(keys.events(stream), *position, limit)
        events = [parse_message(channel, entry) for entry in entries]
        # Numbers begin at 1 and have no holes.
        return events, gap or (position == (0, 0) and bool(events) and events[0].key[1] > 1)

    async def last_id(self, stream: str) -> str:
        """The id of the newest event, or `START`."""
        entry = await self._scripts.redis.execute_command("LINDEX", keys.events(stream), -1)
        return entry.partition(b" ")[0].decode() if entry else START

    async def start(self, stream: str, after: str | None) -> Start:
        """Where a reader begins that saw the events up to the id `after`; None: it wants what comes from now on.

        Raises `InvalidInput` when `after` is no id.
        """
        if after is None:
            return Start(await self.last_id(stream), gap=False)
        position = event_key(after)
        _, gap = await self.read_on(stream, stream, position, 1)
        if gap and position > event_key(last := await self.last_id(stream)):
            # Of a log that was lost since, with a server's memory: what is new would look old to such a reader.
            return Start(last, gap=True)
        return Start(after, gap)


@dataclass(frozen=True, slots=True)
class Start:
    """The id behind which a reader begins, and whether events that it has not seen are not kept any more."""

    last_id: str
    gap: bool


def parse_message(channel: str, entry: bytes) -> Event:
    """An event from its stored and published form: id, type, task id and payload, with a blank between."""
    event_id, kind, rest = entry.split(b" ", 2)
    # arq's clients may choose task ids with blanks in them; the payload is an object.
    end = rest.index(b" {")
    return Event(event_id.decode(), channel, kind.decode(), rest[:end].decode(), rest[end + 1 :])


def event_json(payload: dict[str, Any]) -> bytes:
    """The stored form of an event's payload. Raises `InvalidInput` or `TooLarge`."""
    try:
        data = to_json(payload)
        # JSON has no NaN and no infinity, and a reader would choke on them.
        from_json(data, allow_inf_nan=False)
    except (ValueError, PydanticSerializationError) as error:
        raise InvalidInput(f"event payload: expected what JSON can hold: {error}") from error
    if len(data) > MAX_EVENT_BYTES:
        raise TooLarge(f"an event of {len(data)} bytes exceeds the bound of {MAX_EVENT_BYTES} bytes")
    return data

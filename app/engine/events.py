"""Events: append-only streams per channel, replayed from any point and then followed live.

Channels: `task:<id>`, `user:<id>`, `project:<id>` (a user's view of a project: the tasks of that user in it), and
channels of domains. The stream id is the event's id and carries the server's time.

Invariant of a subscription: the reader gets every event after the id it named, in order, none twice. The script appends
and publishes in one step, so on one connection the published messages come in the order of the stream. A subscription
first subscribes, then reads the stream up to its end, then takes from the live messages only ids behind the last one it
handed out. When the connection breaks, messages may be missed, so each channel reads its stream again from the last id.

What can be lost is only what the stream has dropped: it keeps at least `CHANNEL_LENGTH` events and expires a week after
its last one. A reader that was away for longer is told so (`gap`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic_core import from_json
from redis.asyncio import Redis

from app.engine.job import moment
from app.errors import InvalidInput
from app.store import keys

MAX_EVENT_BYTES = 64 * 1024
TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,63}")
EVENT_ID = re.compile(r"\d{1,15}(-\d{1,10})?")
CHANNEL = re.compile(r"[a-z][a-z_]{0,31}:[^\x00-\x20\x7f]{1,256}")
PAGE = 500


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `id` orders it within its channel; `payload` is JSON text as it was stored, so that it is passed on as
    is."""

    id: str
    channel: str
    type: str
    task_id: str
    payload: bytes

    @property
    def at(self) -> datetime:
        """When it was appended, on the server's clock."""
        return moment(self.id.partition("-")[0])

    @property
    def key(self) -> tuple[int, int]:
        """The id as numbers, for comparison."""
        return event_key(self.id)

    def data(self) -> Any:
        """The decoded payload."""
        return from_json(self.payload)


def event_key(event_id: str) -> tuple[int, int]:
    """An event id as numbers. Raises `InvalidInput` for what is none."""
    if not EVENT_ID.fullmatch(event_id):
        raise InvalidInput(f"last_event_id {event_id[:40]!r}: expected an id such as 1763760000000-0")
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
    """Reads the streams. `channel` is the name that events carry, `stream` comes from `stream_name`."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def read(self, stream: str, channel: str, after: str = "0-0", limit: int = PAGE) -> list[Event]:
        """Events after the id `after`, oldest first, `limit` at most."""
        rows = await self._redis.xrange(keys.events(stream), min=f"({after}", max="+", count=limit)
        return [_event(channel, entry, fields) for entry, fields in rows]

    async def last_id(self, stream: str) -> str:
        """The id of the newest event, or 0-0."""
        rows = await self._redis.xrevrange(keys.events(stream), count=1)
        return rows[0][0].decode() if rows else "0-0"

    async def has_gap(self, stream: str, after: str) -> bool:
        """Whether events behind the id `after` are not kept any more."""
        rows = await self._redis.xrange(keys.events(stream), count=1)
        # Nobody can have seen an id that lies before the first event of a stream that was never cut. So an id before
        # the first kept one, or any id where the stream is gone, means that some may have been missed.
        return event_key(after) > (0, 0) and (not rows or event_key(after) < event_key(rows[0][0].decode()))


def parse_message(channel: str, data: bytes) -> Event:
    """An event from its published form: id, type, task id and payload, with a blank between."""
    entry, kind, task_id, payload = data.split(b" ", 3)
    return Event(entry.decode(), channel, kind.decode(), task_id.decode(), payload)


def _event(channel: str, entry: bytes, fields: dict[bytes, bytes]) -> Event:
    return Event(entry.decode(), channel, fields[b"t"].decode(), fields[b"i"].decode(), fields[b"p"])

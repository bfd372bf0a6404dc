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
from typing import Any

from pydantic_core import from_json

from app.engine.job import moment
from app.errors import InvalidInput
from app.store import keys
from app.store.scripts import Scripts

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

    async def read(self, stream: str, channel: str, after: str = "0-0", limit: int = PAGE) -> list[Event]:
        """Events after the id `after`, oldest first, `limit` at most. Raises `InvalidInput` when `after` is no id."""
        _, entries = await self._scripts.read_events(keys.events(stream), *event_key(after), limit)
        return [parse_message(channel, entry) for entry in entries]

    async def last_id(self, stream: str) -> str:
        """The id of the newest event, or 0-0."""
        entry = await self._scripts.redis.execute_command("LINDEX", keys.events(stream), -1)
        return entry.partition(b" ")[0].decode() if entry else "0-0"

    async def has_gap(self, stream: str, after: str) -> bool:
        """Whether events behind the id `after` are not kept any more. Raises `InvalidInput` when it is no id."""
        gap, _ = await self._scripts.read_events(keys.events(stream), *event_key(after), 1)
        return gap


def parse_message(channel: str, entry: bytes) -> Event:
    """An event from its stored and published form: id, type, task id and payload, with a blank between."""
    event_id, kind, task_id, payload = entry.split(b" ", 3)
    return Event(event_id.decode(), channel, kind.decode(), task_id.decode(), payload)

"""The frames of the WebSocket: parsing, answering, limits. Nothing here waits or knows a socket."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from app.errors import InvalidInput, NightshiftError

MAX_FRAME_BYTES = 64 * 1024
FRAMES_PER_MINUTE = 100
MAX_CHANNELS = 100
"""Channels that a client may follow besides its own."""
MAX_CORRELATION_CHARS = 128
MAX_REASON_BYTES = 123
"""RFC 6455, 5.5: a control frame holds 125 bytes, two of them the code."""


class LimitExceeded(NightshiftError):
    """The client went over a limit of the socket; it is told so and closed."""

    status_code = 429
    title = "Limit exceeded"


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame from the client; `fields` is all of it."""

    type: str
    fields: dict[str, Any]
    correlation_id: str | None

    def text(self, name: str) -> str:
        """A field that must be a string. Raises `InvalidInput`."""
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise InvalidInput(f"{self.type}.{name}: expected a string")
        return value

    def optional_text(self, name: str) -> str | None:
        """A field that may be missing or null. Raises `InvalidInput`."""
        return None if self.fields.get(name) is None else self.text(name)

    def answer(self, kind: str, /, **fields: Any) -> str:
        """The text of an answer, with the frame's correlation id."""
        return frame_text(kind, self.correlation_id, **fields)


def frame_text(kind: str, correlation_id: str | None = None, /, **fields: Any) -> str:
    """The text of a frame of the server."""
    tail = {} if correlation_id is None else {"correlation_id": correlation_id}
    return to_json({"type": kind, **fields, **tail}).decode()


def check_size(text: str) -> None:
    """Raise `LimitExceeded` for a frame of more than 64 KiB."""
    if len(text) > MAX_FRAME_BYTES or len(text.encode()) > MAX_FRAME_BYTES:
        raise LimitExceeded(f"frame too large: expected at most {MAX_FRAME_BYTES} bytes")


def parse_frame(text: str) -> Frame:
    """Read a frame. Raises `InvalidInput` when it is no JSON object with a `type`."""
    try:
        fields = from_json(text)
    except ValueError as error:
        raise InvalidInput(f"expected a JSON object: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidInput("expected a JSON object")
    kind, correlation_id = fields.get("type"), fields.get("correlation_id")
    if not isinstance(kind, str) or not kind:
        raise InvalidInput("type: expected a string")
    if correlation_id is not None and not (
        isinstance(correlation_id, str) and 1 <= len(correlation_id) <= MAX_CORRELATION_CHARS
    ):
        raise InvalidInput(f"correlation_id: expected a string of 1 to {MAX_CORRELATION_CHARS} characters")
    return Frame(kind, fields, correlation_id)


class FrameRate:
    """Counts the frames of the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=FRAMES_PER_MINUTE)

    def count(self) -> None:
        """Note a frame. Raises `LimitExceeded` when 100 came within the minute before it."""
        now = self._clock()
        if len(self._times) == FRAMES_PER_MINUTE and now - self._times[0] < 60.0:
            raise LimitExceeded(f"too many frames: expected at most {FRAMES_PER_MINUTE} a minute")
        self._times.append(now)


def check_channels(count: int) -> None:
    """Raise `LimitExceeded` when one more channel than `count` is too many."""
    if count >= MAX_CHANNELS:
        raise LimitExceeded(f"too many channels: expected at most {MAX_CHANNELS}")


def close_code(error: Exception) -> int:
    """What a socket is closed with that `error` ends: 1013 when it may come again later, 1008 when it is at fault."""
    status = error.status_code if isinstance(error, NightshiftError) else 503
    return 1013 if status == 503 else 1011 if status >= 500 else 1008


def close_reason(error: Exception) -> str:
    """The detail of an error, or its title where that does not fit into a close frame."""
    if not isinstance(error, NightshiftError):
        return "the task store cannot be reached"
    return error.detail if len(error.detail.encode()) <= MAX_REASON_BYTES else error.title

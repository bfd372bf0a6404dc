"""Follows one channel over our WebSocket, across lost connections.

Each connection subscribes with the id of the last event that was handed out, and the service replays what came after
it: so nothing is missed and nothing comes twice, however often the connection breaks. The first connection is not
tried twice: a wrong address or key shall be heard of at once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from pydantic_core import from_json, to_json
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

from app.client import ApiError, problem_of
from app.errors import InvalidInput, MalformedReply, RemoteUnreachable

PATIENCE_S = 60.0
"""How long a connection that was lost is tried again."""
ANSWER_TIMEOUT_S = 10.0
PING_INTERVAL_S = 20.0
"""A service that does not answer a ping for so long is gone."""
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.05, 2.0
POLICY_VIOLATION = 1008
NO_CHANNEL = 404

Frame = dict[str, Any]


class _Lost(Exception):
    """The connection broke, or the service asked to come again."""


async def follow(url: str, headers: Mapping[str, str], channel: str, last_event_id: str) -> AsyncGenerator[Frame, None]:
    """The channel's events behind `last_event_id`, for ever.

    Raises `ApiError` when the service refuses the caller or the channel, `RemoteUnreachable` when it is not there.
    """
    position, patience = last_event_id, _Patience()
    while True:
        try:
            async with aclosing(_one_connection(url, headers, channel, position)) as frames:
                async for frame in frames:
                    patience.refill()
                    if "payload" in frame:
                        position = frame["id"]
                        yield frame
        except _Lost as error:
            if patience.is_over():
                raise RemoteUnreachable(f"the service at {url} cannot be reached: {error}") from error
        except ApiError as error:
            # Once it was allowed, a refusal of the channel is a service that cannot reach its store just now.
            if error.remote_status != NO_CHANNEL or patience.is_over():
                raise
        await patience.pause()


class _Patience:
    """How long to go on trying: not at all before the first success, then `PATIENCE_S` from each loss."""

    def __init__(self) -> None:
        self._until: float | None = 0.0
        self._backoff_s = FIRST_BACKOFF_S

    def refill(self) -> None:
        """The connection works."""
        self._until, self._backoff_s = None, FIRST_BACKOFF_S

    def is_over(self) -> bool:
        """Called at each failure; the first one after a success starts the clock."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + PATIENCE_S
        return now > self._until

    async def pause(self) -> None:
        """Wait before the next try, longer each time."""
        # With jitter: a service that restarts shall not see all its clients in the same moment.
        await asyncio.sleep(self._backoff_s * random.uniform(0.5, 1.0))
        self._backoff_s = min(MAX_BACKOFF_S, self._backoff_s * 2)


async def _one_connection(
    url: str, headers: Mapping[str, str], channel: str, last_event_id: str
) -> AsyncGenerator[Frame, None]:
    """`subscribed`, then the channel's events, until the connection ends (`_Lost`)."""
    try:
        async with _open(url, headers) as socket:
            wish = {"type": "subscribe", "channel": channel, "last_event_id": last_event_id}
            await socket.send(to_json(wish).decode())
            while True:
                frame = _decoded(await socket.recv())
                if frame.get("type") in ("subscription_error", "error"):
                    raise ApiError(NO_CHANNEL, frame)
                if frame.get("channel") == channel:
                    yield frame
    except ConnectionClosed as error:
        raise _closed(error) from error
    except InvalidURI as error:
        raise InvalidInput(f"NIGHTSHIFT_URL: {error}") from error
    except InvalidStatus as error:
        raise _refused(error) from error
    except (OSError, TimeoutError, InvalidHandshake) as error:
        raise _Lost(str(error) or type(error).__name__) from error


def _open(url: str, headers: Mapping[str, str]) -> connect:
    return connect(
        url,
        additional_headers=dict(headers),
        open_timeout=ANSWER_TIMEOUT_S,
        close_timeout=1.0,
        ping_interval=PING_INTERVAL_S,
        ping_timeout=PING_INTERVAL_S,
        proxy=None,
    )


def _closed(error: ConnectionClosed) -> Exception:
    if error.rcvd is not None and error.rcvd.code == POLICY_VIOLATION:
        return ApiError(403, {"detail": error.rcvd.reason or "the service closed the WebSocket"})
    return _Lost(f"the connection was closed: {error}")


def _refused(error: InvalidStatus) -> Exception:
    response = error.response
    if response.status_code >= 500:
        return _Lost(f"the service answered {response.status_code}")
    return ApiError(response.status_code, problem_of(bytes(response.body or b"")))


def _decoded(message: str | bytes) -> Frame:
    try:
        frame = from_json(message)
    except ValueError as error:
        raise MalformedReply("the service sent a frame that is no JSON: is it Nightshift?") from error
    if not isinstance(frame, dict):
        raise MalformedReply("the service sent a frame that is no JSON object: is it Nightshift?")
    return frame

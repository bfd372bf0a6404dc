"""The only module that imports the HTTP library.

Everybody else writes `from app.clients.http import httpx`, so that the change to an API-compatible successor is the one
import below. The library's exceptions end here as well: inside `remote_errors` they become classes of `app.errors`.
"""

from __future__ import annotations

import re
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from math import isfinite

import httpx

from app.errors import MalformedReply, RemoteStatus, RemoteTimeout, RemoteUnreachable, ReplyTooLarge

__all__ = [
    "PooledTransport",
    "httpx",
    "open_client",
    "read_body",
    "read_start",
    "remote_errors",
    "reset_s",
    "retry_after_s",
    "status_error",
    "tls_context",
]

CONNECT_TIMEOUT_S = 10.0
KEEPALIVE_S = 4.0
"""An idle connection is used again within this time. Many servers close theirs after 5 s, whatever is on its way."""
_CLOSED_A_REQUEST = 4
_RESET_KINDS = ("", "-requests", "-tokens")
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{0,9})?", re.ASCII)
_DURATION = re.compile(
    r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m(?!s))?(?:([0-9]{1,9}(?:\.[0-9]{1,9})?)s)?(?:([0-9]{1,9}(?:\.[0-9]{1,9})?)ms)?",
    re.ASCII,
)
_FIRST_UNIX_S = 1e9
"""A larger number of seconds is a time, and no duration."""
MAX_MESSAGE_CHARS = 500
"""Characters of the other side's own words that an error repeats."""

# The pool's own bounds stay off: with them httpcore 1.0 may close a connection that it has just handed to a request,
# which then hangs until its read timeout. Callers bound what is in flight with a semaphore or their lane.
_UNBOUNDED = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_S)


@lru_cache(maxsize=1)
def tls_context() -> ssl.SSLContext:
    """Verifies against the bundled authorities and those of this machine. Made once: it takes about 40 ms."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context


class PooledTransport(httpx.AsyncBaseTransport):
    """Connections that are kept for the next request, each in a pool of the library that has one request at a time.

    In one pool of httpcore 1.0, each request walks over all connections when it starts and when it ends, and an idle
    connection is handed to every waiting request, of which one gets it: a thousand streams cost ten seconds of the
    loop's time. The connection used last is used first, so that few requests at once keep few connections.
    """

    def __init__(self) -> None:
        tls_context()  # Here rather than while the first request holds up the loop.
        self._idle: deque[_Slot] = deque()
        self._busy: set[_Slot] = set()

    @property
    def idle(self) -> int:
        """Slots whose connection, if still open, waits for a request."""
        return len(self._idle)

    @property
    def busy(self) -> int:
        """Requests whose response is not closed yet."""
        return len(self._busy)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request over the connection used last, or a new one."""
        slot = self._idle.pop() if self._idle else _Slot()
        self._busy.add(slot)
        try:
            await self._close_expired()
            response = await slot.transport.handle_async_request(request)
        except BaseException:
            self._release(slot)
            raise
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _WatchedStream(response.stream, lambda: self._release(slot))
        return response

    def _release(self, slot: _Slot) -> None:
        self._busy.remove(slot)
        slot.idle_since = time.monotonic()
        self._idle.append(slot)

    async def _close_expired(self) -> None:
        # A few for each request: they are as many as there have been requests at once.
        for _ in range(_CLOSED_A_REQUEST):
            if not self._idle or time.monotonic() - self._idle[0].idle_since < KEEPALIVE_S:
                return
            await self._idle.popleft().transport.aclose()

    async def aclose(self) -> None:
        """Close all connections, also those of requests under way."""
        for slot in [*self._idle, *self._busy]:
            await slot.transport.aclose()
        self._idle.clear()


class _Slot:
    def __init__(self) -> None:
        self.transport = httpx.AsyncHTTPTransport(verify=tls_context(), limits=_UNBOUNDED)
        self.idle_since = 0.0


class _WatchedStream(httpx.AsyncByteStream):
    """A response's body that calls `on_close` once, when it is closed."""

    def __init__(self, stream: httpx.AsyncByteStream, on_close: Callable[[], None]) -> None:
        self._stream = stream
        self._on_close: Callable[[], None] | None = on_close

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._stream)

    async def aclose(self) -> None:
        on_close, self._on_close = self._on_close, None
        try:
            await self._stream.aclose()
        finally:
            if on_close:
                on_close()


def open_client(
    *,
    timeout_s: float,
    headers: Mapping[str, str] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> httpx.AsyncClient:
    """A client that ignores proxy variables, follows no redirect and keeps no cookie.

    `timeout_s` is the longest silence while reading or writing; a connection must stand within `CONNECT_TIMEOUT_S`.
    `transport` replaces `PooledTransport`. Nothing bounds the requests at once: that is for the caller. Close it with
    `aclose()`.
    """
    return httpx.AsyncClient(
        headers=dict(headers or {}),
        timeout=httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s)),
        transport=transport or PooledTransport(),
        trust_env=False,
        follow_redirects=False,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    )


@contextmanager
def remote_errors(what: str) -> Iterator[None]:
    """Raise `RemoteTimeout`, `RemoteUnreachable` or `MalformedReply` for the library's exceptions.

    `what` begins the sentence: "the model at api.example.com".
    """
    try:
        yield
    except httpx.TimeoutException as error:
        raise RemoteTimeout(_describe_timeout(what, error)) from error
    except httpx.DecodingError as error:
        raise MalformedReply(f"{what} sent a body that cannot be decoded: {error}") from error
    except httpx.RemoteProtocolError as error:
        # The library has one class for a connection closed before the answer and for an answer that breaks off.
        if str(error).startswith("Server disconnected"):
            raise RemoteUnreachable(f"{what} closed the connection without an answer") from error
        raise MalformedReply(f"{what} broke the HTTP protocol: {error}") from error
    except httpx.TransportError as error:
        raise RemoteUnreachable(f"{what} cannot be reached: {error or type(error).__name__}") from error


def _describe_timeout(what: str, error: httpx.TimeoutException) -> str:
    limits = error.request.extensions.get("timeout", {})
    if isinstance(error, httpx.ConnectTimeout):
        return f"{what} accepted no connection within {limits.get('connect')} s"
    if isinstance(error, httpx.WriteTimeout):
        return f"{what} took no more of the request for {limits.get('write')} s"
    return f"{what} sent nothing for {limits.get('read')} s"


def status_error(what: str, response: httpx.Response, message: str = "") -> RemoteStatus:
    """The error for a refused request, with `Retry-After` and at most `MAX_MESSAGE_CHARS` of `message`."""
    detail = f"{what} answered {response.status_code}"
    if message:
        detail += f": {message[:MAX_MESSAGE_CHARS]}"
    wait_s = reset_s(response.headers) if response.status_code == 429 else retry_after_s(response.headers)
    return RemoteStatus(detail, remote_status=response.status_code, retry_after_s=wait_s)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `Retry-After` (RFC 9110: seconds or a date); None when absent or unreadable, 0 when past.

    A date is counted from the answer's own `Date`, so that the two clocks need not agree. Header names in lower case,
    or a mapping that ignores case.
    """
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        until = _timestamp(value)
        now = _timestamp(headers.get("date", ""))
        return None if until is None else max(0.0, until - (time.time() if now is None else now))
    return seconds if isfinite(seconds) and seconds >= 0 else None


def reset_s(headers: Mapping[str, str]) -> float | None:
    """Seconds until the limits of an answer 429 are whole again; None where it does not say.

    `retry-after-ms` and `Retry-After` go before `x-ratelimit-reset[-requests|-tokens]`, of which the latest counts
    whose `x-ratelimit-remaining` is not above 0. Those are durations such as `6m0s` or `20ms`, seconds, or a Unix time.
    """
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(milliseconds):
        return float(milliseconds) / 1000
    wait_s = retry_after_s(headers)
    if wait_s is not None:
        return wait_s
    kinds = [kind for kind in _RESET_KINDS if _used_up(headers.get(f"x-ratelimit-remaining{kind}", ""))]
    resets = [_duration_s(headers.get(f"x-ratelimit-reset{kind}", "").strip(), headers) for kind in kinds]
    return max((reset for reset in resets if reset is not None), default=None)


def _used_up(remaining: str) -> bool:
    return not _NUMBER.fullmatch(remaining.strip()) or float(remaining) == 0


def _duration_s(text: str, headers: Mapping[str, str]) -> float | None:
    if _NUMBER.fullmatch(text):
        seconds = float(text)
        now = _timestamp(headers.get("date", ""))
        return seconds if seconds < _FIRST_UNIX_S else max(0.0, seconds - (time.time() if now is None else now))
    parts = _DURATION.fullmatch(text) if text else None
    if parts is None:
        return None
    return sum(float(part or 0) * unit for part, unit in zip(parts.groups(), (3600, 60, 1, 0.001), strict=True))


def _timestamp(http_date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(http_date)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


async def read_body(response: httpx.Response, *, max_bytes: int, what: str) -> bytes:
    """The decoded body of a streamed response. Raises `ReplyTooLarge` as soon as it exceeds the bound."""
    body = await read_start(response, max_bytes=max_bytes + 1, what=what)
    if len(body) > max_bytes:
        raise ReplyTooLarge(f"{what} sent more than {max_bytes} bytes")
    return body


async def read_start(response: httpx.Response, *, max_bytes: int, what: str) -> bytes:
    """At most the first `max_bytes` of the decoded body of a streamed response."""
    body = bytearray()
    with remote_errors(what):
        async for part in response.aiter_bytes():
            body += part
            if len(body) >= max_bytes:
                break
    return bytes(body[:max_bytes])

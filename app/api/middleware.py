"""What happens around every request, as plain ASGI: no thread, no task and no buffer of its own.

CORS (only when NIGHTSHIFT_ALLOWED_ORIGINS is set)
└ RequestEdge   correlation id, security headers, access log, duration metric, the answer for a bug
  └ OriginGuard foreign Host and Origin
    └ BodyLimit 1 MiB
      └ the application
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import wraps
from time import perf_counter

from fastapi import FastAPI, HTTPException
from loguru import logger
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.origin import OriginGuard
from app.api.problems import internal_error_response, problem_response
from app.errors import TooLarge
from app.settings import Settings
from app.telemetry import LogContext, clean_correlation_id, new_correlation_id, reset_context, set_context
from app.telemetry.metrics import HTTP_REQUEST_DURATION_S

MAX_BODY_BYTES = 1_048_576
"""Bound on a request's body: 1 MiB."""

CLIENT_GONE = 499
"""Logged as the status of a request that ended before anybody was answered."""

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FIXED_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    # Beside a policy of the page itself: browsers enforce all policies that they get.
    (b"content-security-policy", b"frame-ancestors 'none'"),
)
_NO_STORE = (b"cache-control", b"no-store")
_REVALIDATE = (b"cache-control", b"private, no-cache")


def install_middleware(app: FastAPI, settings: Settings) -> None:
    """Put all of this module around `app`. Raises `SettingsError` when `settings.auth_mode` does."""
    # The last one added is the outermost.
    app.add_middleware(BodyLimit)
    app.add_middleware(OriginGuard, local_only=settings.auth_mode == "off", allowed_origins=settings.allowed_origins)
    app.add_middleware(RequestEdge)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "Idempotency-Key", "If-None-Match", "Last-Event-ID", "X-Correlation-ID"),
            expose_headers=("ETag", "Location", "Retry-After", "X-Correlation-ID", "X-Poll-Interval"),
        )


class RequestEdge:
    """Gives each request its correlation id and its answer the security headers; logs and measures it.

    An exception that nothing inside has answered becomes a 500 here, logged with its traceback.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        began_s = perf_counter()
        correlation_id = _correlation_id(scope)
        token = set_context(LogContext(correlation_id=correlation_id))
        answer = _Answer(send, correlation_id)
        try:
            if scope["type"] == "http":
                await self._http(scope, receive, answer)
            else:
                await self.app(scope, receive, answer.send)
        finally:
            _record(scope, answer.status, perf_counter() - began_s)
            reset_context(token)

    async def _http(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            await self.app(scope, receive, answer.send)
        except ClientDisconnect:
            logger.debug("the client went away while its request was read or answered")
        except Exception as error:
            logger.opt(exception=error).error("unhandled {} in {}", type(error).__name__, scope["method"])
            if answer.status != CLIENT_GONE:
                raise  # half an answer is out: the server must cut the connection, so that nobody takes it for a whole
            await internal_error_response(scope)(scope, receive, answer.send)


class _Answer:
    """The `send` of one request: notes the status, adds the headers."""

    __slots__ = ("_correlation_id", "_send", "status")

    def __init__(self, send: Send, correlation_id: str) -> None:
        self.status = CLIENT_GONE
        self._send = send
        self._correlation_id = correlation_id

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            message["headers"] = self._headers(message.get("headers", ()))
        elif kind == "websocket.accept":
            self.status = 101
            message["headers"] = [*message.get("headers", ()), self._correlation_header()]
        elif kind == "websocket.close" and self.status == CLIENT_GONE:
            self.status = 403  # what a server answers when a socket is closed before it was accepted
        await self._send(message)

    def _headers(self, given: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        headers = [*given, *_FIXED_HEADERS, self._correlation_header()]
        names = [name for name, _ in headers]
        if b"cache-control" not in names:
            # An answer with an ETag is there to be asked for again, but by its owner only.
            headers.append(_REVALIDATE if b"etag" in names else _NO_STORE)
        return headers

    def _correlation_header(self) -> tuple[bytes, bytes]:
        return b"x-correlation-id", self._correlation_id.encode()


class BodyLimit:
    """Answers a body of more than `max_bytes` with 413: at once when its length is announced, else while it is read."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BODY_BYTES) -> None:
        self.app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        for name, value in scope["headers"]:
            if name == b"content-length" and _exceeds(value, self._max_bytes):
                too_large = TooLarge(_bound(self._max_bytes))
                return await problem_response(scope, too_large)(scope, receive, send)
        return await self.app(scope, self._counting(receive), send)

    def _counting(self, receive: Receive) -> Receive:
        received = 0

        @wraps(receive)  # so that what the server's own is a method of can be found (`transport.abort`)
        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max_bytes:
                    # The one kind of exception that FastAPI lets through while it reads a body.
                    raise HTTPException(TooLarge.status_code, _bound(self._max_bytes))
            return message

        return counted


def _exceeds(length: bytes, max_bytes: int) -> bool:
    # Python refuses to parse thousands of digits; nine are more than any bound of ours.
    digits = length.lstrip(b"0")
    return digits.isdigit() and (len(digits) > 9 or int(digits) > max_bytes)


def _bound(max_bytes: int) -> str:
    return f"request body: expected at most {max_bytes} bytes"


def _correlation_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-correlation-id":
            return clean_correlation_id(value.decode("latin-1"))
    return new_correlation_id()


def _record(scope: Scope, status: int, took_s: float) -> None:
    # The router leaves its route here. Routers of ours carry their prefix themselves; one given to `include_router`
    # would not be part of it.
    route = getattr(scope.get("route"), "path", None)
    method = scope.get("method", "WS")
    logger.info(f"{method} {route or scope['path']} {status} {took_s * 1_000:.1f} ms")
    if scope["type"] == "http":
        # What clients may choose must not make label sets: unknown methods and paths are one each.
        known = method if method in _METHODS else "other"
        HTTP_REQUEST_DURATION_S.labels(known, route or "unmatched", str(status)).observe(took_s)

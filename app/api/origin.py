"""Keeps other people's web pages out.

A browser sends a page's requests to any address, this machine's too. Where authentication is off, being reachable is
the only credential, so two tricks have to fail: a page elsewhere that posts to `http://127.0.0.1:8000` (its `Origin`
betrays it), and a name of the attacker that resolves to 127.0.0.1 (DNS rebinding; its `Host` betrays it). With keys or
tokens a page has no credentials of ours to ride on, yet a foreign `Origin` is refused as well, on HTTP and WebSocket:
no page that the operator did not name has business here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.problems import problem_response
from app.errors import Forbidden

_LOCAL = r"(?:localhost|127(?:\.\d{1,3}){3}|\[::1\])(?::\d{1,5})?"
_LOCAL_HOST = re.compile(_LOCAL, re.IGNORECASE)
_LOCAL_ORIGIN = re.compile(f"https?://{_LOCAL}", re.IGNORECASE)


class OriginGuard:
    """ASGI middleware that answers a foreign `Origin`, and when `local_only` also a foreign `Host`, with 403.

    `allowed_origins` (`https://name[:port]`) come in besides the service's own; when `local_only`, their hosts too.
    """

    def __init__(self, app: ASGIApp, *, local_only: bool, allowed_origins: Iterable[str] = ()) -> None:
        self.app = app
        self._local_only = local_only
        self._origins = frozenset(origin.lower() for origin in allowed_origins)
        self._hosts = frozenset(origin.partition("://")[2] for origin in self._origins)
        # The same few values come with every request; a verdict costs one look-up. Bounded, as strangers choose them.
        self._verdict = lru_cache(maxsize=256)(self._judge)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        host = origin = None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
        refusal = self._verdict(host, origin)
        if refusal is None:
            return await self.app(scope, receive, send)
        return await _refuse(scope, receive, send, Forbidden(refusal))

    def _judge(self, host: bytes | None, origin: bytes | None) -> str | None:
        """Why these headers are refused; None when they are welcome."""
        host_text = "" if host is None else host.decode("latin-1").lower()
        if self._local_only and not self._is_own_host(host_text):
            return (
                f"foreign Host {host_text!r}: expected a loopback name (NIGHTSHIFT_AUTH is off), or one that "
                "NIGHTSHIFT_ALLOWED_ORIGINS names"
            )
        if origin is not None and not self._is_own_origin(origin.decode("latin-1").lower(), host_text):
            return (
                f"foreign Origin {origin.decode('latin-1')!r}: expected the service's own, or one that "
                "NIGHTSHIFT_ALLOWED_ORIGINS names"
            )
        return None

    def _is_own_host(self, host: str) -> bool:
        return _LOCAL_HOST.fullmatch(host) is not None or host in self._hosts

    def _is_own_origin(self, origin: str, host: str) -> bool:
        if origin in self._origins:
            return True
        if self._local_only:
            return _LOCAL_ORIGIN.fullmatch(origin) is not None
        # Without the scheme: behind a proxy that ends TLS we see http where the browser said https.
        scheme, _, own = origin.partition("://")
        return scheme in ("http", "https") and own != "" and own == host


async def _refuse(scope: Scope, receive: Receive, send: Send, error: Forbidden) -> None:
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await problem_response(scope, error)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": error.title})

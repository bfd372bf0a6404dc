from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from app.clients import http
from app.clients.http import (
    MAX_MESSAGE_CHARS,
    PooledTransport,
    httpx,
    open_client,
    read_body,
    read_start,
    remote_errors,
    reset_s,
    retry_after_s,
    status_error,
    tls_context,
)
from app.errors import MalformedReply, RemoteTimeout, RemoteUnreachable, ReplyTooLarge

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def tcp_server(handle: Handler) -> AsyncIterator[str]:
    """A server that answers with any bytes, for what no HTTP server would send."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


def answering(raw: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()

    return handle


def ok(body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 200 OK", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def fetch(url: str, *, max_bytes: int = 1000, timeout_s: float = 5.0) -> bytes:
    async with open_client(timeout_s=timeout_s) as client:
        with remote_errors("the server"):
            response = await client.send(client.build_request("GET", url), stream=True)
        try:
            return await read_body(response, max_bytes=max_bytes, what="the server")
        finally:
            await response.aclose()


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wednesday, 21-Oct-26 07:28:30 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed Oct 21 07:28:30 2026", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Fri, 01 Jan 1999 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "1e999"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_both_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "2", "x-ratelimit-reset-tokens": "6m0s"}, 2.0),
        ({"x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-reset-requests": "20ms"}, 0.02),
        ({"x-ratelimit-reset": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-reset": "12"}, 12.0),
        ({"x-ratelimit-reset": "1792567710", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 30.0),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "3s"}, 3.0),
        (
            {
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "3s",
                "x-ratelimit-remaining-tokens": "900",
            },
            1.0,
        ),
        ({"x-ratelimit-reset": "soon"}, None),
        ({"x-ratelimit-reset": "-1s"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({}, None),
    ],
)
def test_the_reset_of_limits_is_read_in_the_forms_that_providers_have(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert reset_s(headers) == seconds


def test_a_retry_date_counts_from_now_when_the_answer_has_no_date() -> None:
    wait = retry_after_s({"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"})
    assert wait is not None
    assert wait > 86_400


def test_a_refused_status_keeps_retry_after_and_a_bounded_message() -> None:
    error = status_error("the server", httpx.Response(429, headers={"Retry-After": "3"}), "x" * 10_000)
    assert (error.remote_status, error.retry_after_s, error.retryable) == (429, 3.0, True)
    assert len(error.detail) < MAX_MESSAGE_CHARS + 100
    assert error.detail.startswith("the server answered 429: xxx")
    assert not status_error("the server", httpx.Response(400)).retryable


async def test_a_body_is_read_whole() -> None:
    async with tcp_server(answering(ok(b"hello"))) as url:
        assert await fetch(url, max_bytes=5) == b"hello"


async def test_a_body_over_the_bound_is_refused_without_reading_on() -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x" * 1000)
            await writer.drain()

    async with tcp_server(endless) as url:
        with pytest.raises(ReplyTooLarge, match="more than 4000 bytes"):
            await fetch(url, max_bytes=4000)


async def test_the_start_of_a_body_is_cut_at_the_bound() -> None:
    async with (
        tcp_server(answering(ok(b"hello"))) as url,
        open_client(timeout_s=5) as client,
        client.stream("GET", url) as response,
    ):
        assert await read_start(response, max_bytes=3, what="the server") == b"hel"


async def test_nobody_listening_is_unreachable() -> None:
    async with tcp_server(answering(b"")) as url:
        pass
    with pytest.raises(RemoteUnreachable, match="the server cannot be reached"):
        await fetch(url)


async def test_a_connection_closed_before_the_answer_is_unreachable() -> None:
    async with tcp_server(answering(b"")) as url:
        with pytest.raises(RemoteUnreachable, match="closed the connection without an answer"):
            await fetch(url)


async def test_silence_is_a_timeout_that_names_its_length() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with tcp_server(silent) as url:
        with pytest.raises(RemoteTimeout, match=r"the server sent nothing for 0\.05 s"):
            await fetch(url, timeout_s=0.05)


async def test_silence_in_the_middle_of_a_body_is_a_timeout() -> None:
    async def halting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ok(b"hello")[:-2])
        await reader.read()

    async with tcp_server(halting) as url:
        with pytest.raises(RemoteTimeout):
            await fetch(url, timeout_s=0.05)


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        ok(b"hello")[:-2],
        ok(b"not gzip", b"content-encoding: gzip"),
    ],
    ids=["not HTTP", "cut body", "undecodable body"],
)
async def test_a_broken_answer_is_malformed(raw: bytes) -> None:
    async with tcp_server(answering(raw)) as url:
        with pytest.raises(MalformedReply, match="the server"):
            await fetch(url)


async def test_redirects_are_not_followed_and_cookies_not_kept() -> None:
    asked = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: /other\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()

    async with tcp_server(handle) as url, open_client(timeout_s=5) as client:
        assert (await client.get(url)).status_code == 302
        assert (await client.get(url)).status_code == 302
    assert len(asked) == 2
    assert b"cookie" not in asked[1].lower()


async def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with tcp_server(answering(ok(b"direct"))) as url:
        assert await fetch(url) == b"direct"


class Connections:
    """Answers any number of requests on each connection and counts the connections; holds bodies back until `let`."""

    def __init__(self) -> None:
        self.opened = 0
        self.used: list[int] = []
        """Which connection each request came over."""
        self.let = asyncio.Event()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        number = self.opened
        while await reader.readline():
            self.used.append(number)
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ok(b"xy")[:-1])
            await self.let.wait()
            writer.write(b"y")


async def test_requests_one_after_the_other_share_a_connection() -> None:
    connections = Connections()
    connections.let.set()
    async with tcp_server(connections.handle) as url, open_client(timeout_s=5) as client:
        for _ in range(5):
            assert (await client.get(url)).text == "xy"
    assert connections.opened == 1


async def test_requests_at_once_have_a_connection_each_and_all_are_used_again() -> None:
    connections, transport = Connections(), PooledTransport()
    async with tcp_server(connections.handle) as url, open_client(timeout_s=5, transport=transport) as client:
        for _ in range(2):
            connections.let.clear()
            responses = [await client.send(client.build_request("GET", url), stream=True) for _ in range(7)]
            assert (transport.busy, transport.idle) == (7, 0)
            connections.let.set()
            for response in responses:
                await response.aread()
                await response.aclose()
            assert (transport.busy, transport.idle) == (0, 7)
    assert connections.opened == 7


async def test_the_connection_used_last_is_used_first_so_that_the_others_can_go() -> None:
    connections = Connections()
    connections.let.set()
    async with tcp_server(connections.handle) as url, open_client(timeout_s=5) as client:
        await asyncio.gather(*(client.get(url) for _ in range(5)))
        for _ in range(3):
            await client.get(url)
    assert len(connections.used) == 8
    assert len(set(connections.used[5:])) == 1


async def test_connections_idle_for_too_long_are_closed_a_few_at_each_request(monkeypatch: pytest.MonkeyPatch) -> None:
    connections, transport = Connections(), PooledTransport()
    connections.let.set()
    async with tcp_server(connections.handle) as url, open_client(timeout_s=5, transport=transport) as client:
        await asyncio.gather(*(client.get(url) for _ in range(8)))
        monkeypatch.setattr(http, "KEEPALIVE_S", 0.0)
        await client.get(url)
        assert transport.idle == 4
        await client.get(url)
        assert transport.idle == 1
        await client.get(url)
        assert transport.idle == 1


async def test_a_request_that_fails_leaves_nothing_busy() -> None:
    async with (
        tcp_server(answering(b"")) as url,
        open_client(timeout_s=5, transport=(transport := PooledTransport())) as client,
    ):
        with pytest.raises(RemoteUnreachable), remote_errors("the server"):
            await client.get(url)
    assert transport.busy == 0


async def test_another_transport_can_be_given() -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=str(request.url)))
    async with open_client(timeout_s=5, transport=transport) as client:
        assert (await client.get("https://example.com/a")).text == "https://example.com/a"


async def test_certificates_are_verified() -> None:
    assert tls_context().verify_mode is ssl.CERT_REQUIRED
    assert tls_context().check_hostname

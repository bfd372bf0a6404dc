from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from app.api.origin import OriginGuard
from tests.api.asgi import call, http_scope, websocket_scope

LOCAL_HOSTS = ["localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:1", "127.8.9.10:65535", "[::1]", "[::1]:8000"]
FOREIGN_HOSTS = [
    "",
    "evil.example",
    "localhost.evil.example",
    "evil-localhost",
    "127.0.0.1.evil.example",
    "127.0.0.1:8000@evil.example",
    "localhost:",
    "localhost:x",
    "localhost ",
    "localhost\n",
    "[::1",
    "::1",
    "10.0.0.1",
    "0.0.0.0",
    "2130706433",
    "\xe4",
]
FOREIGN_ORIGINS = [
    "null",
    "",
    "https://evil.example",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example:8000",
    "http://localhost:8000.evil.example",
    "http://evil.example#localhost",
    "http://localhost@evil.example",
    "file://localhost",
    "localhost",
    "chrome-extension://abcdef",
]


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "reached"})


def headers(host: str | None = None, origin: str | None = None) -> list[tuple[bytes, bytes]]:
    given = ((b"host", host), (b"origin", origin))
    return [(name, value.encode("latin-1")) for name, value in given if value is not None]


async def reaches(guard: OriginGuard, host: str | None = None, origin: str | None = None) -> bool:
    """Whether both a request and a WebSocket with these headers come through."""
    answers = [
        (await call(guard, make(headers=headers(host, origin))))[0]["type"] for make in (http_scope, websocket_scope)
    ]
    assert answers in (["reached"] * 2, ["http.response.start", "websocket.http.response.start"])
    return answers[0] == "reached"


# Authentication off


@pytest.fixture
def local() -> OriginGuard:
    return OriginGuard(inner, local_only=True, allowed_origins=("https://dev.example", "http://Proxy.example:81"))


@pytest.mark.parametrize("host", LOCAL_HOSTS)
async def test_a_loopback_host_is_welcome(local: OriginGuard, host: str) -> None:
    assert await reaches(local, host)


@pytest.mark.parametrize("host", [None, *FOREIGN_HOSTS])
async def test_a_foreign_host_is_refused(local: OriginGuard, host: str | None) -> None:
    assert not await reaches(local, host)


@pytest.mark.parametrize("host", LOCAL_HOSTS)
async def test_a_loopback_origin_is_welcome(local: OriginGuard, host: str) -> None:
    assert await reaches(local, "localhost:8000", f"http://{host}")


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
async def test_a_foreign_origin_is_refused(local: OriginGuard, origin: str) -> None:
    assert not await reaches(local, "localhost:8000", origin)


async def test_a_rebound_name_is_refused_although_origin_and_host_agree(local: OriginGuard) -> None:
    assert not await reaches(local, "evil.example:8000", "http://evil.example:8000")


async def test_an_allowed_origin_may_come_and_be_the_host(local: OriginGuard) -> None:
    assert await reaches(local, "localhost:8000", "https://dev.example")
    assert await reaches(local, "dev.example", "https://DEV.example")
    assert await reaches(local, "proxy.example:81")
    assert not await reaches(local, "localhost", "http://dev.example")  # another scheme is another origin
    assert not await reaches(local, "localhost", "https://dev.example:444")
    assert not await reaches(local, "localhost", "https://x.dev.example")


# Keys or tokens


@pytest.fixture
def public() -> OriginGuard:
    return OriginGuard(inner, local_only=False, allowed_origins=("https://app.example",))


async def test_with_credentials_the_host_is_anyones(public: OriginGuard) -> None:
    assert await reaches(public, "tasks.example")
    assert await reaches(public, None)


async def test_the_services_own_pages_are_welcome_also_behind_a_proxy_that_ends_tls(public: OriginGuard) -> None:
    assert await reaches(public, "tasks.example", "https://tasks.example")
    assert await reaches(public, "Tasks.example:8443", "https://tasks.example:8443")


async def test_an_allowed_origin_is_welcome(public: OriginGuard) -> None:
    assert await reaches(public, "tasks.example", "https://app.example")


@pytest.mark.parametrize(
    "origin", [*FOREIGN_ORIGINS, "https://tasks.example:444", "ftp://tasks.example", "http://localhost"]
)
async def test_pages_of_others_are_refused(public: OriginGuard, origin: str) -> None:
    assert not await reaches(public, "tasks.example", origin)


async def test_an_empty_origin_is_not_the_missing_host(public: OriginGuard) -> None:
    assert not await reaches(public, "", "http://")


# The answer


async def test_the_refusal_is_a_problem_that_says_what_was_expected(local: OriginGuard) -> None:
    start, body = await call(local, http_scope(headers=headers("evil.example")))
    assert start["status"] == 403
    document: dict[str, Any] = json.loads(body["body"])
    assert document["type"] == "urn:nightshift:problem:forbidden"
    assert "'evil.example'" in document["detail"]
    assert "NIGHTSHIFT_ALLOWED_ORIGINS" in document["detail"]


async def test_a_websocket_is_refused_before_it_is_accepted(local: OriginGuard) -> None:
    (close,) = await call(local, websocket_scope(headers=headers("evil.example"), can_answer=False))
    assert (close["type"], close["code"]) == ("websocket.close", 1008)


async def test_lifespan_passes(local: OriginGuard) -> None:
    assert await call(local, {"type": "lifespan"}) == [{"type": "reached"}]

"""Pages come from real servers over loopback.

`public.example` stands for a host of the internet: the test's resolver gives it a public address, and the test's
backend, which sees addresses only, leads the connections to public addresses to the local server and notes them.
"""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpcore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.clients.web import MAX_REDIRECTS, WebClient, fetch
from app.clients.web_addresses import is_public
from app.clients.web_body import COMPRESSION_SLACK_BYTES, PIECE_BYTES
from app.clients.web_network import WebNetwork, resolve_with_system
from app.errors import (
    MalformedReply,
    RemoteStatus,
    RemoteTimeout,
    RemoteUnreachable,
    ReplyTooLarge,
    UnsafeUrl,
)
from app.telemetry.metrics import REGISTRY

PUBLIC = "93.184.216.34"
OTHER_PUBLIC = "1.0.0.1"

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Site:
    """An HTTP server that answers each path with bytes or with a coroutine function that writes them."""

    answers: dict[str, bytes | Answer] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Heads of the requests, in lower case."""
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.requests.append(head.decode().lower())
                answer = self.answers[head.split(b" ")[1].decode()]
                if callable(answer):
                    await answer(reader, writer)
                    break
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone, which some tests are about
        finally:
            writer.close()


@dataclass
class Backend(httpcore.AsyncNetworkBackend):
    """Leads public addresses to the local server; every other address is connected to as it is."""

    port: int
    connected: list[tuple[str, int]] = field(default_factory=list)
    refusing: set[str] = field(default_factory=set)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.connected.append((host, port))
        if host in self.refusing:
            raise httpcore.ConnectError("refused")
        local = is_public(ip_address(host))
        return await httpcore.AnyIOBackend().connect_tcp(
            "127.0.0.1" if local else host, self.port if local else port, timeout=timeout
        )


def resolving(names: dict[str, list[str]]) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return names[host]

    return resolve


def reply(body: bytes = b"", *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return reply(b"", f"Location: {location}", status=status)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0)
    site.port = server.sockets[0].getsockname()[1]
    yield site
    server.close()
    await server.wait_closed()


@pytest.fixture
def backend(site: Site) -> Backend:
    return Backend(site.port)


@pytest.fixture
async def web(backend: Backend) -> AsyncIterator[WebClient]:
    names = {"public.example": [PUBLIC], "other.example": [OTHER_PUBLIC], "inside.example": ["10.0.0.5"]}
    async with WebClient(WebNetwork(resolve=resolving(names), backend=backend)) as client:
        yield client


BOUNDS = {"max_bytes": 1_000_000, "timeout_s": 10.0}


async def test_a_page_comes_with_what_the_server_said_of_it(site: Site, web: WebClient) -> None:
    site.answers["/a?b=c"] = reply(
        "grün".encode("latin1"),
        "Content-Type: Text/HTML; charset=ISO-8859-1",
        'ETag: "v1"',
        "Last-Modified: Tue, 05 Mar 2024 10:00:00 GMT",
        "X-Own: 1",
    )
    page = await web.fetch("http://public.example/a?b=c#part", **BOUNDS)
    assert (page.url, page.final_url) == ("http://public.example/a?b=c#part", "http://public.example/a?b=c")
    assert (page.status, page.content_type, page.charset) == (200, "text/html", "cp1252")
    assert (page.body, page.text) == ("grün".encode("latin1"), "grün")
    assert (page.etag, page.last_modified) == ('"v1"', "Tue, 05 Mar 2024 10:00:00 GMT")
    assert page.headers["x-own"] == "1"
    assert not page.not_modified


async def test_what_is_no_text_has_bytes_only(site: Site, web: WebClient) -> None:
    site.answers["/"] = reply(b"%PDF", "Content-Type: application/pdf")
    page = await web.fetch("http://public.example/", **BOUNDS)
    assert (page.content_type, page.charset, page.body, page.text) == ("application/pdf", None, b"%PDF", "")


async def test_a_server_that_names_no_type_sent_bytes(site: Site, web: WebClient) -> None:
    site.answers["/"] = reply(b"x")
    assert (await web.fetch("http://public.example/", **BOUNDS)).content_type == "application/octet-stream"


async def test_the_request_carries_no_cookie_no_credentials_and_the_name_as_its_host(
    site: Site, web: WebClient
) -> None:
    site.answers["/"] = reply(b"", "Set-Cookie: id=1")
    await web.fetch("http://public.example/", **BOUNDS, accept="text/plain")
    await web.fetch("http://public.example/", **BOUNDS)
    first, second = site.requests
    assert "host: public.example\r\n" in first
    assert "accept: text/plain\r\n" in first
    assert "accept-encoding: gzip, deflate\r\n" in first
    assert "user-agent: nightshift" in first
    assert not any(name in first + second for name in ("cookie", "authorization", "referer"))


async def test_proxy_variables_and_netrc_are_ignored(
    site: Site, web: WebClient, backend: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine public.example login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    site.answers["/"] = reply(b"x")
    async with WebClient(WebNetwork(resolve=resolving({"public.example": [PUBLIC]}), backend=backend)) as client:
        await client.fetch("http://public.example/", **BOUNDS)
    assert backend.connected == [(PUBLIC, 80)]
    assert "authorization" not in site.requests[0]


# Where connections may go


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.5"],
        ["169.254.169.254"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        [PUBLIC, "192.168.0.1"],
        ["192.168.0.1", PUBLIC],
        [PUBLIC, OTHER_PUBLIC, "fd00::1"],
    ],
)
async def test_a_name_with_any_private_address_is_refused_before_a_connection(
    addresses: list[str], backend: Backend
) -> None:
    network = WebNetwork(resolve=resolving({"mixed.example": addresses}), backend=backend)
    with pytest.raises(UnsafeUrl, match=r"'mixed\.example' leads to an address that is not public") as caught:
        await fetch("http://mixed.example/", **BOUNDS, network=network)
    assert backend.connected == []
    assert not any(address in str(caught.value) for address in addresses)
    assert not caught.value.retryable


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://[::ffff:7f00:1]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://user:pw@public.example/",
        "ftp://public.example/",
        "http://public.example:6379/",
    ],
)
async def test_an_unsafe_url_is_refused_before_a_connection(url: str, web: WebClient, backend: Backend) -> None:
    with pytest.raises(UnsafeUrl):
        await web.fetch(url, **BOUNDS)
    assert backend.connected == []


async def test_the_names_of_this_machine_are_refused_with_the_resolver_of_this_machine() -> None:
    with pytest.raises(UnsafeUrl, match="not public"):
        await fetch("http://localhost/", **BOUNDS, network=WebNetwork())


async def test_a_name_that_answers_differently_the_second_time_gains_nothing(site: Site, backend: Backend) -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return next(answers)

    site.answers["/"] = reply(b"x", "Connection: close")
    async with WebClient(WebNetwork(resolve=rebinding, backend=backend)) as client:
        assert (await client.fetch("http://rebinding.example/", **BOUNDS)).body == b"x"
        assert asked == ["rebinding.example"]
        assert backend.connected == [(PUBLIC, 80)]
        with pytest.raises(UnsafeUrl):
            await client.fetch("http://rebinding.example/", **BOUNDS)
    assert len(asked) == 2
    assert len(backend.connected) == 1


async def test_an_address_that_cannot_be_reached_is_followed_by_the_next(site: Site, backend: Backend) -> None:
    site.answers["/"] = reply(b"x")
    backend.refusing = {PUBLIC, "2606:4700::1"}
    names = {"many.example": [PUBLIC, PUBLIC, "1.1.1.1", "2606:4700::1", "1.1.1.2"]}
    await fetch("http://many.example/", **BOUNDS, network=WebNetwork(resolve=resolving(names), backend=backend))
    assert [host for host, _ in backend.connected] == [PUBLIC, "2606:4700::1", "1.1.1.1"]


async def test_a_host_of_which_no_address_answers_is_unreachable(backend: Backend) -> None:
    backend.refusing = {"1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4", "1.1.1.5"}
    network = WebNetwork(resolve=resolving({"many.example": sorted(backend.refusing)}), backend=backend)
    with pytest.raises(RemoteUnreachable, match=r"the page http://many\.example/x cannot be reached") as caught:
        await fetch("http://many.example/x?token=abc", **BOUNDS, network=network)
    assert "abc" not in str(caught.value)
    assert len(backend.connected) == 4


async def test_a_name_without_an_address_is_unreachable(backend: Backend) -> None:
    with pytest.raises(RemoteUnreachable, match=r"'none\.example' has no address"):
        await fetch("http://none.example/", **BOUNDS,
                    network=WebNetwork(resolve=resolving({"none.example": []}), backend=backend))  # fmt: skip


async def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    with pytest.raises(RemoteUnreachable, match="cannot be resolved"):
        await resolve_with_system("no-such-name.invalid", 80)


async def test_a_resolver_that_does_not_answer_runs_into_the_timeout(backend: Backend) -> None:
    async def silent(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(RemoteTimeout):
        await fetch("http://slow.example/", max_bytes=1, timeout_s=0.05,
                    network=WebNetwork(resolve=silent, backend=backend))  # fmt: skip


async def test_the_setting_lifts_the_rule_for_addresses_and_ports(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.answers["/"] = reply(b"here")
    url = f"http://127.0.0.1:{site.port}/"
    page = await fetch(url, **BOUNDS, network=WebNetwork(allow_private=True))
    assert page.body == b"here"
    with pytest.raises(UnsafeUrl):
        await fetch(url, **BOUNDS)


# Redirects


@pytest.mark.parametrize("status", ["301 x", "302 x", "303 x", "307 x", "308 x"])
async def test_a_redirect_is_followed(status: str, site: Site, web: WebClient) -> None:
    site.answers |= {"/a": redirect("/b?c#d", status), "/b?c": reply(b"x", "Content-Type: text/plain")}
    page = await web.fetch("http://public.example/a", **BOUNDS)
    assert (page.url, page.final_url) == ("http://public.example/a", "http://public.example/b?c")


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1/",
        "http://inside.example/",
        "//inside.example/",
        "http://[::1]/",
        "http://169.254.169.254/latest/meta-data/",
        "http://0x7f000001/",
        "file:///etc/passwd",
        "ftp://public.example/",
        "http://me:pw@public.example/",
        "http://public.example:6379/",
    ],
)
async def test_a_redirect_to_what_the_rules_refuse_is_refused(
    target: str, site: Site, web: WebClient, backend: Backend
) -> None:
    site.answers["/"] = redirect(target)
    with pytest.raises(UnsafeUrl):
        await web.fetch("http://public.example/", **BOUNDS)
    assert backend.connected == [(PUBLIC, 80)]


async def test_a_chain_of_redirects_is_checked_at_every_hop(site: Site, web: WebClient, backend: Backend) -> None:
    site.answers |= {"/1": redirect("http://other.example/2"), "/2": redirect("http://inside.example/3")}
    with pytest.raises(UnsafeUrl, match=r"inside\.example"):
        await web.fetch("http://public.example/1", **BOUNDS)
    assert backend.connected == [(PUBLIC, 80), (OTHER_PUBLIC, 80)]


async def test_five_redirects_are_followed_and_six_are_not(site: Site, web: WebClient) -> None:
    site.answers |= {f"/{number}": redirect(f"/{number - 1}") for number in range(1, 9)}
    site.answers["/0"] = reply(b"x")
    assert (await web.fetch(f"http://public.example/{MAX_REDIRECTS}", **BOUNDS)).final_url.endswith("/0")
    with pytest.raises(RemoteStatus, match="expected at most 5") as caught:
        await web.fetch(f"http://public.example/{MAX_REDIRECTS + 1}", **BOUNDS)
    assert not caught.value.retryable
    assert len(site.requests) == 2 * (MAX_REDIRECTS + 1)


async def test_a_redirect_to_something_that_is_no_url_is_malformed(site: Site, web: WebClient) -> None:
    site.answers["/"] = redirect("http://a:b:c/")
    with pytest.raises(MalformedReply, match="location"):
        await web.fetch("http://public.example/", **BOUNDS)


async def test_a_redirect_without_a_target_is_an_error_status(site: Site, web: WebClient) -> None:
    site.answers["/"] = reply(status="302 Found")
    with pytest.raises(RemoteStatus, match="302"):
        await web.fetch("http://public.example/", **BOUNDS)


# Statuses


@pytest.mark.parametrize(
    ("status", "retryable"), [("404 x", False), ("403 x", False), ("500 x", True), ("429 x", True)]
)
async def test_an_error_status_is_raised(status: str, retryable: bool, site: Site, web: WebClient) -> None:
    site.answers["/?key=abc"] = reply(b"sorry", "Retry-After: 7", status=status)
    with pytest.raises(RemoteStatus) as caught:
        await web.fetch("http://public.example/?key=abc", **BOUNDS)
    assert caught.value.remote_status == int(status[:3])
    assert caught.value.retryable is retryable
    assert caught.value.retry_after_s == 7
    assert "abc" not in str(caught.value)


async def test_a_page_that_has_not_changed_is_told_by_its_validators(site: Site, web: WebClient) -> None:
    site.answers["/"] = reply(b"", 'ETag: "v1"', status="304 Not Modified")
    page = await web.fetch(
        "http://public.example/", **BOUNDS, etag='"v1"', last_modified="Tue, 05 Mar 2024 10:00:00 GMT"
    )
    assert (page.status, page.not_modified, page.body, page.etag) == (304, True, b"", '"v1"')
    assert 'if-none-match: "v1"\r\n' in site.requests[0]
    assert "if-modified-since: tue, 05 mar 2024 10:00:00 gmt\r\n" in site.requests[0]


@pytest.mark.parametrize("etag", ['"ümlaut"', '"a\r\nx: y"', ""])
async def test_a_validator_that_no_header_can_hold_is_left_out(etag: str, site: Site, web: WebClient) -> None:
    site.answers["/"] = reply(b"x")
    assert (await web.fetch("http://public.example/", **BOUNDS, etag=etag)).body == b"x"
    assert "if-none-match" not in site.requests[0]


async def test_not_modified_without_being_asked_is_an_error(site: Site, web: WebClient) -> None:
    site.answers["/"] = reply(b"", status="304 Not Modified")
    with pytest.raises(RemoteStatus, match="304"):
        await web.fetch("http://public.example/", **BOUNDS)


# Size


async def test_a_body_of_exactly_the_bound_is_read_and_one_byte_more_is_not(site: Site, web: WebClient) -> None:
    site.answers |= {"/fits": reply(b"x" * 100), "/long": reply(b"x" * 101)}
    page = await web.fetch("http://public.example/fits", max_bytes=100, timeout_s=10)
    assert len(page.body) == 100
    with pytest.raises(ReplyTooLarge, match="more than 100 bytes"):
        await web.fetch("http://public.example/long", max_bytes=100, timeout_s=10)


async def test_a_body_that_announces_too_much_is_refused_before_it_is_read(site: Site, web: WebClient) -> None:
    site.answers["/"] = reply(b"begins", length=10**15)
    with pytest.raises(ReplyTooLarge):
        await web.fetch("http://public.example/", **BOUNDS)


async def test_a_body_without_an_end_is_cut_off_while_it_is_read(site: Site, web: WebClient) -> None:
    gone = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                await writer.drain()
        except ConnectionError:
            gone.set()

    site.answers["/"] = endless
    with pytest.raises(ReplyTooLarge):
        await web.fetch("http://public.example/", max_bytes=50_000, timeout_s=10)
    await asyncio.wait_for(gone.wait(), 10)


async def test_compressed_pages_are_decoded(site: Site, web: WebClient) -> None:
    text = b"all work and no play " * 1_000
    site.answers["/"] = reply(gzip.compress(text), "Content-Encoding: gzip", "Content-Type: text/plain")
    assert (await web.fetch("http://public.example/", max_bytes=len(text), timeout_s=10)).body == text


async def test_a_zip_bomb_stops_at_the_bound(site: Site, web: WebClient) -> None:
    bomb = gzip.compress(bytes(100_000_000))
    site.answers["/"] = reply(bomb, "Content-Encoding: gzip")
    assert len(bomb) < PIECE_BYTES
    with pytest.raises(ReplyTooLarge, match="more than 1000000 bytes"):
        await web.fetch("http://public.example/", **BOUNDS)


async def test_a_compressed_body_that_never_yields_anything_is_cut_off(site: Site, web: WebClient) -> None:
    empty_blocks = b"\x00\x00\x00\xff\xff" * COMPRESSION_SLACK_BYTES
    head = gzip.compress(b"")[:10]
    site.answers["/"] = reply(head + empty_blocks, "Content-Encoding: gzip")
    with pytest.raises(ReplyTooLarge):
        await web.fetch("http://public.example/", max_bytes=1_000, timeout_s=10)


@pytest.mark.parametrize(
    ("body", "coding"),
    [(b"not gzip", "gzip"), (gzip.compress(b"whole")[:-5], "gzip"), (b"x", "br"), (b"x", "gzip, gzip")],
)
async def test_a_body_that_cannot_be_decoded_is_malformed(body: bytes, coding: str, site: Site, web: WebClient) -> None:
    site.answers["/"] = reply(body, f"Content-Encoding: {coding}")
    with pytest.raises(MalformedReply):
        await web.fetch("http://public.example/", **BOUNDS)


# Time, and connections that break


async def test_a_body_that_trickles_runs_into_the_total_timeout(site: Site, web: WebClient) -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.01)

    site.answers["/"] = trickle
    with pytest.raises(RemoteTimeout, match=r"did not answer in full within 0\.3 s") as caught:
        await web.fetch("http://public.example/", max_bytes=1_000_000, timeout_s=0.3)
    assert caught.value.retryable


async def test_a_server_that_says_nothing_runs_into_the_timeout(site: Site, web: WebClient) -> None:
    released = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()

    site.answers["/"] = silent
    with pytest.raises(RemoteTimeout):
        await web.fetch("http://public.example/", max_bytes=1, timeout_s=0.1)
    released.set()


async def test_redirects_share_one_timeout(site: Site, web: WebClient) -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)
        writer.write(redirect("/"))
        await writer.drain()

    site.answers["/"] = slow
    with pytest.raises(RemoteTimeout):
        await web.fetch("http://public.example/", max_bytes=1, timeout_s=0.4)


async def test_a_connection_that_breaks_before_the_answer_is_unreachable(site: Site, web: WebClient) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    site.answers["/"] = hang_up
    with pytest.raises(RemoteUnreachable):
        await web.fetch("http://public.example/", **BOUNDS)


async def test_a_body_shorter_than_announced_is_malformed(site: Site, web: WebClient) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(b"part", length=1_000))

    site.answers["/"] = cut
    with pytest.raises(MalformedReply):
        await web.fetch("http://public.example/", **BOUNDS)


async def test_an_answer_that_is_not_http_is_malformed(site: Site, web: WebClient) -> None:
    site.answers["/"] = b"220 mail.example ESMTP\r\n\r\n"
    with pytest.raises(MalformedReply):
        await web.fetch("http://public.example/", **BOUNDS)


async def test_a_fetch_that_is_cancelled_closes_its_connection(site: Site, web: WebClient) -> None:
    started, closed = asyncio.Event(), asyncio.Event()

    async def wait_for_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        started.set()
        assert await reader.read() == b""
        closed.set()

    site.answers["/"] = wait_for_end
    task = asyncio.create_task(web.fetch("http://public.example/", **BOUNDS))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(closed.wait(), 10)


async def test_a_connection_is_used_again_for_the_same_host(site: Site, web: WebClient, backend: Backend) -> None:
    site.answers["/"] = reply(b"x")
    for _ in range(3):
        await web.fetch("http://public.example/", **BOUNDS)
    assert backend.connected == [(PUBLIC, 80)]


async def test_fetches_are_counted_by_their_outcome(site: Site, web: WebClient) -> None:
    def counted(outcome: str) -> float:
        return REGISTRY.get_sample_value("nightshift_web_fetches_total", {"outcome": outcome}) or 0.0

    before = (counted("ok"), counted("UnsafeUrl"))
    site.answers["/"] = reply(b"x")
    await web.fetch("http://public.example/", **BOUNDS)
    with pytest.raises(UnsafeUrl):
        await web.fetch("http://inside.example/", **BOUNDS)
    assert (counted("ok"), counted("UnsafeUrl")) == (before[0] + 1, before[1] + 1)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `public.example`, with its key, that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("public.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
async def secure_site(certificate: Path) -> AsyncIterator[tuple[Site, list[str | None]]]:
    """A server that speaks TLS, and the names that clients asked it for (SNI)."""
    names: list[str | None] = []
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    site = Site({"/": reply(b"secret")})
    server = await asyncio.start_server(site.serve, "127.0.0.1", 0, ssl=context)
    site.port = server.sockets[0].getsockname()[1]
    yield site, names
    server.close()
    await server.wait_closed()


@pytest.fixture
def secure_network(secure_site: tuple[Site, list[str | None]], certificate: Path) -> WebNetwork:
    names = {"public.example": [PUBLIC], "other.example": [PUBLIC]}
    tls = ssl.create_default_context(cafile=str(certificate))
    return WebNetwork(resolve=resolving(names), backend=Backend(secure_site[0].port), tls=tls)


async def test_the_certificate_is_verified_against_the_name_and_not_the_address(
    secure_site: tuple[Site, list[str | None]], secure_network: WebNetwork
) -> None:
    page = await fetch("https://public.example/", **BOUNDS, network=secure_network)
    assert page.body == b"secret"
    assert secure_site[1] == ["public.example"]


async def test_a_certificate_for_another_name_is_refused(secure_network: WebNetwork) -> None:
    with pytest.raises(RemoteUnreachable, match="certificate"):
        await fetch("https://other.example/", **BOUNDS, network=secure_network)


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    secure_site: tuple[Site, list[str | None]], secure_network: WebNetwork
) -> None:
    network = WebNetwork(resolve=secure_network.resolve, backend=secure_network.backend)
    with pytest.raises(RemoteUnreachable, match="certificate"):
        await fetch("https://public.example/", **BOUNDS, network=network)

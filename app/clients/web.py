"""Fetching pages whose addresses users and other pages choose, without becoming anybody's way into a private network.

    async with WebClient() as web:
        page = await web.fetch(url, max_bytes=5_000_000, timeout_s=30)

What may be asked for is decided in `web_addresses`, where a connection may go in `web_network`, how much is read in
`web_body`. What a page says is found by `app.clients.web_extract.extract`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from app.clients.http import httpx, open_client, remote_errors, status_error
from app.clients.web_addresses import safe_url
from app.clients.web_body import ACCEPT_ENCODING, read_decoded
from app.clients.web_charset import decode_text, detect_charset, split_content_type
from app.clients.web_network import GuardedTransport, WebNetwork
from app.errors import ClientError, RemoteStatus, RemoteTimeout
from app.settings import settings
from app.telemetry.metrics import WEB_FETCHES

MAX_REDIRECTS = 5
USER_AGENT = "Nightshift/0.1"
DEFAULT_ACCEPT = "text/html,application/xhtml+xml,text/plain;q=0.9,text/markdown;q=0.9,*/*;q=0.5"

_DEFAULT_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Page:
    """What a server answered."""

    url: str
    """The URL that was asked for."""
    final_url: str
    """The URL that answered, after redirects; without fragment."""
    status: int
    """2xx, or 304 when `not_modified`."""
    headers: dict[str, str]
    """Names in lower case."""
    content_type: str
    """Media type in lower case, without parameters; `application/octet-stream` when the server names none."""
    charset: str | None
    """Python's name of the encoding; None when the content is not text."""
    body: bytes
    """Decoded from its content coding; empty when `not_modified`."""
    etag: str | None
    last_modified: str | None
    not_modified: bool
    """The page is still the one that the given `etag` or `last_modified` came with."""

    @property
    def text(self) -> str:
        """The body as text; empty when it is none."""
        return decode_text(self.body, self.charset) if self.charset else ""


class WebClient:
    """Fetches pages over connections that it keeps for a while. Close it, or use it as a context manager."""

    def __init__(self, network: WebNetwork | None = None) -> None:
        """`network` is how pages are reached; None: public addresses only, unless the settings lift that."""
        self._network = network or WebNetwork(allow_private=settings().web_allow_private)
        self._client = open_client(timeout_s=30.0, transport=GuardedTransport(self._network))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def fetch(
        self,
        url: str,
        *,
        max_bytes: int,
        timeout_s: float,
        accept: str | None = None,
        etag: str | None = None,
        last_modified: str | None = None,
    ) -> Page:
        """GET `url`, through at most `MAX_REDIRECTS` redirects, each checked like the first address.

        `max_bytes` bounds the body while it is read, also when it is compressed; `timeout_s` bounds everything
        together. `accept` is the header of that name. `etag` and `last_modified` are those of a page that the caller
        still has: if it has not changed, the answer is `not_modified` and has no body.

        Raises `UnsafeUrl`, `RemoteTimeout`, `RemoteUnreachable`, `RemoteStatus` (anything but 2xx, and too many
        redirects), `ReplyTooLarge`, `MalformedReply`.
        """
        headers = _request_headers(accept, etag, last_modified)
        try:
            page = await self._fetch_in_time(url, headers, max_bytes, timeout_s)
        except ClientError as error:
            WEB_FETCHES.labels(type(error).__name__).inc()
            raise
        WEB_FETCHES.labels("not_modified" if page.not_modified else "ok").inc()
        return page

    async def _fetch_in_time(self, url: str, headers: dict[str, str], max_bytes: int, timeout_s: float) -> Page:
        try:
            async with asyncio.timeout(timeout_s):
                return await self._follow(url, headers, max_bytes, timeout_s)
        except TimeoutError as error:
            where = _described(self._safe(url))
            raise RemoteTimeout(f"{where} did not answer in full within {timeout_s:g} s") from error

    async def _follow(self, url: str, headers: dict[str, str], max_bytes: int, timeout_s: float) -> Page:
        current = self._safe(url)
        for _ in range(MAX_REDIRECTS + 1):
            request = self._client.build_request("GET", current, headers=headers, timeout=timeout_s)
            answer = await self._one(request, url, max_bytes)
            if isinstance(answer, Page):
                return answer
            current = self._safe(answer)
        where = _described(self._safe(url))
        detail = f"{where} redirected {MAX_REDIRECTS + 1} times: expected at most {MAX_REDIRECTS}"
        raise RemoteStatus(detail, remote_status=302)

    def _safe(self, url: str) -> httpx.URL:
        return safe_url(url, any_port=self._network.allow_private)

    async def _one(self, request: httpx.Request, url: str, max_bytes: int) -> Page | str:
        """The page, or where to go for it."""
        what = _described(request.url)
        with remote_errors(what):
            response = await self._client.send(request, stream=True)
        try:
            if response.next_request is not None:  # the library has read `Location`, and does not go there
                return str(response.next_request.url)
            not_modified = response.status_code == 304 and _is_conditional(request)
            if not (response.is_success or not_modified):
                raise status_error(what, response)
            body = b"" if not_modified else await read_decoded(response, max_bytes=max_bytes, what=what)
            return _page(url, response, body, not_modified)
        finally:
            await response.aclose()


async def fetch(
    url: str,
    *,
    max_bytes: int,
    timeout_s: float,
    accept: str | None = None,
    etag: str | None = None,
    last_modified: str | None = None,
    network: WebNetwork | None = None,
) -> Page:
    """One page over connections of its own; see `WebClient.fetch`."""
    async with WebClient(network) as web:
        return await web.fetch(
            url, max_bytes=max_bytes, timeout_s=timeout_s, accept=accept, etag=etag, last_modified=last_modified
        )


def _request_headers(accept: str | None, etag: str | None, last_modified: str | None) -> dict[str, str]:
    """A validator that cannot stand in a header, as some servers send, is left out: the page is then fetched anew."""
    headers = {
        "user-agent": USER_AGENT,
        "accept": accept or DEFAULT_ACCEPT,
        "accept-encoding": ACCEPT_ENCODING,
        "if-none-match": etag,
        "if-modified-since": last_modified,
    }
    return {name: value for name, value in headers.items() if value and value.isascii() and value.isprintable()}


def _is_conditional(request: httpx.Request) -> bool:
    return "if-none-match" in request.headers or "if-modified-since" in request.headers


def _described(url: httpx.URL) -> str:
    """A page without its query, which may hold somebody's credentials."""
    return f"the page {url.scheme}://{url.netloc.decode('ascii')}{url.path}"[:300]


def _page(url: str, response: httpx.Response, body: bytes, not_modified: bool) -> Page:
    content_type, declared = split_content_type(response.headers.get("content-type", _DEFAULT_TYPE))
    return Page(
        url=url,
        final_url=str(response.url),
        status=response.status_code,
        headers=dict(response.headers),
        content_type=content_type or _DEFAULT_TYPE,
        charset=detect_charset(body, content_type, declared),
        body=body,
        etag=response.headers.get("etag"),
        last_modified=response.headers.get("last-modified"),
        not_modified=not_modified,
    )

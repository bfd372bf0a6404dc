"""One OpenAI-compatible base URL: sends a request, judges the answer's status, bounds what is read.

Nothing is retried here. A refusal becomes the error that says what to do: 401 and 403 name the setting of the key, 404
those of the model and the URL, everything else keeps the server's own words and its `Retry-After`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from httpx_sse import EventSource
from pydantic import SecretStr
from pydantic_core import to_json

from app.clients.http import httpx, open_client, read_body, read_start, remote_errors, status_error
from app.clients.llm_wire import Peer
from app.errors import ClientError, CredentialsRefused, MalformedReply, RemoteStatus, ReplyTooLarge, SettingsError

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""Of one reply. A chunk of a stream is about 300 bytes for a token, so this is some 200,000 tokens."""
_ERROR_BYTES = 16 * 1024
_EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Where the server is. `prefix` is that of the settings, for errors: `NIGHTSHIFT_LLM`."""

    prefix: str
    base_url: str
    api_key: SecretStr | None
    timeout_s: float
    concurrency: int


class Endpoint:
    """Use `post` and `events`; close it with `aclose()`. Raises `SettingsError` for a URL or key that cannot be used.

    At most `concurrency` requests are open at once, the others wait their turn.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self._prefix = settings.prefix
        self._base = _base_url(settings)
        key = _api_key(settings)
        self.peer = Peer(f"the model server at {self._base.host}", key)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._client = open_client(
            timeout_s=settings.timeout_s,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    async def post(self, path: str, body: Mapping[str, Any]) -> bytes:
        """The body of the answer to a JSON request. Raises the classes under `ClientError`."""
        async with self._request(path, body, accept="application/json") as response:
            return await read_body(response, max_bytes=MAX_REPLY_BYTES, what=self.peer.label)

    @asynccontextmanager
    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[AsyncGenerator[str, None]]:
        """The data of the server-sent events that answer a JSON request, as they come."""
        async with self._request(path, body, accept=_EVENT_STREAM) as response:
            kind = response.headers.get("content-type", "")
            if _EVENT_STREAM not in kind:
                raise MalformedReply(f"{self.peer.label} answered with {kind!r}: expected {_EVENT_STREAM}")
            async with aclosing(self._data_of(response)) as data:
                yield data

    async def _data_of(self, response: httpx.Response) -> AsyncGenerator[str, None]:
        source = EventSource(cast(httpx.Response, _Bounded(response, self.peer.label)))
        with remote_errors(self.peer.label):
            async with aclosing(source.aiter_sse()) as events:
                async for event in events:
                    if event.data:
                        yield event.data

    @asynccontextmanager
    async def _request(self, path: str, body: Mapping[str, Any], *, accept: str) -> AsyncIterator[httpx.Response]:
        url = self._base.copy_with(path=self._base.path.rstrip("/") + path)
        headers = {"Content-Type": "application/json", "Accept": accept}
        async with self._slots:
            with remote_errors(self.peer.label):
                request = self._client.build_request("POST", url, content=to_json(body), headers=headers)
                response = await self._client.send(request, stream=True)
            try:
                if not response.is_success:
                    raise await self._refusal(response, str(body.get("model", "")))
                yield response
            finally:
                await response.aclose()

    async def _refusal(self, response: httpx.Response, model: str) -> ClientError:
        words = self.peer.words(await read_start(response, max_bytes=_ERROR_BYTES, what=self.peer.label))
        status = response.status_code
        if status in (401, 403):
            setting = f"{self._prefix}_API_KEY"
            advice = f"check {setting}" if self.peer.secret else f"{setting} is not set"
            return CredentialsRefused(f"{self.peer.label} refused the credentials ({status}); {advice}: {words}")
        if status == 404:
            advice = f"check {self._prefix}_MODEL and {self._prefix}_BASE_URL"
            return RemoteStatus(
                f"{self.peer.label} knows no model {model!r} at this address (404); {advice}: {words}",
                remote_status=404,
            )
        return status_error(self.peer.label, response, words)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class _Bounded:
    """The part of a response that `EventSource` reads, ended by `ReplyTooLarge` at the bound."""

    def __init__(self, response: httpx.Response, what: str) -> None:
        self.headers = response.headers
        self._response = response
        self._what = what

    async def aiter_text(self) -> AsyncGenerator[str, None]:
        left = MAX_REPLY_BYTES
        async with aclosing(cast(AsyncGenerator[str, None], self._response.aiter_text())) as texts:
            async for text in texts:
                left -= len(text)
                if left < 0:
                    raise ReplyTooLarge(f"{self._what} streamed more than {MAX_REPLY_BYTES} bytes")
                yield text


def _base_url(settings: EndpointSettings) -> httpx.URL:
    name = f"{settings.prefix}_BASE_URL"
    try:
        url = httpx.URL(settings.base_url)
    except httpx.InvalidURL as error:
        raise SettingsError(f"{name}: {error}; expected a URL such as https://host/v1") from None
    if url.userinfo:
        raise SettingsError(f"{name}: expected no credentials in the URL; they belong in {settings.prefix}_API_KEY")
    if url.scheme not in ("http", "https") or not url.host:
        raise SettingsError(f"{name}={settings.base_url!r}: expected a URL such as https://host/v1")
    return url


def _api_key(settings: EndpointSettings) -> str:
    key = settings.api_key.get_secret_value().strip() if settings.api_key else ""
    # Said here: the HTTP library would say it by repeating the header with the key in it.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError(f"{settings.prefix}_API_KEY=(secret): expected printable ASCII without spaces")
    return key

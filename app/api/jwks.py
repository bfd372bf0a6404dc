"""The public keys of a token issuer, as it publishes them (JWKS, RFC 7517), kept in memory.

Keys are fetched when they are first needed and again after `TTL_S`, then in the background while the old ones serve. A
key id that is not known may be a new key, so it causes a fetch at once, but fetches start at least `MIN_INTERVAL_S`
apart, whatever anybody sends. All requests that need a fetch share the one that runs. While the issuer cannot be
reached, its last keys serve for `STALE_S`, and not longer: a key that it has withdrawn must not count for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from loguru import logger
from pydantic_core import from_json

from app.errors import SettingsError, Unauthorized, Unavailable
from app.settings import LOOPBACK_HOSTS

TTL_S = 600.0
MIN_INTERVAL_S = 10.0
STALE_S = 86_400.0
FETCH_TIMEOUT_S = 5.0
MAX_JWKS_BYTES = 1_048_576
MIN_RSA_BITS = 2_048
"""RFC 7518, 3.3."""


class Jwks:
    """The RS256 keys published at `url`. Raises `SettingsError` for a URL that cannot be trusted to be the issuer's."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        _check_url(url)
        self._url = url
        self._clock = clock
        self._client = httpx.AsyncClient(timeout=FETCH_TIMEOUT_S, follow_redirects=False)
        self._keys: dict[str | None, RSAPublicKey] = {}
        self._fetched_s = self._tried_s = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self._failed = False

    async def key(self, key_id: str | None) -> RSAPublicKey:
        """The key of this id; without an id, the only key that there is.

        Raises `Unauthorized` when the issuer has no such key, `Unavailable` when it cannot be asked.
        """
        age_s = self._clock() - self._fetched_s
        found = self._keys.get(key_id) if age_s < STALE_S else None
        if found is None:
            await self._refresh()
            found = self._keys.get(key_id)
        elif age_s >= TTL_S:
            self._start()
        if found is None or self._clock() - self._fetched_s >= STALE_S:
            raise self._missing()
        return found

    async def aclose(self) -> None:
        """Stop a fetch that runs and close the connection."""
        if self._fetching is not None and not self._fetching.done():
            self._fetching.cancel()
            await asyncio.wait({self._fetching})
        await self._client.aclose()

    def _missing(self) -> Unauthorized | Unavailable:
        if self._failed:
            return Unavailable("the token issuer's keys cannot be read now", retry_after_s=MIN_INTERVAL_S)
        return Unauthorized("token refused: signed with a key that its issuer does not publish")

    async def _refresh(self) -> None:
        self._start()
        if self._fetching is not None:
            # Shielded: a caller that goes away must not take the others' fetch with it.
            await asyncio.shield(self._fetching)

    def _start(self) -> None:
        # A fetch is over, one way or the other, before the next one may start: FETCH_TIMEOUT_S < MIN_INTERVAL_S.
        if self._clock() - self._tried_s >= MIN_INTERVAL_S:
            self._tried_s = self._clock()
            self._fetching = asyncio.create_task(self._fetch(), name="jwks fetch")

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S):
                keys = _usable_keys(await self._download())
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError) as error:
            self._failed = True
            reason = str(error) or type(error).__name__
            logger.warning("keys of the token issuer {}: {}", urlsplit(self._url).netloc, reason)
        else:
            self._failed, self._keys, self._fetched_s = False, keys, self._clock()

    async def _download(self) -> bytes:
        async with self._client.stream("GET", self._url, headers={"Accept": "application/json"}) as response:
            if response.status_code != 200:
                raise ValueError(f"answered with status {response.status_code}")
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_JWKS_BYTES:
                    raise ValueError(f"expected at most {MAX_JWKS_BYTES} bytes")
            return bytes(body)


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in LOOPBACK_HOSTS
    if not parts.hostname or parts.username or (parts.scheme != "https" and not local):
        raise SettingsError(
            "NIGHTSHIFT_JWT_JWKS_URL: expected an https URL without credentials (http only on a loopback address)"
        )


def _usable_keys(document: bytes) -> dict[str | None, RSAPublicKey]:
    """The keys by id, and under None the only one if there is only one. Raises `ValueError` when there is none."""
    parsed = from_json(document)
    entries = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(entries, list):
        raise ValueError("expected a JWKS document")
    pairs = [(entry.get("kid"), key) for entry in entries if (key := _rsa_key(entry)) is not None]
    if not pairs:
        raise ValueError("expected at least one RSA key for RS256")
    keys: dict[str | None, RSAPublicKey] = {kid: key for kid, key in pairs if isinstance(kid, str)}
    if len(pairs) == 1:
        keys[None] = pairs[0][1]
    return keys


def _rsa_key(entry: Any) -> RSAPublicKey | None:
    # An issuer may publish keys for other uses and algorithms beside ours; they are passed over.
    if not isinstance(entry, dict) or entry.get("kty") != "RSA":
        return None
    if entry.get("use", "sig") != "sig" or entry.get("alg", "RS256") != "RS256":
        return None
    try:
        key = jwt.PyJWK(entry, "RS256").key
    except jwt.PyJWTError:
        return None
    return key if isinstance(key, RSAPublicKey) and key.key_size >= MIN_RSA_BITS else None

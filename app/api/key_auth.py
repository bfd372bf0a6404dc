"""Authentication by API keys, from the file that `app.api.api_keys` writes.

The file is looked at on every request, by one stat: a key that was made or revoked counts from the next request on,
in every process. A file that cannot be used any more closes the door (503) rather than leaving the last good state in
force, since the change that cannot be read may be a revocation.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from hmac import compare_digest
from pathlib import Path

from loguru import logger

from app.api.api_keys import KeyRecord, Signature, file_signature, hash_secret, read_keys
from app.api.principal import ADMIN_SCOPE, Principal, bearer_credentials
from app.errors import SettingsError, Unauthorized, Unavailable

_NO_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True)
class _Key:
    digest: bytes
    revoked: bool
    principal: Principal


class KeyAuthenticator:
    """Knows callers by their API key. Raises `SettingsError` at once when the file is there and cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading = asyncio.Lock()
        self._signature: Signature | None
        self._keys: dict[str, _Key] | None
        self._signature, self._keys = _load(path)

    async def authenticate(self, authorization: str | None) -> Principal:
        """The key's owner. Raises `Unauthorized`, or `Unavailable` when the key file cannot be used."""
        prefix, _, rest = bearer_credentials(authorization).partition("_")
        key_id, _, secret = rest.partition("_")
        keys = await self._current()
        key = keys.get(key_id)
        # An unknown id costs the same comparison, so that time tells neither ids nor digests.
        genuine = compare_digest(hash_secret(secret), key.digest if key else _NO_DIGEST)
        if prefix != "ns" or key is None or not genuine:
            raise Unauthorized("unknown API key")
        return _in_force(key_id, key)

    async def aclose(self) -> None:
        """Nothing is held open."""

    async def _current(self) -> dict[str, _Key]:
        signature = self._look()
        if signature != self._signature:
            async with self._reading:
                if signature != self._signature:
                    await self._reload(signature)
        if self._keys is None:
            raise Unavailable("API keys cannot be checked now; the service's log says why", retry_after_s=5.0)
        return self._keys

    def _look(self) -> Signature | None:
        try:
            return file_signature(self._path)
        except OSError as error:
            logger.error("API keys file {}: {}", self._path, error.strerror)
            raise Unavailable("API keys cannot be checked now; the service's log says why", retry_after_s=5.0) from None

    async def _reload(self, seen: Signature | None) -> None:
        try:
            self._signature, keys = await asyncio.to_thread(_load, self._path)
        except SettingsError as error:
            # Remembered with its signature: the same bad file is read, and logged, once.
            self._signature, self._keys = seen, None
            logger.error("{}; every request is refused until it is repaired", error.detail)
        else:
            self._keys = keys
            logger.info("API keys file {}: {} keys read", self._path, len(keys))


def _load(path: Path) -> tuple[Signature | None, dict[str, _Key]]:
    signature, records = read_keys(path)
    return signature, {record.id: _key(record) for record in records}


def _key(record: KeyRecord) -> _Key:
    scopes = frozenset(record.scopes)
    principal = Principal(record.user_id, scopes, ADMIN_SCOPE in scopes, record.expires_at)
    return _Key(bytes.fromhex(record.hash.removeprefix("sha256:")), record.revoked, principal)


def _in_force(key_id: str, key: _Key) -> Principal:
    if key.revoked:
        raise Unauthorized(f"API key {key_id} is revoked")
    expires_at = key.principal.expires_at
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise Unauthorized(f"API key {key_id} expired at {expires_at:%Y-%m-%dT%H:%M:%SZ}")
    return key.principal

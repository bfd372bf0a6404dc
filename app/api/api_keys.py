"""API keys at rest: the file that holds them and the operations of `nightshift keys`.

A key reads `ns_<key id>_<secret>`. The file keeps the id in clear, to find the record, and of the secret only its
SHA-256. One round of a fast hash is right here, unlike for passwords: the secret is 256 bits from the system's random
generator, so there is nothing to guess, and a slow hash would only slow down each request.

The file is replaced as a whole (written beside, synced, renamed), so that a reader sees the old or the new one and
never half of one. Writers, also in other processes, take turns by an advisory lock on `<file>.lock`. All functions
block; they are meant for commands and for a thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from app.api.principal import NAME_PATTERN, check_name
from app.errors import InvalidInput, NotFound, SettingsError

LOCK_TIMEOUT_S = 10.0
"""How long a writer waits for its turn; a write takes milliseconds."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class KeyRecord(BaseModel):
    """What is kept of one key. `hash` is `sha256:` and the hex digest of its secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[a-z0-9]{8,32}$")]
    hash: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    user_id: Name
    scopes: tuple[Name, ...] = ()
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None
    revoked: bool = False


class _KeyFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[KeyRecord, ...] = ()


def create_key(
    path: Path, user_id: str, scopes: Iterable[str] = (), expires_in: timedelta | None = None
) -> tuple[str, KeyRecord]:
    """Add a key to the file and return it with its record; the key itself cannot be had again.

    Raises `InvalidInput` for a user id, scope or life that cannot be, `SettingsError` when the file cannot be used.
    """
    if expires_in is not None and expires_in <= timedelta(0):
        raise InvalidInput(f"a key's life of {expires_in}: expected more than nothing")
    now = datetime.now(UTC)
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    record = KeyRecord(
        id=key_id,
        hash="sha256:" + hash_secret(secret).hex(),
        user_id=check_name("user id", user_id),
        scopes=tuple(sorted({check_name("scope", scope) for scope in scopes})),
        created_at=now,
        expires_at=None if expires_in is None else now + expires_in,
    )
    _change(path, lambda records: (*records, record))
    return f"ns_{key_id}_{secret}", record


def revoke_key(path: Path, key_id: str) -> KeyRecord:
    """Mark a key as revoked and return its record; running servers refuse it from their next request on.

    Doing so again changes nothing. Raises `NotFound` for an unknown id, `SettingsError` when the file cannot be used.
    """
    revoked: list[KeyRecord] = []

    def revoke(records: tuple[KeyRecord, ...]) -> tuple[KeyRecord, ...]:
        revoked.extend(one.model_copy(update={"revoked": True}) for one in records if one.id == key_id)
        if not revoked:
            raise NotFound(f"API key {key_id!r} is not in {path}")
        return tuple(revoked[0] if one.id == key_id else one for one in records)

    _change(path, revoke)
    return revoked[0]


def list_keys(path: Path) -> list[KeyRecord]:
    """All records, oldest first; none when there is no file yet. Raises `SettingsError` when it cannot be used."""
    return sorted(read_keys(path)[1], key=lambda record: record.created_at)


def hash_secret(secret: str) -> bytes:
    """The digest under which a secret is kept."""
    return hashlib.sha256(secret.encode()).digest()


Signature = tuple[int, int, int, int]
"""Inode, times (ns) of the last change of content and of permissions, size: another one means to read again."""


def file_signature(path: Path) -> Signature | None:
    """The file's signature at the price of one stat; None when there is no file. Raises `OSError`."""
    try:
        return _signature(path.stat())
    except FileNotFoundError:
        return None


def read_keys(path: Path) -> tuple[Signature | None, tuple[KeyRecord, ...]]:
    """The records, and the signature of exactly the file that they were read from.

    Raises `SettingsError`, in one line, when the file is malformed, unreadable, or writable by others.
    """
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            text = file.read()
    except FileNotFoundError:
        return None, ()
    except OSError as error:
        raise SettingsError(f"API keys file {path}: cannot be read: {error.strerror}") from error
    # Whoever can write here can make an admin key; hashes alone are no secret, so that reading it may be wider.
    if stat.S_IMODE(state.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
        raise SettingsError(f"API keys file {path}: expected it to be writable by its owner only (chmod 600)")
    return _signature(state), _parse(path, text)


def _signature(state: os.stat_result) -> Signature:
    return state.st_ino, state.st_mtime_ns, state.st_ctime_ns, state.st_size


def _parse(path: Path, text: bytes) -> tuple[KeyRecord, ...]:
    try:
        records = _KeyFile.model_validate_json(text).keys
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise SettingsError(f"API keys file {path}: {where}: {first['msg']}") from None
    ids = [record.id for record in records]
    if len(set(ids)) != len(ids):
        raise SettingsError(f"API keys file {path}: expected every id once")
    return records


def _change(path: Path, change: Callable[[tuple[KeyRecord, ...]], tuple[KeyRecord, ...]]) -> None:
    # A mounted or linked file stays a link: its target is replaced.
    target = path.resolve()
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _write_turn(target):
            _replace(target, change(read_keys(target)[1]))
    except OSError as error:
        raise SettingsError(f"API keys file {path}: cannot be written: {error.strerror}") from error


@contextmanager
def _write_turn(path: Path) -> Iterator[None]:
    # The lock has a file of its own, which is never removed: the key file itself is another one after each write.
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise SettingsError(
                    f"API keys file {path}: another process holds {path}.lock for more than {LOCK_TIMEOUT_S:g} s"
                ) from None
            time.sleep(0.02)


def _replace(path: Path, records: tuple[KeyRecord, ...]) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # made with mode 0600
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _keep_owner(path, file.fileno())
            file.write(_KeyFile(keys=records).model_dump_json(indent=2).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _keep_owner(path: Path, descriptor: int) -> None:
    # Root adding a key must not take the file away from the account that the service runs as.
    if path.exists():
        old, new = path.stat(), os.fstat(descriptor)
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.fchown(descriptor, old.st_uid, old.st_gid)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Who calls: the result of every way to authenticate, and the few checks that all of them share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from app.errors import Forbidden, InvalidInput, Unauthorized

ADMIN_SCOPE = "admin"
"""Whoever has it sees and operates everything, whoever owns it."""

MAX_CREDENTIALS_CHARS = 8_192
"""Longer credentials are refused unread: parsing them would be work that a stranger can ask for."""

NAME_PATTERN = r"^[A-Za-z0-9._@:|-]{1,128}$"
"""User ids and scopes: what can stand in a Redis key, a log line and a header without quoting."""

RESERVED_NAMES = frozenset({"arq"})
"""Nobody's: `arq` owns the tasks that stock arq clients enqueue, which only an admin sees."""

_NAME = re.compile(NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credentials were accepted. `expires_at` (UTC) is when they end; None: they do not."""

    user_id: str
    scopes: frozenset[str]
    is_admin: bool
    expires_at: datetime | None = None

    def has_scope(self, scope: str) -> bool:
        """Whether the caller may do what `scope` stands for; an admin may do everything."""
        return self.is_admin or scope in self.scopes

    def require_scope(self, scope: str) -> None:
        """Raise `Forbidden` unless the caller has the scope."""
        if not self.has_scope(scope):
            raise Forbidden(f"user {self.user_id!r} lacks the scope {scope!r}")


def is_name(value: str) -> bool:
    """Whether a value can be a user id or a scope."""
    return _NAME.fullmatch(value) is not None and value not in RESERVED_NAMES


def check_name(kind: str, value: str) -> str:
    """The value itself. Raises `InvalidInput`, naming the `kind`, when it can be neither user id nor scope."""
    if not is_name(value):
        raise InvalidInput(
            f"{kind} {value!r}: expected 1 to 128 characters out of A-Z a-z 0-9 . _ @ : | -, and not arq"
        )
    return value


def bearer_credentials(authorization: str | None) -> str:
    """What follows `Bearer` in an Authorization header. Raises `Unauthorized` when there is nothing usable."""
    if not authorization:
        raise Unauthorized("credentials are missing: expected a header `Authorization: Bearer <API key or JWT>`")
    scheme, _, credentials = authorization.partition(" ")
    credentials = credentials.strip()
    if scheme.lower() != "bearer" or not credentials:
        raise Unauthorized("unusable credentials: expected a header `Authorization: Bearer <API key or JWT>`")
    if len(credentials) > MAX_CREDENTIALS_CHARS:
        raise Unauthorized(f"unusable credentials: expected at most {MAX_CREDENTIALS_CHARS} characters")
    return credentials

"""Single-use tickets: a browser cannot send a header with a WebSocket, so it fetches a ticket and names it in the URL.

Only the digest is stored, so that nobody who reads Redis can use a ticket; 60 s is enough to open a connection.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json
from redis.asyncio import Redis

from app.store import keys

TICKET_TTL_S = 60
MAX_TICKET_CHARS = 200


@dataclass(frozen=True, slots=True)
class Ticket:
    """A fresh ticket; `value` is shown once."""

    value: str
    expires_in_s: int


class Tickets:
    """Make and redeem tickets."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def issue(self, claims: dict[str, Any]) -> Ticket:
        """A ticket that stands for `claims`, any JSON object."""
        value = secrets.token_urlsafe(32)
        await self._redis.set(keys.ticket(_digest(value)), to_json(claims), ex=TICKET_TTL_S)
        return Ticket(value, TICKET_TTL_S)

    async def redeem(self, value: str) -> dict[str, Any] | None:
        """The claims of a ticket, once; None when it is unknown, used or expired."""
        if not value or len(value) > MAX_TICKET_CHARS:
            return None
        claims = await self._redis.getdel(keys.ticket(_digest(value)))
        return dict(from_json(claims)) if claims else None


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()

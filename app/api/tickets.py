"""Tickets: what a browser, which cannot send a header with a WebSocket, names in its URL instead.

A ticket stands for the caller who fetched it, with the same scopes and the same end of credentials.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from app.api.auth import Caller
from app.api.dependencies import EngineDep
from app.api.openapi import problem_responses
from app.api.principal import Principal
from app.engine.service import Engine
from app.errors import Unauthorized

router = APIRouter(tags=["events"], responses=problem_responses(401, 403, 503))


class TicketView(BaseModel):
    """A ticket for one WebSocket: `/ws?ticket=<ticket>`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"ticket": "Zr0…", "expires_in_s": 60}]})

    ticket: str = Field(description="Good for one connection. It is shown here only.")
    expires_in_s: int = Field(description="Seconds until it is of no use.")


@router.post("/api/tickets", status_code=201, summary="Get a ticket for a WebSocket")
async def issue_ticket(caller: Caller, engine: EngineDep) -> TicketView:
    """A single-use ticket of 60 s that stands for the caller."""
    ticket = await engine.tickets.issue(claims_of(caller))
    return TicketView(ticket=ticket.value, expires_in_s=ticket.expires_in_s)


async def redeem_ticket(engine: Engine, value: str) -> Principal:
    """The caller for whom a ticket stands; it is used up. Raises `Unauthorized`."""
    claims = await engine.tickets.redeem(value)
    if claims is None:
        raise Unauthorized("unknown, used or expired ticket: expected a fresh one from POST /api/tickets")
    principal = principal_of(claims)
    if principal.expires_at is not None and principal.expires_at <= datetime.now(UTC):
        raise Unauthorized("the credentials that the ticket was made with have expired")
    return principal


def claims_of(caller: Principal) -> dict[str, Any]:
    """What a ticket stores of its caller."""
    return {
        "user_id": caller.user_id,
        "scopes": sorted(caller.scopes),
        "is_admin": caller.is_admin,
        "expires_at": caller.expires_at and caller.expires_at.isoformat(),
    }


def principal_of(claims: dict[str, Any]) -> Principal:
    """The caller again."""
    expires_at = claims["expires_at"]
    return Principal(
        claims["user_id"],
        frozenset(claims["scopes"]),
        claims["is_admin"],
        datetime.fromisoformat(expires_at) if expires_at else None,
    )

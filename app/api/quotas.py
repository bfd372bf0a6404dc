"""Quotas: what keys may use a minute over all processes, and what they use."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.api.auth import Caller
from app.api.dependencies import EngineDep
from app.api.openapi import problem_responses
from app.api.task_views import list_response
from app.engine.limits import QuotaStats

router = APIRouter(prefix="/api/quotas", tags=["operation"], responses=problem_responses(401, 403, 503))


class QuotaView(BaseModel):
    """A key that has limits, now, over all processes and users. A limit that is null is none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "key": "llm",
                    "requests_per_minute": 60,
                    "tokens_per_minute": 100_000,
                    "concurrency": None,
                    "requests_used": 12,
                    "tokens_used": 18_304,
                    "held": 0,
                    "waiting": 0,
                    "share": 1.0,
                    "shrunk_until": None,
                }
            ]
        }
    )

    key: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None = Field(description="Calls open at once.")
    requests_used: int = Field(description="In the last minute, reservations of calls under way included.")
    tokens_used: int = Field(description="The same.")
    held: int = Field(description="Slots that are held; counted where `concurrency` is a number.")
    waiting: int = Field(description="Calls that wait for their turn.")
    share: float = Field(description="Of the limits that is in force; under 1 after the provider refused a call (429).")
    shrunk_until: AwareDatetime | None = Field(description="Until when; null while the limits are whole.")


class QuotaList(BaseModel):
    """All keys that have limits, by name."""

    items: list[QuotaView]
    next_cursor: None = Field(description="Null: there is one page.")


@router.get("", summary="List quotas", response_model=QuotaList)
async def list_quotas(caller: Caller, engine: EngineDep) -> Response:
    """Every key that the settings give limits. Any caller may see these sums over all users."""
    return list_response([_view(stats) for stats in await engine.quotas.stats()])


def _view(stats: QuotaStats) -> dict[str, Any]:
    return {
        "key": stats.key,
        **stats.limits._asdict(),
        "requests_used": stats.requests_used,
        "tokens_used": stats.tokens_used,
        "held": stats.held,
        "waiting": stats.waiting,
        "share": stats.share,
        "shrunk_until": stats.shrunk_until,
    }

"""`GET /api/quotas`: what keys may use, and what they use now."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest

from app.api.quotas import QuotaList
from app.errors import RemoteStatus
from tests.api.running import api_on
from tests.support import PATIENCE_S

LIMITS = {"llm_requests_per_minute": 60, "llm_concurrency": 1, "quotas": "web=/500"}


async def test_quotas_tell_limits_use_and_who_waits(redis_url: str) -> None:
    async with api_on(redis_url, **LIMITS) as api:
        quotas = api.engine.quotas

        async def another() -> None:
            async with quotas.hold("llm:x", tokens=5):
                pass

        async with quotas.hold("llm", tokens=70):
            waiting = asyncio.create_task(another())
            async with asyncio.timeout(PATIENCE_S):
                while not (page := (await api.bob.get("/api/quotas")).json())["items"][0]["waiting"]:
                    pass
        await waiting
    QuotaList.model_validate(page)
    llm, web = page["items"]
    assert llm == {
        "key": "llm",
        "requests_per_minute": 60,
        "tokens_per_minute": None,
        "concurrency": 1,
        "requests_used": 1,
        "tokens_used": 70,
        "held": 1,
        "waiting": 1,
        "share": 1.0,
        "shrunk_until": None,
    }
    assert (web["key"], web["tokens_per_minute"], web["requests_used"]) == ("web", 500, 0)


async def test_quotas_tell_until_when_a_refusal_holds(redis_url: str) -> None:
    async with api_on(redis_url, **LIMITS) as api:
        with pytest.raises(RemoteStatus):
            async with api.engine.quotas.hold("web", tokens=5):
                raise RemoteStatus("slow down", remote_status=429)
        web = (await api.ada.get("/api/quotas")).json()["items"][1]
    assert (web["share"], web["tokens_used"]) == (0.5, 0)
    assert datetime.fromisoformat(web["shrunk_until"]).tzinfo is not None


async def test_without_limits_there_are_no_quotas(redis_url: str) -> None:
    async with api_on(redis_url) as api:
        assert (await api.ada.get("/api/quotas")).json() == {"items": [], "next_cursor": None}

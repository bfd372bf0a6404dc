"""All calls of a model are made within their quotas: what is reserved, what is settled, who waits, and who cannot
evade."""

from __future__ import annotations

import ast
import asyncio
from pathlib import Path
from typing import Any

from app.engine.job import Status
from app.engine.limits import QuotaStats
from app.engine.service import Engine
from app.store import keys
from tests.domains.support import past_events, post, run, service_on
from tests.fakes.model_server import ModelServer, Refuse, Reply
from tests.fakes.repositories import commit_files, make_checkout
from tests.simulated import server_ms
from tests.support import PATIENCE_S, event_of, finished

ROOT = Path(__file__).parents[2]


def model_of(server: ModelServer, **limits: Any) -> dict[str, Any]:
    return {"llm_base_url": server.base_url, "llm_model": server.model, "llm_timeout_s": 5.0, **limits}


async def llm(engine: Engine, key: str = "llm") -> QuotaStats:
    (found,) = [stats for stats in await engine.quotas.stats() if stats.key == key]
    return found


async def test_a_call_reserves_its_estimate_and_is_settled_with_its_usage(redis_url: str, tmp_path: Path) -> None:
    limits = {"llm_requests_per_minute": 10, "llm_tokens_per_minute": 5_000, "llm_concurrency": 2}
    async with ModelServer() as server, service_on(redis_url, tmp_path, **model_of(server, **limits)) as engine:
        server.script(Reply("one two", usage=(31, 4), gated=True))
        task_id = await post(engine, "agent.run", prompt="x" * 400, max_tokens=200)
        await server.until(lambda seen: seen.open_now == 1)
        during = await llm(engine)
        server.gate.open()
        await finished(engine, task_id)
        after = await llm(engine)
    assert (during.requests_used, during.tokens_used, during.held) == (1, 304, 1)
    assert (after.requests_used, after.tokens_used, after.held) == (1, 35, 0)


async def test_a_reply_without_a_bound_is_reserved_with_some_room(redis_url: str, tmp_path: Path) -> None:
    async with (
        ModelServer() as server,
        service_on(redis_url, tmp_path, **model_of(server, llm_tokens_per_minute=500)) as engine,
    ):
        server.script(Reply("one two", gated=True))
        task_id = await post(engine, "agent.run", prompt="hello")
        await server.until(lambda seen: seen.open_now == 1)
        assert (await llm(engine)).tokens_used == 500, "no more than there is"
        server.gate.open()
        await finished(engine, task_id)


async def test_a_call_that_can_never_fit_fails_at_once_and_names_the_limit(redis_url: str, tmp_path: Path) -> None:
    async with (
        ModelServer() as server,
        service_on(redis_url, tmp_path, **model_of(server, llm_tokens_per_minute=100)) as engine,
    ):
        record = await run(engine, "agent.run", prompt="hello", max_tokens=101)
    assert (record.status, record.attempt) == (Status.FAILURE, 1)
    assert record.error is not None
    assert record.error.type == "QuotaTooSmall"
    assert "at most 100 tokens a minute" in record.error.message
    assert server.requests == []


async def test_a_model_with_limits_of_its_own_has_them_to_itself(redis_url: str, tmp_path: Path) -> None:
    limits = {"llm_requests_per_minute": 10, "quotas": "llm:large=5"}
    async with ModelServer() as server, service_on(redis_url, tmp_path, **model_of(server, **limits)) as engine:
        for model in (None, "large", "other"):
            await run(engine, "agent.run", prompt="hello", model=model)
        assert ((await llm(engine)).requests_used, (await llm(engine, "llm:large")).requests_used) == (2, 1)


async def test_no_more_calls_are_open_than_there_are_slots(redis_url: str, tmp_path: Path) -> None:
    async with (
        ModelServer(delay_s=0.01) as server,
        service_on(redis_url, tmp_path, **model_of(server, llm_concurrency=2)) as engine,
    ):
        ids = [await post(engine, "agent.run", prompt=f"count to {number}") for number in range(8)]
        for task_id in ids:
            assert (await finished(engine, task_id)).status is Status.SUCCESS
    assert server.open_most == 2


async def test_an_agent_that_waits_long_leaves_and_streams_once_when_it_is_back(redis_url: str, tmp_path: Path) -> None:
    async with (
        ModelServer() as server,
        service_on(redis_url, tmp_path, **model_of(server, llm_requests_per_minute=1)) as engine,
    ):
        await run(engine, "agent.run", prompt="first")
        task_id = await post(engine, "agent.run", prompt="second")
        left = await event_of(engine, task_id, "task_retrying")
        assert left["error"]["type"] == "WaitingForQuota"
        await engine.redis.delete(keys.PREFIXES["quota"] + "llm")
        await engine.redis.zadd(keys.queue("agent"), {task_id: await server_ms(engine.redis)}, xx=True)
        record = await finished(engine, task_id)
        events = [event.type for event in await past_events(engine, task_id)]
    assert (record.status, record.attempt) == (Status.SUCCESS, 1)
    assert events.count("stream_start") == 1
    assert len(server.requests) == 2


async def test_a_refusal_stops_the_key_and_counts_no_tokens(redis_url: str, tmp_path: Path) -> None:
    async with (
        ModelServer() as server,
        service_on(redis_url, tmp_path, **model_of(server, llm_tokens_per_minute=5_000)) as engine,
    ):
        server.script(Refuse(429, "Rate limit reached", headers={"x-ratelimit-reset-tokens": "1m30s"}))
        task_id = await post(engine, "agent.run", prompt="hello")
        async with asyncio.timeout(PATIENCE_S):
            while (stats := await llm(engine)).shrunk_until is None:
                await asyncio.sleep(0.01)
        await engine.tasks.cancel(task_id, user_id="ada")
    assert (stats.requests_used, stats.tokens_used, stats.share) == (1, 0, 0.0)


async def test_a_digest_is_asked_for_within_the_quota_too(redis_url: str, tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "tidewatch")
    commit_files(checkout, {"README.md": "# Tidewatch\n\nPredicts tides.\n"}, "Tides", at=1_700_000_000)
    async with (
        ModelServer() as server,
        service_on(redis_url, tmp_path, **model_of(server, llm_requests_per_minute=100)) as engine,
    ):
        await run(engine, "git.digest", url=str(checkout))
        stats = await llm(engine)
    assert stats.requests_used == len(server.requests) >= 3
    assert 0 < stats.tokens_used < 1_000, "settled: the reply alone was reserved with more"


async def test_the_offline_model_needs_no_quota(redis_url: str, tmp_path: Path) -> None:
    async with service_on(redis_url, tmp_path, llm_requests_per_minute=1) as engine:
        for _ in range(2):
            assert (await run(engine, "agent.run", prompt="The sky is blue.")).status is Status.SUCCESS
        assert (await llm(engine)).requests_used == 0


def names_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return used | {item.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for item in node.names}


def test_no_task_can_reach_a_model_that_is_not_metered() -> None:
    allowed = ROOT / "app/domains/resources.py"
    assert "_MODEL" in names_of(allowed)
    for path in sorted((ROOT / "app/domains").rglob("*.py")):
        if path != allowed:
            assert names_of(path).isdisjoint({"_MODEL", "open_model", "RemoteModel", "unmetered", "_reserved"}), path

"""`arq worker.WorkerSettings` with its flags, as arq documents them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.catalogue import LANES, catalogue
from app.engine.job import Status
from app.engine.submissions import Submission
from tests.acceptance.processes import worker
from tests.acceptance.test_workers import alive
from tests.support import PATIENCE_S, engine_on, finished

pytestmark = pytest.mark.acceptance


async def test_burst_works_until_the_queues_are_empty_and_ends(redis_url: str, tmp_path: Path) -> None:
    async with engine_on(redis_url, catalogue(), lanes=LANES) as engine:
        accepted = await engine.tasks.enqueue_many(
            [Submission("system.echo", {"value": n}) for n in range(20)]
            + [Submission("system.echo", {"value": "later"}, delay_s=0.5)],
            user_id="ada",
        )
        async with worker("burst", tmp_path, redis_url, "--burst", module="worker") as burst:
            assert await burst.exit_code() == 0
        records = [await engine.tasks.get(item.task_id, user_id="ada") for item in accepted]
    assert {record.status for record in records} == {Status.SUCCESS}


async def test_check_tells_whether_a_worker_lives(redis_url: str, tmp_path: Path) -> None:
    async with worker("without", tmp_path, redis_url, "--check", module="worker") as check:
        assert await check.exit_code() == 1
    async with (
        engine_on(redis_url, catalogue(), lanes=LANES) as engine,
        worker("worker", tmp_path, redis_url, module="worker"),
    ):
        await alive(engine, 1)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                async with worker("check", tmp_path, redis_url, "--check", module="worker") as check:
                    if await check.exit_code() == 0:
                        break


async def test_watch_starts_the_worker_again_when_a_file_changes(redis_url: str, tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    async with (
        engine_on(redis_url, catalogue(), lanes=LANES) as engine,
        worker("watch", tmp_path, redis_url, "--watch", str(watched), module="worker"),
    ):
        await alive(engine, 1)
        (before,) = await engine.workers()
        async with asyncio.timeout(PATIENCE_S):
            while {item["worker_id"] for item in await engine.workers()} <= {before["worker_id"]}:
                (watched / "changed.py").write_text("")
                await asyncio.sleep(0.2)
        accepted = await engine.tasks.enqueue(Submission("system.echo", {"value": 1}), user_id="ada")
        record = await finished(engine, accepted.task_id)
    assert record.status is Status.SUCCESS

"""The tasks that check an installation do what they promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.engine.job import Status
from tests.domains.support import past_events, run, service_on


@pytest.mark.parametrize("value", [None, 1, 1.5, "text", [1, {"a": None}], {"deep": {"er": [True]}}])
async def test_echo_returns_any_value_as_it_came(redis_url: str, tmp_path: Path, value: Any) -> None:
    async with service_on(redis_url, tmp_path) as engine:
        record = await run(engine, "system.echo", value=value)
    assert (record.status, record.result) == (Status.SUCCESS, {"value": value})


async def test_sleep_reports_each_of_its_steps(redis_url: str, tmp_path: Path) -> None:
    async with service_on(redis_url, tmp_path) as engine:
        record = await run(engine, "system.sleep", seconds=0.02, steps=4)
        events = await past_events(engine, record.task_id)
    percents = [event.data()["percent"] for event in events if event.type == "task_progress"]
    assert percents == [25.0, 50.0, 75.0, 100.0]
    assert record.result == {"seconds": 0.02}
    assert record.progress is not None
    assert record.progress.label == "slept 4 of 4"


async def test_fail_fails_as_often_as_asked_with_a_second_between_and_then_succeeds(
    redis_url: str, tmp_path: Path
) -> None:
    async with service_on(redis_url, tmp_path) as engine:
        record = await run(engine, "system.fail", times=1)
        events = await past_events(engine, record.task_id)
    assert (record.status, record.attempt, record.result) == (Status.SUCCESS, 2, {"attempt": 2})
    first, second = (event.at for event in events if event.type == "task_started")
    assert (second - first).total_seconds() >= 1.0


async def test_an_error_that_is_not_retryable_fails_at_once(redis_url: str, tmp_path: Path) -> None:
    async with service_on(redis_url, tmp_path) as engine:
        record = await run(engine, "system.fail", retryable=False)
    assert (record.status, record.attempt) == (Status.FAILURE, 1)
    assert record.error is not None
    assert (record.error.type, record.error.retryable) == ("PermanentError", False)

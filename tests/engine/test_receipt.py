"""The record of a new task is the one that a read would bring."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from app.engine.context import TaskContext
from app.engine.queue import Accepted
from app.engine.receipt import record_of_new
from app.engine.registry import task
from app.engine.submissions import Submission
from tests.support import engine_on


class Nothing(BaseModel):
    pass


@task("test.nothing", queue="other")
async def nothing(ctx: TaskContext, params: Nothing) -> None:
    return None


SOON = datetime.now(UTC) + timedelta(hours=1)


@pytest.mark.parametrize(
    "item",
    [
        Submission("test.nothing"),
        Submission("test.nothing", delay_s=61.2345),
        Submission("test.nothing", run_at=SOON),
        Submission("test.nothing", run_at=SOON - timedelta(days=400)),
        Submission("test.nothing", project_id="p", tags=("a", "b"), priority=3, root_id="r", retry_of="old"),
        Submission("test.nothing", idempotency_key="k"),
    ],
)
async def test_the_record_of_a_new_task_is_what_a_read_brings(redis_url: str, item: Submission) -> None:
    async with engine_on(redis_url, (nothing,)) as engine:
        accepted = await engine.tasks.enqueue(item, user_id="ada", correlation_id="c-1")
        read = await engine.tasks.get(accepted.task_id, user_id="ada")
    assert record_of_new(accepted, item, nothing.spec, user_id="ada", correlation_id="c-1") == read


async def test_a_child_of_nobody_else_has_its_parent_for_a_root(redis_url: str) -> None:
    async with engine_on(redis_url, (nothing,)) as engine:
        parent = await engine.tasks.enqueue(Submission("test.nothing"), user_id="ada")
        item = Submission("test.nothing", parent_id=parent.task_id)
        accepted = await engine.tasks.enqueue(item, user_id="ada")
        read = await engine.tasks.get(accepted.task_id, user_id="ada")
    assert record_of_new(accepted, item, nothing.spec, user_id="ada", correlation_id=None) == read


async def test_the_first_task_of_an_idempotency_key_has_no_record_without_a_read(redis_url: str) -> None:
    item = Submission("test.nothing", idempotency_key="k")
    async with engine_on(redis_url, (nothing,)) as engine:
        first = await engine.tasks.enqueue(item, user_id="ada")
        again = await engine.tasks.enqueue(item, user_id="ada")
    assert again == replace(first, created=False, enqueued_at=None)
    with pytest.raises(ValueError, match="just made"):
        record_of_new(again, item, nothing.spec, user_id="ada", correlation_id=None)


def test_an_accepted_task_without_its_time_has_no_record() -> None:
    with pytest.raises(ValueError, match="t-1"):
        record_of_new(
            Accepted("t-1", True), Submission("test.nothing"), nothing.spec, user_id="ada", correlation_id=None
        )

"""What is sent of a task fits what OpenAPI says of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic_core import from_json

from app.api.task_views import EXAMPLE, TaskView, json_bytes, poll_interval_ms, task_json, task_view
from app.engine.job import ErrorInfo, Progress, Status, Step, TaskRecord

NOW = datetime(2026, 11, 21, 20, 15, tzinfo=UTC)


def record(status: Status = Status.STARTED, **fields: object) -> TaskRecord:
    empty = dict.fromkeys(TaskRecord.__dataclass_fields__) | {"steps": ()}
    known = {
        "task_id": "t",
        "task": "a.b",
        "queue": "default",
        "user_id": "ada",
        "attempt": 1,
        "priority": 0,
        "tags": (),
    }
    return TaskRecord(**{**empty, **known, "status": status, "enqueued_at": NOW, "has_result": False, **fields})  # type: ignore[arg-type]


FULL = record(
    max_attempts=4,
    project_id="p",
    parent_id="parent",
    root_id="root",
    retry_of="old",
    correlation_id="c",
    tags=("a", "b"),
    progress=Progress(1.5, 3, 50, "half", NOW),
    error=ErrorInfo("RemoteStatus", "500", True, {"remote_status": 500}),
    due_at=NOW,
    started_at=NOW,
    finished_at=NOW,
    result={"x": [1, None]},
)


@pytest.mark.parametrize("one", [record(), FULL, record(Status.RETRY, due_at=NOW)], ids=["bare", "full", "retry"])
def test_a_view_has_the_members_of_its_model(one: TaskRecord) -> None:
    sent = from_json(task_json(one))
    assert list(sent) == [*task_view(one), "result", "steps"]
    assert set(sent) == set(TaskView.model_fields)
    assert from_json(TaskView.model_validate(sent).model_dump_json()) == sent
    for name in ("enqueued_at", "started_at", "finished_at", "next_attempt_at"):
        assert sent[name] is None or sent[name].endswith("Z")


def test_an_error_carries_its_further_members() -> None:
    assert task_view(FULL)["error"] == {
        "type": "RemoteStatus",
        "message": "500",
        "retryable": True,
        "remote_status": 500,
    }


def test_the_example_is_a_task() -> None:
    assert set(EXAMPLE) == set(TaskView.model_fields)
    TaskView.model_validate(EXAMPLE)


def test_numbers_that_json_cannot_hold_are_null() -> None:
    assert json_bytes({"r": [float("nan"), float("inf"), 1.0]}) == b'{"r":[null,null,1.0]}'


@pytest.mark.parametrize(
    ("one", "age_s", "expected_ms"),
    [
        (record(Status.SUCCESS), 0, 0),
        (record(Status.FAILURE), 1_000, 0),
        (record(Status.CANCELLED), 1_000, 0),
        (record(Status.PENDING), -5, 250),
        (record(Status.PENDING), 0, 250),
        (record(Status.PENDING), 2.5, 250),
        (record(Status.STARTED), 10, 1_000),
        (record(Status.STARTED), 3_600, 10_000),
        (record(Status.STARTED, started_at=NOW + timedelta(seconds=90)), 100, 1_000),
        (record(Status.PENDING, due_at=NOW + timedelta(seconds=5)), 0, 5_250),
        (record(Status.RETRY, due_at=NOW + timedelta(seconds=600)), 0, 10_000),
        (record(Status.RETRY, due_at=NOW + timedelta(seconds=5)), 20, 2_000),
    ],
)
def test_the_poll_interval_grows_with_age(one: TaskRecord, age_s: float, expected_ms: int) -> None:
    assert poll_interval_ms(one, NOW + timedelta(seconds=age_s)) == expected_ms


def test_completed_steps_are_shown_with_their_times() -> None:
    view = from_json(task_json(record(steps=(Step(0, "fetch", NOW, 0.25),))))
    assert view["steps"] == [{"name": "fetch", "completed_at": "2026-11-21T20:15:00Z", "duration_s": 0.25}]
    TaskView.model_validate(view)

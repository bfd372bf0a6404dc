"""The record of a task, and how errors are kept."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.job import (
    FINISHED,
    ErrorInfo,
    Status,
    bound_text,
    fields_of,
    moment,
    new_task_id,
    record_of,
)
from app.errors import MAX_ERROR_TEXT, MergeConflict, RemoteStatus, RetryableError, SoftTimeLimit

FIELDS = {
    "task": "test.work",
    "queue": "default",
    "status": "PENDING",
    "user_id": "ada",
    "enqueued_at": "1763000000123",
}


def test_ids_are_new_and_sort_in_the_order_in_which_they_were_made() -> None:
    made = [new_task_id() for _ in range(100_000)]
    assert len(set(made)) == 100_000
    assert all(len(task_id) == 32 and int(task_id, 16) >= 0 for task_id in made)
    assert made == sorted(made)


def test_three_statuses_are_final() -> None:
    assert {status for status in Status if status.is_finished} == FINISHED == {"SUCCESS", "FAILURE", "CANCELLED"}


@given(st.text(st.characters(codec=None, categories=None), max_size=50), st.integers(40, 60))
def test_a_bounded_text_keeps_its_bound_and_can_be_written(text: str, limit: int) -> None:
    kept = bound_text(text * 3, limit)
    assert len(kept) <= limit
    kept.encode()


def test_a_text_that_is_cut_says_how_long_it_was() -> None:
    kept = bound_text("x" * 5_000)
    assert len(kept) == MAX_ERROR_TEXT
    assert kept.endswith("… (5000 characters in all)")
    assert bound_text("x" * MAX_ERROR_TEXT) == "x" * MAX_ERROR_TEXT


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (RetryableError("later"), "RetryableError", "later"),
        (ValueError(), "ValueError", ""),
        (SoftTimeLimit(), "SoftTimeLimit", "the soft time limit was reached"),
        (OSError("no \udcff"), "OSError", "no \\udcff"),
        (Unprintable(), "Unprintable", "(its text cannot be made: RuntimeError)"),
    ],
)
def test_any_error_can_be_kept_and_read_again(error: BaseException, kind: str, message: str) -> None:
    info = ErrorInfo.of(error, retryable=True)
    assert (info.type, info.message, info.retryable) == (kind, message, True)
    assert ErrorInfo.from_json(info.to_json()) == info


def test_secrets_in_an_error_are_not_kept() -> None:
    info = ErrorInfo.of(ValueError("https://ada:hunter2secret@git.example/x.git"), retryable=False)
    assert "hunter2secret" not in info.message


@pytest.mark.parametrize(
    ("error", "extra"),
    [
        (RemoteStatus("x", remote_status=503), {"remote_status": 503}),
        (MergeConflict("x", files=("a",)), {"files": ["a"]}),
    ],
)
def test_an_error_keeps_what_it_knows_besides(error: Exception, extra: dict[str, object]) -> None:
    info = ErrorInfo.of(error, retryable=True)
    assert info.extra == extra
    assert ErrorInfo.from_json(info.to_json()).extra == extra


def test_a_record_of_few_fields_is_whole() -> None:
    record = record_of("t1", FIELDS)
    assert (record.task_id, record.status, record.attempt, record.priority, record.tags) == (
        *("t1", Status.PENDING, 0, 0),
        (),
    )
    assert record.enqueued_at == datetime(2025, 11, 13, 2, 13, 20, 123_000, UTC)
    assert (record.progress, record.error, record.max_attempts, record.next_attempt_at) == (None, None, None, None)


def test_a_record_of_all_fields_is_whole() -> None:
    more = {
        "attempt": "2",
        "max_attempts": "4",
        "tags": "a\nb c",
        "priority": "7",
        "project_id": "p",
        "parent_id": "q",
        "root_id": "r",
        "retry_of": "o",
        "correlation_id": "c",
        "progress": '{"current":1,"total":4,"percent":25.0,"label":"one"}',
        "progress_at": "1763000001000",
        "error": '{"type":"X","message":"m","retryable":true,"remote_status":500}',
        "started_at": "1763000000500",
        "finished_at": "1763000002000",
        "due_at": "1763000009000",
    }
    record = record_of("t1", FIELDS | more)
    assert (record.tags, record.priority, record.attempt, record.max_attempts) == (("a", "b c"), 7, 2, 4)
    assert (record.project_id, record.parent_id, record.root_id, record.retry_of) == ("p", "q", "r", "o")
    assert record.progress is not None
    assert (record.progress.percent, record.progress.updated_at) == (25.0, moment(1_763_000_001_000))
    assert record.error == ErrorInfo("X", "m", True, {"remote_status": 500})
    assert record.next_attempt_at == moment("1763000009000")


@pytest.mark.parametrize(
    ("status", "shown"), [("PENDING", True), ("RETRY", True), ("STARTED", False), ("SUCCESS", False)]
)
def test_a_next_attempt_is_only_shown_while_there_will_be_one(status: str, shown: bool) -> None:
    record = record_of("t1", FIELDS | {"status": status, "due_at": "1763000009000"})
    assert (record.next_attempt_at is not None) == shown


def test_a_hash_is_read_whatever_a_stock_client_put_in() -> None:
    assert fields_of([b"a", b"1", b"payload", b"\x80\x05pickle"]) == {"a": "1", "payload": "�\x05pickle"}

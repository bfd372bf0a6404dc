"""Tasks that only arq's own keys know: one that a stock client enqueued and nobody has claimed, or whose end a stock
worker wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic_core import from_json, to_json

from app.engine.job import ErrorInfo, Status, TaskRecord, moment, record_of
from app.store import keys
from app.store.scripts import BAND, Scripts

OWNER = "arq"
"""The user that tasks of stock clients belong to."""

EVENTS = {Status.SUCCESS: "task_complete", Status.FAILURE: "task_failed", Status.CANCELLED: "task_cancelled"}

_UNREADABLE_RESULT = {"f": "?", "r": "the result is not JSON", "s": False, "t": 0, "st": 0, "ft": 0, "et": 0}
_UNREADABLE_PAYLOAD = {"f": "?", "et": 0}


def queued_record(task_id: str, queue: str, payload: bytes, score: bytes) -> TaskRecord:
    """A task that waits in a queue. `score` is empty where the queue is not known, and no time once the task is
    ready."""
    job = _decoded(payload, _UNREADABLE_PAYLOAD)
    record = record_of(task_id, _fields(queue, Status.PENDING, job))
    return replace(record, due_at=moment(score.decode())) if score and float(score) >= BAND else record


def finished_record(task_id: str, queue: str, result: bytes) -> TaskRecord:
    """A task that has a result."""
    done = _decoded(result, _UNREADABLE_RESULT)
    error = done["r"] if isinstance(done["r"], dict) else {"message": str(done["r"])}
    info = ErrorInfo(str(error.get("type", "Error")), str(error.get("message", "")), False, {})
    fields = _fields(queue, _status_of(done["s"], info), done) | {
        "error": "" if done["s"] else info.to_json().decode(),
        "started_at": str(done["st"]),
        "finished_at": str(done["ft"]),
        "attempt": str(done["t"]),
    }
    return record_of(task_id, fields)


async def settle(scripts: Scripts, record: TaskRecord, result: bytes, ttl_ms: int) -> TaskRecord:
    """End the record of a task that a stock worker finished; the record as it is then."""
    finished = finished_record(record.task_id, record.queue, result)
    error = finished.error.to_json() if finished.error else b""
    await scripts.settle_stock(
        record.task_id,
        status=finished.status,
        error=error,
        finished_ms=int(finished.finished_at.timestamp() * 1000) if finished.finished_at else 0,
        attempt=finished.attempt,
        ttl_ms=ttl_ms,
        event_type=EVENTS[finished.status],
        event=to_json({"error": from_json(error)} if error else {"result": None, "result_bytes": len(result)}),
    )
    return replace(
        record,
        status=finished.status,
        error=finished.error,
        attempt=finished.attempt,
        started_at=finished.started_at,
        finished_at=finished.finished_at,
    )


def _status_of(success: bool, error: ErrorInfo) -> Status:
    if success:
        return Status.SUCCESS
    return Status.CANCELLED if error.type in ("CancelledError", "TaskCancelled") else Status.FAILURE


def _fields(queue: str, status: Status, job: dict[str, Any]) -> dict[str, str]:
    queue = queue or keys.DEFAULT_QUEUE
    return {"queue": queue, "user_id": OWNER, "status": status, "task": str(job["f"]), "enqueued_at": str(job["et"])}


def _decoded(data: bytes, otherwise: dict[str, Any]) -> dict[str, Any]:
    """The JSON object `data`; `otherwise` where it is none or lacks a field."""
    try:
        found = from_json(data)
    except ValueError:
        return otherwise
    return found if isinstance(found, dict) and found.keys() >= otherwise.keys() else otherwise

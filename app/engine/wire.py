"""arq's formats, in JSON: payloads, results, and the serializer hooks for stock arq clients and workers.

A stock client speaks to Nightshift, and a stock worker drains its queues, when both are given `serializer` and
`deserializer`:

    pool = await create_pool(settings, job_serializer=wire.serializer, job_deserializer=wire.deserializer)

Field names are arq 0.28's: f function, a args, k kwargs, t try, et enqueue time, s success, r result, st and ft start
and finish time (Unix ms), q queue, id. The parameters of a Nightshift task are its keyword arguments.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

from app.errors import InvalidInput, TaskError, UndecodablePayload


class RemoteTaskFailed(TaskError):
    """What a stock arq client gets from `Job.result()` when the task failed; `error` is its stored error record."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error.get('type', 'Error')}: {error.get('message', '')}")
        self.error = error


@dataclass(frozen=True, slots=True)
class Payload:
    """A decoded payload: the task's name and what it was called with."""

    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    enqueued_ms: int

    def params(self, names: Sequence[str]) -> dict[str, Any]:
        """The arguments by name; positional ones are the parameters in their order, called `names`.

        Raises `InvalidInput` when there are too many, or one is given twice.
        """
        if len(self.args) > len(names):
            raise InvalidInput(f"{len(self.args)} positional arguments: {self.task} has {len(names)} parameters")
        values = dict(zip(names, self.args, strict=False))
        if twice := values.keys() & self.kwargs.keys():
            raise InvalidInput(f"{', '.join(sorted(twice))}: given by position and by name")
        return values | self.kwargs


def encode_payload(task: str, params: bytes) -> bytes:
    """The payload of a task whose parameters are already the JSON object `params`."""
    return b'{"t":null,"f":"%b","a":[],"k":%b,"et":%d}' % (task.encode(), params, time.time_ns() // 1_000_000)


def decode_payload(data: bytes) -> Payload:
    """Read a payload. Raises `UndecodablePayload` when it is not the JSON of an arq job."""
    try:
        job = from_json(data)
        return Payload(str(job["f"]), list(job["a"]), dict(job["k"]), int(job["et"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UndecodablePayload(
            f"expected the JSON of an arq job (use app.engine.wire.serializer in the client), got {data[:40]!r}"
        ) from error


def encode_result(
    *,
    task_id: str,
    queue_key: str,
    payload: Payload | None,
    task: str,
    attempt: int,
    success: bool,
    result: bytes,
    started_ms: int,
    finished_ms: int,
) -> bytes:
    """A result record. `result` is JSON: the value, or the error record. `payload` is None where it could not be
    read."""
    head = to_json(
        {
            "t": attempt,
            "f": task,
            "a": payload.args if payload else [],
            "k": payload.kwargs if payload else {},
            "et": payload.enqueued_ms if payload else started_ms,
            "s": success,
            "st": started_ms,
            "ft": finished_ms,
            "q": queue_key,
            "id": task_id,
        }
    )
    return b'%b,"r":%b}' % (head[:-1], result)


def serializer(data: dict[str, Any]) -> bytes:
    """arq's `job_serializer`: JSON; an exception becomes `{type, message}`. Raises ValueError for what JSON cannot
    hold."""
    return to_json(data, fallback=_describe)


def deserializer(data: bytes) -> dict[str, Any]:
    """arq's `job_deserializer`. The error of a failed task comes back as an exception, so that `Job.result()` raises
    it."""
    fields: dict[str, Any] = from_json(data)
    if fields.get("s") is False and isinstance(fields.get("r"), dict):
        cancelled = fields["r"].get("type") in ("CancelledError", "TaskCancelled")
        fields["r"] = asyncio.CancelledError() if cancelled else RemoteTaskFailed(fields["r"])
    return fields


def _describe(value: Any) -> Any:
    if isinstance(value, BaseException):
        return {"type": type(value).__name__, "message": str(value), "retryable": False}
    raise ValueError(f"expected a value that JSON can hold, got {type(value).__name__}")

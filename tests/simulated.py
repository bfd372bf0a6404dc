"""Workers driven step by step: the scripts as attempts call them, without a loop, a lease thread or a clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from app.engine.wire import encode_payload
from app.store import keys
from app.store.items import Emit, Finish, NewTask, Reschedule, Suspend
from app.store.scripts import CLAIM_FIELDS, Scripts

LEASE_MS = 60_000
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
ERROR = b'{"type":"RetryableError","message":"no luck","retryable":true}'


@dataclass(frozen=True, slots=True)
class Held:
    """A claim that a simulated worker holds."""

    id: str
    queue: str
    payload: bytes
    token: int
    attempt: int
    lost: bool
    fields: dict[str, str]
    steps: list[bytes] | None
    """What the hash of its steps holds, flat."""


def new_task(task_id: str, **changes: Any) -> NewTask:
    """A task of ada's in the default queue, due now."""
    values: dict[str, Any] = {
        "task": "test.work",
        "queue": "default",
        "payload": encode_payload("test.work", b"{}"),
        "at_ms": None,
        "delay_ms": 0,
        "priority": 0,
        "user_id": "ada",
        "project_id": "",
        "parent_id": "",
        "root_id": "",
        "tags": "",
        "idempotency_key": "",
        "fingerprint": "",
        "extra": b"",
        "parent_token": None,
        "cost": 1.0,
    }
    return NewTask(id=task_id, **values | changes)


async def put(scripts: Scripts, *tasks: NewTask) -> None:
    """Enqueue tasks, each as a group of its own. Fails when one is refused."""
    replies = await scripts.enqueue([[task] for task in tasks], 100_000)
    assert all(reply[0] == b"ok" for reply in replies), replies


async def claim(
    scripts: Scripts, worker: str = "w1", queue: str = "default", *, want: int = 100, lease_ms: int = LEASE_MS
) -> list[Held]:
    """What one worker claims of one queue."""
    _, _, rows, _ = await scripts.claim(worker, lease_ms, want, [(queue, want)])
    return [_held(row) for row in rows]


def _held(row: list[Any]) -> Held:
    task_id, queue, payload, token, attempt, lost, values, steps = row
    fields = {name: value.decode() for name, value in zip(CLAIM_FIELDS, values, strict=True) if value is not None}
    return Held(task_id.decode(), queue.decode(), payload, token, attempt, bool(lost), fields, steps)


def end_of(held: Held, status: str = "SUCCESS", *, ttl_ms: int = DAY_MS) -> Finish:
    """The end of an attempt; a failure is a dead letter."""
    failed = status == "FAILURE"
    return Finish(
        id=held.id,
        token=held.token,
        queue=held.queue,
        status=status,
        result=b'{"t":1,"f":"test.work","a":[],"k":{},"et":1,"s":true,"r":null,"st":1,"ft":1,"q":"arq:queue","id":"x"}',
        ttl_ms=ttl_ms,
        error=b"" if status == "SUCCESS" else ERROR,
        event=b"{}",
        traceback="Traceback" if failed else "",
        dead_letter=failed,
    )


def again(held: Held, *, delay_ms: int = 0, counts: bool = True) -> Reschedule:
    """A retry of an attempt, or (`counts=False`) its hand-back."""
    return Reschedule(
        id=held.id,
        token=held.token,
        queue=held.queue,
        status="RETRY" if counts else "PENDING",
        delay_ms=delay_ms,
        counts=counts,
        error=ERROR if counts else b"",
        event_type="task_retrying",
        event=b'{"attempt":%d}' % held.attempt,
    )


def wait_of(held: Held, *subjects: str, timeout_ms: int = DAY_MS, number: int = 0, fail_fast: bool = False) -> Suspend:
    """A wait of an attempt."""
    return Suspend(
        id=held.id,
        token=held.token,
        queue=held.queue,
        number=number,
        facts=b'{"name":"wait"}',
        timeout_ms=timeout_ms,
        fail_fast=fail_fast,
        waiting_for=b'{"kind":"tasks"}',
        ttl_ms=HOUR_MS,
        subjects=subjects,
    )


def event_of(held: Held, number: int = 1, *, channel: str = ".", progress: bytes = b"") -> Emit:
    """One event of an attempt."""
    return Emit(held.id, held.token, number, channel, "note", b"{}", progress)


async def lapse(redis: Redis, *holds: Held) -> None:
    """Let leases run out, as when their worker died a lease ago."""
    for held in holds:
        await redis.delete(keys.PREFIXES["in_progress"] + held.id)
        await redis.zadd(keys.queue(held.queue), {held.id: await server_ms(redis) - 1}, xx=True)


async def server_ms(redis: Redis) -> int:
    """The server's clock, Unix ms."""
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000

"""What stands in Redis about a task, held against the model of what should (`wait_model`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields

from redis.asyncio.client import Pipeline

from app.store import keys
from tests.engine.wait_model import Expected, Model

EVENTS = ("go", "go:1")
"""Names of events from outside."""
KINDS = {"SUCCESS": "task_complete", "FAILURE": "task_failed", "CANCELLED": "task_cancelled"}


@dataclass(frozen=True)
class Seen:
    """What stands in Redis about a task."""

    record: dict[bytes, bytes]
    steps: dict[bytes, bytes]
    inbox: dict[bytes, bytes]
    log: list[bytes]
    pending: set[bytes]
    waiters: set[bytes]
    payload: int
    mark: int
    result_ms: int
    """For how long the result is kept; negative where there is none."""


def ask(pipe: Pipeline, name: str) -> None:
    prefixes = keys.PREFIXES
    pipe.hgetall(keys.task(name)).hgetall(keys.steps(name)).hgetall(prefixes["inbox"] + name)
    pipe.lrange(keys.events(f"task:{name}"), 0, -1)
    pipe.smembers(prefixes["pending"] + name).smembers(prefixes["waiters"] + name)
    pipe.exists(keys.job(name)).exists(prefixes["in_progress"] + name).pttl(keys.result(name))


def answered(answers: list[object], at: int) -> Seen:
    """The answers about the `at`-th task that was asked for."""
    size = len(fields(Seen))
    return Seen(*answers[at * size : (at + 1) * size])  # type: ignore[arg-type]


def check_task(task: Expected, seen: Seen) -> None:
    assert (seen.record[b"status"].decode(), int(seen.record[b"attempt"])) == (task.status, task.attempt)
    assert set(seen.steps) == {
        *(b"%d" % number for number in range(len(task.steps))),
        *(b"result:%d" % number for number in range(len(task.steps))),
        *(b"wait:%d" % number for number in task.deadlines),
    }
    assert int(seen.record.get(b"steps", 0)) == len(task.steps)
    assert [seen.steps[b"result:%d" % number] for number in range(len(task.steps))] == task.steps
    for number, deadline_ms in task.deadlines.items():
        assert seen.steps[b"wait:%d" % number].startswith(b"%d " % deadline_ms)
    kept = sum(map(len, task.inbox.values()))
    assert int(seen.inbox.get(b"events", 0)) == kept == sum(field.startswith(b"event:") for field in seen.inbox)
    for event in EVENTS:
        assert _kept(seen.inbox, event) == task.inbox.get(event, [])
    kinds = Counter(entry.split(b" ")[1].decode() for entry in seen.log)
    assert (kinds["event_delivered"], kinds["task_waiting"]) == (task.delivered, task.waited)
    assert {kind: kinds[kind] for kind in KINDS.values() if kinds[kind]} == (
        {KINDS[task.status]: 1} if task.is_finished else {}
    )
    assert seen.payload or task.is_finished
    assert not seen.mark or task.status == "STARTED"
    assert (seen.result_ms > 0) == task.is_finished


def check_wait(model: Model, name: str, task: Expected, seen: Seen) -> None:
    assert {subject.decode() for subject in seen.pending} == task.pending
    waits = task.status == "WAITING"
    assert (b"waiting_for" in seen.record) == waits
    assert seen.record.get(b"wait_until") == (b"%d" % task.deadline_ms if waits else None)
    assert seen.record.get(b"fail_fast") == (b"%d" % task.fail_fast if waits and task.has_begun else None)
    wait_for_it = {other.encode() for other, who in model.tasks.items() if f"task:{name}" in who.pending}
    # Those that have given up are forgotten with the rest when it ends.
    assert wait_for_it <= seen.waiters
    assert not (task.is_finished and seen.waiters)


def check_forgotten(model: Model, name: str, seen: Seen) -> None:
    assert not (seen.record or seen.pending or seen.waiters or seen.inbox or seen.payload or seen.mark or seen.log)
    assert seen.result_ms < 0
    letter = model.letters.get(name)
    assert bool(seen.steps) == bool(letter and (letter.steps or letter.deadlines))


def _kept(inbox: dict[bytes, bytes], event: str) -> list[bytes]:
    """The events of a name in an inbox, oldest first."""
    prefix = f"event:{event}:".encode()
    numbers = sorted(int(rest) for key in inbox if key.startswith(prefix) and (rest := key[len(prefix) :]).isdigit())
    # Two names may share their beginning: what belongs to the longer one has its own counters.
    first = inbox.get(f"first:{event}".encode())
    last = inbox.get(f"next:{event}".encode())
    if first is None or last is None:
        return []
    return [inbox[prefix + b"%d" % number] for number in numbers if int(first) <= number <= int(last)]

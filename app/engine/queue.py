"""Tasks as their owners see them: enqueue, read, list, cancel.

Every call takes the owner's `user_id` where it matters and answers `NotFound` for a task of somebody else;
`user_id=None` stands for an administrator, who sees all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pydantic_core import from_json

from app.engine import stock, wire
from app.engine.batch import Batcher
from app.engine.fairness import costs_of
from app.engine.gates import KeyBusy
from app.engine.job import Status, TaskRecord, fields_of, moment, record_of, steps_of
from app.engine.letters import no_letter
from app.engine.registry import Catalogue, TaskSpec
from app.engine.submissions import Submission, beginning_after, check, check_last, keyed, new_task, validated
from app.errors import Conflict, InvalidInput, LeaseLost, NotFound, QueueFull, TooLarge, UnknownTask
from app.store import keys
from app.store.connection import CONNECTION_ERRORS
from app.store.items import NewTask
from app.store.scripts import Scripts
from app.telemetry import metrics

MAX_BATCH = 1_000
MAX_LIMIT = 200
MAX_PREDECESSORS = 10_000
"""Ids in `after`, of all tasks of a batch together: some 50 ms of the server's time."""
QUEUE_FULL_RETRY_S = 5.0
RECONNECT_PAUSES_S = (0.05, 0.5)
TASK_WEIGHT_BYTES = 3 * 1024
"""What a task weighs besides its payload and its extra fields (some 1 KiB), so that one script call accepts some 4,000
tasks and not 128 batches of 1,000."""

EXTRA_WEIGHT = 40
"""What a byte of the extra fields weighs: each id in `after`, of some 35 bytes, takes a third of the time of a task."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a submission: the task's id, and whether this call made it or an earlier one with the same key.

    `enqueued_at` is when this call made it, on the server's clock; None where it did not, where the reply was lost and
    only a repeated call showed that it had, and for a task that a gate or its key may hold back.
    """

    task_id: str
    created: bool
    enqueued_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """What a list of tasks is narrowed to; None leaves a field open."""

    status: Status | None = None
    queue: str | None = None
    task: str | None = None
    project_id: str | None = None
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A page of tasks, newest first. `next_cursor` is None at the end; a page before it may be short, even empty."""

    items: list[TaskRecord]
    next_cursor: str | None


class TaskQueue:
    """Enqueue, read, list and cancel tasks."""

    def __init__(
        self,
        scripts: Scripts,
        catalogue: Catalogue,
        *,
        max_depth: int,
        result_ttl_s: float,
        weights: Mapping[str, float],
    ) -> None:
        self.catalogue = catalogue
        self._scripts = scripts
        self._max_depth = max_depth
        self._ttl_ms = int(result_ttl_s * 1000)
        self._costs = costs_of(weights)
        self._groups: Batcher[Sequence[NewTask], list[Any]] = Batcher(
            self._commit, weigh=lambda group: sum(map(_weight_bytes, group))
        )

    async def enqueue(self, submission: Submission, *, user_id: str, correlation_id: str | None = None) -> Accepted:
        """Accept one task. It is stored when this returns.

        Raises `UnknownTask`, `InvalidInput` (with a pointer to the field), `TooLarge`, `Conflict` (same idempotency
        key, other request) or `QueueFull`; then nothing was stored.
        """
        return (await self.enqueue_many([submission], user_id=user_id, correlation_id=correlation_id))[0]

    async def enqueue_many(
        self,
        submissions: Sequence[Submission],
        *,
        user_id: str,
        correlation_id: str | None = None,
        then: Submission | None = None,
    ) -> list[Accepted]:
        """Accept up to 1,000 tasks in one round trip, all or none of them. Raises as `enqueue` does.

        They name up to 10,000 predecessors together. `then` is one more, the last of the answer: it begins when all
        others have ended, however they did; so it has no `after` and no delay of its own.
        """
        if not 1 <= len(submissions) <= MAX_BATCH:
            raise InvalidInput(f"expected 1 to {MAX_BATCH} tasks, got {len(submissions)}", pointer="/tasks")
        _check_predecessors(submissions)
        single = len(submissions) == 1
        group = [
            self.prepare(item, user_id, correlation_id, "" if single else f"/tasks/{index}")
            for index, item in enumerate(submissions)
        ]
        if then is not None:
            last = self.prepare(then, user_id, correlation_id, "/then")
            check_last(then)
            group.append(beginning_after(last, [item.id for item in group]))
        reply = await self._groups.run(group)
        if reply[0] != b"ok":
            raise _refusal(reply)
        at = moment(reply[1]) if reply[1] else None
        accepted = []
        for item, (made, created, *rest) in zip(group, reply[2:], strict=True):
            if created:
                metrics.TASKS_ENQUEUED.labels(item.queue, item.task).inc()
            if rest:
                await self._scripts.cancel_rest(rest, self._ttl_ms)
            accepted.append(Accepted(made.decode(), bool(created), at if created and item.gating is None else None))
        return accepted

    async def get(self, task_id: str, *, user_id: str | None, with_result: bool = False) -> TaskRecord:
        """Read a task. Raises `NotFound`."""
        fields, result, payload, score, queue, steps = await self._scripts.read_task(task_id, with_result=with_result)
        if fields:
            record = replace(record_of(task_id, fields_of(fields)), steps=steps_of(fields_of(steps)))
            if result and not score and not record.status.is_finished:
                record = await stock.settle(self._scripts, record, result, self._ttl_ms)
        elif result:
            record = stock.finished_record(task_id, queue.decode(), result)
        elif payload:
            record = stock.queued_record(task_id, queue.decode(), payload, score)
        else:
            raise _not_found(task_id)
        if user_id is not None and record.user_id != user_id:
            raise _not_found(task_id)
        if with_result and result and record.status is Status.SUCCESS:
            record = replace(record, result=_result_of(result), has_result=True)
        return record

    async def page(self, wanted: Filter, *, user_id: str | None, cursor: str = "", limit: int = 50) -> Page:
        """A page of tasks, newest first, without their results. `user_id=None` lists everybody's."""
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidInput(f"limit={limit}: expected 1 to {MAX_LIMIT}", pointer="limit")
        index, pairs = _index_for(wanted, user_id)
        next_cursor, rows = await self._scripts.list_tasks(index, cursor, limit, pairs)
        return Page([record_of(row.decode(), fields_of(fields)) for row, fields in rows], next_cursor or None)

    async def cancel(self, task_id: str, *, user_id: str | None) -> TaskRecord:
        """Cancel a task with all its children: at once what waits, within a second what runs.

        Raises `NotFound`, or `Conflict` when the task is finished.
        """
        await self.get(task_id, user_id=user_id)
        state = (await self._scripts.cancel([task_id], self._ttl_ms))[0]
        record = await self.get(task_id, user_id=user_id)
        if state == b"finished":
            raise Conflict(f"task {task_id} is finished ({record.status}) and cannot be cancelled")
        return record

    async def cancel_many(self, task_ids: Sequence[str]) -> None:
        """Cancel tasks with all their children; those that are finished or not there stay as they are."""
        for first in range(0, len(task_ids), MAX_BATCH):
            await self._scripts.cancel(task_ids[first : first + MAX_BATCH], self._ttl_ms)

    async def abort(self, task_ids: Sequence[str]) -> None:
        """Cancel tasks that arq's own clients marked for it, and take the marks away."""
        states = await self._scripts.cancel(task_ids, self._ttl_ms)
        done = [task_id for task_id, state in zip(task_ids, states, strict=True) if state != b"missing"]
        if done:
            await self._scripts.redis.zrem(keys.ABORT, *done)

    async def retry(
        self,
        task_id: str,
        *,
        user_id: str | None,
        params: dict[str, Any] | None = None,
        correlation_id: str | None = None,
    ) -> Accepted:
        """Run a finished task again as a new task of the same owner, which names the old one in `retry_of`.

        Raises `NotFound`, `Conflict` while the old one is unfinished, and what `enqueue` raises.
        """
        record = await self.get(task_id, user_id=user_id)
        if not record.status.is_finished:
            raise Conflict(f"task {task_id} is not finished ({record.status}); only a finished task can run again")
        spec = self.catalogue[record.task].spec
        again = Submission(
            task=record.task,
            params=await self._old_params(task_id, spec) if params is None else params,
            priority=record.priority,
            project_id=record.project_id,
            tags=record.tags,
            retry_of=task_id,
            after=record.after,
            key=None if spec.key else record.key,
        )
        return await self.enqueue(again, user_id=record.user_id, correlation_id=correlation_id)

    async def _old_params(self, task_id: str, spec: TaskSpec) -> dict[str, Any]:
        # A task that was cancelled before it began still has its payload; any other left its parameters in the result.
        payload, result = await self._scripts.redis.mget(keys.job(task_id), keys.result(task_id))
        if payload or result:
            return wire.decode_payload(payload or result).params(spec.param_names)
        raise NotFound(f"the parameters of task {task_id} are not kept any more")

    async def settle_stock_ends(self, bound: int) -> int:
        """Look at up to `bound` tasks, going on from call to call, and end the records of those that stock workers
        finished; how many there were."""
        ids = await self._scripts.find_stock_ends(bound)
        for task_id in ids:
            await self.get(task_id.decode(), user_id=None)
        return len(ids)

    async def _commit(self, groups: Sequence[Sequence[NewTask]]) -> list[list[Any]]:
        for pause_s in RECONNECT_PAUSES_S:
            try:
                return await self._scripts.enqueue(groups, self._max_depth)
            except CONNECTION_ERRORS:
                # The reply may be lost rather than the request; the script sees by the ids that it was carried out.
                await asyncio.sleep(pause_s)
        return await self._scripts.enqueue(groups, self._max_depth)

    def prepare(self, item: Submission, user_id: str, correlation_id: str | None = None, at: str = "") -> NewTask:
        """A checked task for a script that enqueues. Raises as `enqueue` does, with `at` before the pointer."""
        try:
            spec = self.catalogue[item.task].spec
            model, params = validated(spec, item.params)
            item = keyed(item, spec, model)
            check(item)
        except (InvalidInput, TooLarge, UnknownTask) as error:
            error.move(at)
            raise
        cost = self._costs.get(user_id, 1.0)
        return new_task(item, spec, params, user_id, correlation_id, cost=cost, ttl_ms=self._ttl_ms)


def _weight_bytes(item: NewTask) -> int:
    return TASK_WEIGHT_BYTES + len(item.payload) + EXTRA_WEIGHT * len(item.extra)


def _check_predecessors(submissions: Sequence[Submission]) -> None:
    count = sum(len(item.after) for item in submissions)
    if count > MAX_PREDECESSORS:
        raise TooLarge(
            f"{count} predecessors in `after` exceed the bound of {MAX_PREDECESSORS} in one batch", pointer="/tasks"
        )


def _refusal(reply: list[Any]) -> Exception:
    kind, value, *rest = (part.decode() for part in reply)
    if kind == "full":
        return QueueFull(f"queue {value!r} is full; nothing was enqueued", retry_after_s=QUEUE_FULL_RETRY_S)
    if kind == "replayed":
        return no_letter(value, rest[0])
    if kind == "missing":
        return NotFound(f"no task {value}", pointer="/after")
    if kind == "stale":
        return LeaseLost(f"another attempt owns task {value}; this one starts no more children")
    if kind == "busy":
        return KeyBusy(value, rest[0])
    return Conflict(_conflict(kind, value, rest))


def _conflict(kind: str, value: str, rest: list[str]) -> str:
    if kind == "conflict":
        return f"idempotency key {value!r} was used for another request"
    if kind == "own":
        return f"key {value!r} is held by task {rest[0]}, which started this one and cannot end before it"
    if kind == "throttled":
        return f"key {value!r} has no free start within ten years; nothing was enqueued"
    return f"task {value} is cancelled and starts no more children"


def _not_found(task_id: str) -> NotFound:
    return NotFound(f"no task {task_id}")


def _index_for(wanted: Filter, user_id: str | None) -> tuple[str, list[tuple[str, str]]]:
    """The narrowest index, and what is left to filter by."""
    pairs = [
        (name, value) for name in ("status", "queue", "task", "project_id", "tag") if (value := getattr(wanted, name))
    ]
    if user_id is None:
        return keys.ALL_TASKS, pairs
    if wanted.tag:
        return keys.tasks_of_tag(user_id, wanted.tag), [pair for pair in pairs if pair[0] != "tag"]
    if wanted.project_id:
        return keys.tasks_of_project(user_id, wanted.project_id), [pair for pair in pairs if pair[0] != "project_id"]
    return keys.tasks_of_user(user_id), pairs


def _result_of(result: bytes) -> Any:
    return from_json(result)["r"]

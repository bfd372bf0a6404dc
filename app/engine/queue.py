"""Tasks as their owners see them: enqueue, read, list, cancel.

Every call takes the owner's `user_id` where it matters and answers `NotFound` for a task of somebody else;
`user_id=None` stands for an administrator, who sees all.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from app.engine import stock, wire
from app.engine.batch import Batcher
from app.engine.fairness import costs_of
from app.engine.job import Status, TaskRecord, fields_of, moment, new_task_id, record_of, steps_of
from app.engine.letters import no_letter
from app.engine.registry import Catalogue, TaskSpec
from app.errors import Conflict, InvalidInput, LeaseLost, NotFound, QueueFull, TooLarge, UnknownTask
from app.store import keys
from app.store.connection import CONNECTION_ERRORS
from app.store.scripts import MAX_PRIORITY, NewTask, Scripts
from app.telemetry import metrics

MAX_BATCH = 1_000
MAX_PARAMS_BYTES = 1024 * 1024
MAX_TAGS = 20
MAX_LIMIT = 200
MAX_DELAY_S = 10 * 366 * 86_400
"""Ten years; a task is delayed no longer, be it by `delay_s` or by `run_at`."""
HIGHEST_PRIORITY = MAX_PRIORITY
LABEL = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
"""Project ids, tags and idempotency keys: up to 128 characters, no control characters."""
TASK_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
QUEUE_FULL_RETRY_S = 5.0
RECONNECT_PAUSES_S = (0.05, 0.5)
TASK_WEIGHT_BYTES = 4 * 1024
"""What a task weighs besides its payload, so that one script call accepts some 4,000 tasks and not 128 batches of
1,000."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A task as a client asks for it. `params` is a JSON object or the task's own model; times in seconds or aware."""

    task: str
    params: dict[str, Any] | BaseModel = field(default_factory=dict)
    delay_s: float = 0.0
    run_at: datetime | None = None
    priority: int = 0
    project_id: str | None = None
    tags: tuple[str, ...] = ()
    idempotency_key: str | None = None
    parent_id: str | None = None
    root_id: str | None = None
    retry_of: str | None = None
    parent_token: int | None = None
    """Lease token of the attempt that starts this task as a child."""
    replay: Literal["continue", "afresh"] | None = None
    """The dead letter of `retry_of` becomes this task, with its completed steps or without."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The answer to a submission: the task's id, and whether this call made it or an earlier one with the same key.

    `enqueued_at` is when this call made it, on the server's clock; None where it did not, or where the reply was lost
    and only a repeated call showed that it had.
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
            self._commit, weigh=lambda group: sum(TASK_WEIGHT_BYTES + len(item.payload) for item in group)
        )

    async def enqueue(self, submission: Submission, *, user_id: str, correlation_id: str | None = None) -> Accepted:
        """Accept one task. It is stored when this returns.

        Raises `UnknownTask`, `InvalidInput` (with a pointer to the field), `TooLarge`, `Conflict` (same idempotency
        key, other request) or `QueueFull`; then nothing was stored.
        """
        return (await self.enqueue_many([submission], user_id=user_id, correlation_id=correlation_id))[0]

    async def enqueue_many(
        self, submissions: Sequence[Submission], *, user_id: str, correlation_id: str | None = None
    ) -> list[Accepted]:
        """Accept up to 1,000 tasks in one round trip, all or none of them. Raises as `enqueue` does."""
        if not 1 <= len(submissions) <= MAX_BATCH:
            raise InvalidInput(f"expected 1 to {MAX_BATCH} tasks, got {len(submissions)}", pointer="/tasks")
        single = len(submissions) == 1
        group = [
            self.prepare(item, user_id, correlation_id, "" if single else f"/tasks/{index}")
            for index, item in enumerate(submissions)
        ]
        reply = await self._groups.run(group)
        if reply[0] != b"ok":
            raise _refusal(reply)
        at = moment(reply[1]) if reply[1] else None
        for item, (_, created) in zip(group, reply[2:], strict=True):
            if created:
                metrics.TASKS_ENQUEUED.labels(item.queue, item.task).inc()
        return [Accepted(made.decode(), bool(created), at if created else None) for made, created in reply[2:]]

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
            params = validated(spec, item.params)
            _check(item)
        except (InvalidInput, TooLarge, UnknownTask) as error:
            error.move(at)
            raise
        return _new_task(item, spec, params, user_id, correlation_id, cost=self._costs.get(user_id, 1.0))


def _new_task(
    item: Submission, spec: TaskSpec, params: bytes, user_id: str, correlation_id: str | None, *, cost: float
) -> NewTask:
    task_id = new_task_id()
    extra = ["max_attempts", spec.retry.max_attempts]
    if correlation_id:
        extra += ["correlation_id", correlation_id]
    if item.retry_of:
        extra += ["retry_of", item.retry_of]
    return NewTask(
        id=task_id,
        task=spec.name,
        queue=spec.queue,
        payload=wire.encode_payload(spec.name, params),
        at_ms=None if item.run_at is None else int(item.run_at.timestamp() * 1000),
        delay_ms=int(item.delay_s * 1000),
        priority=item.priority,
        user_id=user_id,
        project_id=item.project_id or "",
        parent_id=item.parent_id or "",
        root_id=item.root_id or item.parent_id or "",
        tags="\n".join(item.tags),
        idempotency_key=item.idempotency_key or "",
        fingerprint=_fingerprint(item, spec, params) if item.idempotency_key else "",
        extra=to_json(extra),
        parent_token=item.parent_token,
        letter=(item.replay and item.retry_of) or "",
        takes_steps=item.replay == "continue",
        cost=cost,
    )


def validated(spec: TaskSpec, params: dict[str, Any] | BaseModel) -> bytes:
    """The JSON of a task's parameters. Raises `InvalidInput` or `TooLarge`, with a pointer."""
    if not isinstance(params, spec.params):
        try:
            params = spec.params.model_validate(params)
        except ValidationError as error:
            raise _invalid_params(error) from None
    try:
        data = params.__pydantic_serializer__.to_json(params, by_alias=True)
    except PydanticSerializationError as error:
        raise InvalidInput(f"params: expected values that JSON can hold: {error}", pointer="/params") from None
    if len(data) > MAX_PARAMS_BYTES:
        raise TooLarge(f"params of {len(data)} bytes exceed the bound of {MAX_PARAMS_BYTES} bytes", pointer="/params")
    return data


def _invalid_params(error: ValidationError) -> InvalidInput:
    faults = tuple(
        (f"/params{_pointer(item['loc'])}", item["msg"])
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    )
    pointer, message = faults[0]
    rest = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return InvalidInput(f"{pointer[1:]}: {message}{rest}", pointer=pointer, faults=faults)


def _pointer(location: Iterable[str | int]) -> str:
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in location)


def _check(item: Submission) -> None:
    if item.delay_s and item.run_at is not None:
        raise InvalidInput("expected delay_s or run_at, not both", pointer="/run_at")
    if item.run_at is not None:
        _check_run_at(item.run_at)
    if not 0 <= item.delay_s <= MAX_DELAY_S:
        raise InvalidInput(f"delay_s={item.delay_s}: expected 0 to ten years", pointer="/delay_s")
    if not 0 <= item.priority <= MAX_PRIORITY:
        raise InvalidInput(f"priority={item.priority}: expected 0 to {MAX_PRIORITY}", pointer="/priority")
    if len(item.tags) > MAX_TAGS:
        raise InvalidInput(f"{len(item.tags)} tags: expected at most {MAX_TAGS}", pointer="/tags")
    labels = [("/project_id", item.project_id), ("/idempotency_key", item.idempotency_key)]
    labels += [(f"/tags/{index}", tag) for index, tag in enumerate(item.tags)]
    for pointer, label in labels:
        if label is not None and not LABEL.fullmatch(label):
            raise InvalidInput(
                f"{pointer[1:]}: expected 1 to 128 characters and no control characters", pointer=pointer
            )


def _check_run_at(run_at: datetime) -> None:
    if run_at.tzinfo is None:
        raise InvalidInput("run_at: expected a time with its offset", pointer="/run_at")
    if run_at.timestamp() > time.time() + MAX_DELAY_S:
        raise InvalidInput(f"run_at={run_at.isoformat()}: expected a time within ten years", pointer="/run_at")


def _fingerprint(item: Submission, spec: TaskSpec, params: bytes) -> str:
    run_at = item.run_at.isoformat() if item.run_at else None
    rest = to_json([spec.name, item.delay_s, run_at, item.priority, item.project_id, item.tags, item.parent_id])
    return hashlib.sha256(rest + params).hexdigest()[:32]


def _refusal(reply: list[Any]) -> Exception:
    kind, value = reply[0], reply[1].decode()
    if kind == b"full":
        return QueueFull(f"queue {value!r} is full; nothing was enqueued", retry_after_s=QUEUE_FULL_RETRY_S)
    if kind == b"conflict":
        return Conflict(f"idempotency key {value!r} was used for another request")
    if kind == b"replayed":
        return no_letter(value, reply[2].decode())
    if kind == b"stale":
        return LeaseLost(f"another attempt owns task {value}; this one starts no more children")
    return Conflict(f"task {value} is cancelled and starts no more children")


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

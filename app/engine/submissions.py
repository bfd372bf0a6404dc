"""What a client or a task asks to be run, and the form in which it is stored."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from app.engine import wire
from app.engine.gates import PLAIN, KeyPolicy, OnBusy, gating
from app.engine.job import new_task_id
from app.engine.policy import MAX_DELAY_S
from app.engine.registry import TaskSpec
from app.errors import InvalidInput, TooLarge
from app.store.items import NewTask
from app.store.scripts import MAX_PRIORITY

MAX_PARAMS_BYTES = 1024 * 1024
MAX_TAGS = 20
MAX_AFTER = 1_000
HIGHEST_PRIORITY = MAX_PRIORITY
TASK_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
LABEL = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
"""Project ids, tags, keys and idempotency keys: up to 128 characters, no control characters."""


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
    after: tuple[str, ...] = ()
    """Tasks of the same user: it begins when all of them have ended, however they did, or in seven days."""
    replay: Literal["continue", "afresh"] | None = None
    """The dead letter of `retry_of` becomes this task, with its completed steps or without."""
    task_id: str | None = None
    """An id that follows from where its parent starts it, so that a second time makes no second task."""
    label: str = ""
    """What it is to its parent, shown in the tree of its root."""
    key: str | None = None
    """What it is under, of its user; at most one task of a key runs at once, in the order in which they came."""
    policy: KeyPolicy = PLAIN
    """What holds for it under its key."""
    group: tuple[str, int] | None = None
    """The gate of the group of children that it belongs to, and the gate's limit."""
    awaited: bool = False
    """Whether its parent waits for it."""


def new_task(
    item: Submission,
    spec: TaskSpec,
    params: bytes,
    user_id: str,
    correlation_id: str | None,
    *,
    cost: float,
    ttl_ms: int,
) -> NewTask:
    """The form in which the store takes it; `params` are validated, `cost` is 1 / the user's weight, `ttl_ms` how long
    a result is kept."""
    extra = ["max_attempts", spec.retry.max_attempts]
    if correlation_id:
        extra += ["correlation_id", correlation_id]
    if item.retry_of:
        extra += ["retry_of", item.retry_of]
    if item.label:
        extra += ["label", item.label]
    task = NewTask(
        id=item.task_id or new_task_id(),
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
        gating=gating(user_id, item.key, item.policy, item.group, awaited=item.awaited, ttl_ms=ttl_ms),
    )
    return beginning_after(task, item.after) if item.after else task


def beginning_after(task: NewTask, after: Sequence[str]) -> NewTask:
    """The same task, which begins when the tasks `after` have ended."""
    return replace(task, extra=to_json([*from_json(task.extra), "after", "\n".join(after)]))


def keyed(item: Submission, spec: TaskSpec, params: BaseModel) -> Submission:
    """The submission under the key that the task's decorator gives it, if it does.

    A repetition of a task (`retry_of`) queues up, whatever its policy: it was asked for by name. Raises `InvalidInput`
    where the submission brings a key of its own.
    """
    if spec.key is None:
        return item if item.retry_of is None or item.policy is PLAIN else replace(item, policy=PLAIN)
    for name, value in _key_fields(item):
        if value is not None:
            raise InvalidInput(f"{name}: expected none, since {spec.name} sets its own key", pointer=f"/{name}")
    key = spec.key.of(params)
    if not isinstance(key, str) or not LABEL.fullmatch(key):
        raise InvalidInput(
            f"the key of {spec.name}, {str(key)[:80]!r}: expected 1 to 128 characters and no control characters",
            pointer="/params",
        )
    return replace(item, key=key, policy=PLAIN if item.retry_of else spec.key.policy)


def _key_fields(item: Submission) -> list[tuple[str, Any]]:
    policy = item.policy
    return [
        ("key", item.key),
        ("on_busy", None if policy.on_busy is OnBusy.QUEUE else policy.on_busy),
        ("debounce_s", policy.debounce_s),
        ("debounce_max_s", policy.debounce_max_s),
        ("throttle_s", policy.throttle_s),
        ("throttle_burst", None if policy.throttle_burst == 1 else policy.throttle_burst),
    ]


def validated(spec: TaskSpec, params: dict[str, Any] | BaseModel) -> tuple[BaseModel, bytes]:
    """A task's parameters, and their JSON. Raises `InvalidInput` or `TooLarge`, with a pointer."""
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
    return params, data


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


def check(item: Submission) -> None:
    """Raises `InvalidInput`, with a pointer, for what is out of bounds besides the parameters."""
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
    _check_after(item)
    _check_key(item)
    labels = [("/project_id", item.project_id), ("/idempotency_key", item.idempotency_key), ("/key", item.key)]
    labels.append(("/label", item.label or None))
    labels += [(f"/tags/{index}", tag) for index, tag in enumerate(item.tags)]
    for pointer, label in labels:
        if label is not None and not LABEL.fullmatch(label):
            raise InvalidInput(
                f"{pointer[1:]}: expected 1 to 128 characters and no control characters", pointer=pointer
            )


def check_last(item: Submission) -> None:
    """Raises `InvalidInput` for a task that is to begin behind a batch, and says itself when it begins."""
    for name, value in (("after", item.after), ("delay_s", item.delay_s), ("run_at", item.run_at)):
        if value:
            raise InvalidInput(f"then begins when the others have ended: expected no {name}", pointer=f"/then/{name}")


def _check_after(item: Submission) -> None:
    if len(item.after) > MAX_AFTER:
        raise InvalidInput(f"after {len(item.after)} tasks: expected at most {MAX_AFTER}", pointer="/after")
    if item.after and (item.delay_s or item.run_at is not None):
        raise InvalidInput("expected after, or delay_s or run_at, not both", pointer="/after")
    for index, task_id in enumerate(item.after):
        if not TASK_ID.fullmatch(task_id):
            raise InvalidInput(f"after {task_id[:80]!r}: expected the id of a task", pointer=f"/after/{index}")


def _check_key(item: Submission) -> None:
    policy = item.policy
    if policy is PLAIN:
        return
    if fault := policy.fault():
        name, detail = fault
        raise InvalidInput(detail, pointer=f"/{name}")
    for name, value in _key_fields(item):
        if value is not None and item.key is None:
            raise InvalidInput(f"{name}: expected a key with it", pointer=f"/{name}")
    if policy.debounce_s is not None or policy.throttle_s is not None:
        for name, value in (("delay_s", item.delay_s), ("run_at", item.run_at), ("after", item.after)):
            if value:
                raise InvalidInput(f"{name}: expected none with debounce_s or throttle_s", pointer=f"/{name}")


def _check_run_at(run_at: datetime) -> None:
    if run_at.tzinfo is None:
        raise InvalidInput("run_at: expected a time with its offset", pointer="/run_at")
    if run_at.timestamp() > time.time() + MAX_DELAY_S:
        raise InvalidInput(f"run_at={run_at.isoformat()}: expected a time within ten years", pointer="/run_at")


def _fingerprint(item: Submission, spec: TaskSpec, params: bytes) -> str:
    run_at = item.run_at.isoformat() if item.run_at else None
    rest = to_json(
        [spec.name, item.delay_s, run_at, item.priority, item.project_id, item.tags, item.parent_id, item.after]
    )
    if item.key is not None:
        rest += to_json([item.key, *(value for _, value in _key_fields(item))])
    return hashlib.sha256(rest + params).hexdigest()[:32]

"""Tasks as clients post them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt
from pydantic.config import JsonDict

from app.api.dependencies import Label
from app.engine.gates import MAX_BURST, PLAIN, KeyPolicy, OnBusy
from app.engine.policy import MAX_DELAY_S
from app.engine.queue import MAX_BATCH
from app.engine.registry import MAX_NAME_LENGTH
from app.engine.submissions import HIGHEST_PRIORITY, MAX_AFTER, MAX_TAGS, Submission
from app.engine.waits import EVENT_NAME

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)")
_EXAMPLE: JsonDict = {"task": "system.echo", "params": {"value": "hello"}, "project_id": "apollo", "tags": ["demo"]}


def _rfc_3339(value: Any) -> Any:
    # pydantic would also take numbers, in seconds or milliseconds as their size suggests.
    if not isinstance(value, str) or not _RFC_3339.fullmatch(value):
        raise ValueError("expected a time as in RFC 3339, such as 2026-11-21T20:15:00Z")
    return value


Instant = Annotated[AwareDatetime, BeforeValidator(_rfc_3339)]
"""A time with its offset, in the form of RFC 3339 only."""


Seconds = Annotated[float, Field(ge=0.001, le=MAX_DELAY_S, strict=True)]
_POLICY_FIELDS = {"on_busy", "debounce_s", "debounce_max_s", "throttle_s", "throttle_burst"}


class Placement(BaseModel):
    """Where a task belongs, and when it runs."""

    project_id: Label | None = None
    delay_s: float = Field(0.0, ge=0, le=MAX_DELAY_S, strict=True, description="Seconds to wait before it runs.")
    run_at: Instant | None = Field(
        None, description="When to run it, with the offset, within ten years; not together with `delay_s`."
    )
    priority: StrictInt = Field(0, ge=0, le=HIGHEST_PRIORITY, description="A higher one overtakes in the same queue.")
    tags: list[Label] = Field(default_factory=list, max_length=MAX_TAGS)
    after: list[Annotated[str, Field(max_length=128)]] = Field(
        default_factory=list,
        max_length=MAX_AFTER,
        description="Ids of own tasks: it begins when all of them have ended, however they did, or in seven days.",
    )

    key: Label | None = Field(
        None,
        description="What it is about, such as `conversation:42`: of the caller's tasks of one key one runs at a time, "
        "in the order in which they came.",
    )
    on_busy: OnBusy = Field(
        OnBusy.QUEUE,
        description="When the key has an unfinished task: wait behind it; refuse this one (409); answer with the "
        "unfinished one of the same type (200); cancel what is unfinished and run when that has ended; or run besides, "
        "as the throttle allows.",
    )
    debounce_s: Seconds | None = Field(
        None,
        description="Run so long after the last one of the same type and key; until then each gives the one that waits "
        "its parameters.",
    )
    debounce_max_s: Seconds | None = Field(
        None, description="But no later than this after the first of them; 10 times `debounce_s` unless set."
    )
    throttle_s: Seconds | None = Field(
        None, description="Starts under the key are so far apart; one that comes earlier is delayed."
    )
    throttle_burst: StrictInt = Field(1, ge=1, le=MAX_BURST, description="Starts at once after a pause.")

    def _policy(self) -> KeyPolicy:
        if not self.model_fields_set & _POLICY_FIELDS:
            return PLAIN
        return KeyPolicy(self.on_busy, self.debounce_s, self.debounce_max_s, self.throttle_s, self.throttle_burst)

    def placed(self, task: str, params: dict[str, Any] | BaseModel, idempotency_key: str | None) -> Submission:
        """What the engine takes."""
        return Submission(
            task=task,
            params=params,
            delay_s=self.delay_s,
            run_at=self.run_at,
            priority=self.priority,
            project_id=self.project_id,
            tags=tuple(self.tags),
            after=tuple(self.after),
            key=self.key,
            policy=self._policy(),
            idempotency_key=idempotency_key,
        )


class TaskRequest(Placement):
    """A task to run."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_EXAMPLE]})

    task: str = Field(min_length=1, max_length=MAX_NAME_LENGTH, description="One of `GET /api/task-types`.")
    params: dict[str, Any] = Field(default_factory=dict, description="As the task's own schema wants them.")

    def submission(self, idempotency_key: str | None = None) -> Submission:
        """What the engine takes."""
        return self.placed(self.task, self.params, idempotency_key)


class BatchItem(TaskRequest):
    """A task of a batch."""

    idempotency_key: Label | None = Field(
        None, description="As the header of a single task: the same key and task again give the first one's id."
    )


class BatchRequest(BaseModel):
    """Tasks that are accepted together or not at all."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"tasks": [_EXAMPLE, _EXAMPLE]}]})

    tasks: list[BatchItem] = Field(
        min_length=1, max_length=MAX_BATCH, description="`after` names up to 10,000 tasks in all of them together."
    )

    then: BatchItem | None = Field(
        None,
        description="One more task, which begins when all the others have ended, however they did; without `after`, "
        "`delay_s` and `run_at` of its own.",
    )

    def last(self) -> Submission | None:
        """What the engine takes as the one that begins behind the others."""
        return self.then.submission(self.then.idempotency_key) if self.then else None

    def submissions(self) -> list[Submission]:
        """What the engine takes."""
        return [item.submission(item.idempotency_key) for item in self.tasks]


class BatchAccepted(BaseModel):
    """The tasks of a batch."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"task_ids": ["019ab3f0c1d2004f8b6d4e1c9a7f0325"]}]})

    task_ids: list[str] = Field(description="In the order of the request, that of `then` last.")


class EventRequest(BaseModel):
    """Something that has happened outside and that a task waits for, or will."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "paid", "payload": {"amount": 12}}]}
    )

    name: str = Field(pattern=f"^{EVENT_NAME.pattern}$", description="As the task knows it.")
    payload: Any = Field(None, description="Anything, up to 64 KiB.")


class EventAccepted(BaseModel):
    """The event is kept until the task takes it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"delivered": True}]})

    delivered: bool = Field(description="False: an event with this idempotency key was delivered before.")


class RetryRequest(BaseModel):
    """What to change when a task runs again."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"params": {"value": "again"}}]})

    params: dict[str, Any] | None = Field(None, description="Instead of the old ones.")

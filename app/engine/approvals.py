"""Approvals: a task asks a person, and waits for the answer as for anything else (`waits.py`).

    decision = await ctx.approval(ApprovalRequest("Publish the report?", {"url": url}, deciders=("eve",)))
    if decision.approved: ...

States:

    PENDING --decide--> APPROVED | REJECTED
       |----deadline--> EXPIRED
       |----withdraw, or the end of its task--> WITHDRAWN

Each move is one script, made once and announced once (`approval_decided`), and it takes the approval out of what its
task waits for. The id follows from the task and the place in the row of its steps, so a task that comes to the same
place again asks for nothing new. Who asked, who may decide and until when does not change once it is asked.

Invariants: an approval is pending exactly as long as it stands in the indices of the open ones and in that of the
deadlines; the deadline of the wait is that of the approval; a pending approval has a task that has not ended.

At each failure:

- the worker dies between asking and waiting: the next attempt finds the approval by its id, decided or not;
- a decision comes before the task waits: `suspend.lua` looks, and does not wait;
- two decisions at once: the server does one after the other, and the second finds the approval closed;
- the deadline comes while no worker takes the task's queue: any worker's heartbeat, any API process, and whoever looks
  at the approval ends it, within about a second;
- the reply of a decision is lost: with the same key, the same decision again is answered like the first time;
- the task is cancelled, or ends without having read the answer: the same script withdraws the approval.

An approval lives as long as the record of its task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from app.engine.faults import faults_of
from app.engine.job import moment
from app.engine.policy import MAX_DELAY_S
from app.engine.steps import Entry, Steps
from app.engine.submissions import LABEL
from app.engine.waits import Waits
from app.errors import ApprovalExpired, ApprovalWithdrawn, InvalidInput, InvalidResult, TooLarge
from app.store.approval_scripts import Ask

DEFAULT_EXPIRY = timedelta(hours=24)
MAX_SUBJECT_CHARS = 200
MAX_PAYLOAD_BYTES = 64 * 1024
MAX_SCHEMA_BYTES = 64 * 1024
MAX_DECIDERS = 20
STEP = "approval"
"""The name of the wait among the task's steps. Not the subject: its words may change between two versions of a task."""


class ApprovalStatus(StrEnum):
    """Where an approval is in its life."""

    PENDING = "PENDING"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"
    WITHDRAWN = "WITHDRAWN"


@dataclass(frozen=True, slots=True)
class ApprovalRequest:
    """What is asked, and who may decide.

    `subject` is one line (200 characters); `payload` is what the person needs to know, a model or a JSON object (64
    KiB). `deciders` are up to 20 users, who are told; whoever has the scope `scope` may decide too. Where neither is
    given, the user of the task may decide; where one is, that user may not unless named. An admin always may.
    """

    subject: str
    payload: BaseModel | dict[str, Any] = field(default_factory=dict)
    deciders: tuple[str, ...] = ()
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What a person decided. `edits` are what they want otherwise, of the type asked for; None where they sent none."""

    approval_id: str
    approved: bool
    notes: str
    edits: Any
    decided_by: str
    decided_at: datetime


class ApprovalServices(Protocol):
    """What the worker lends to approvals."""

    async def ask_approval(self, item: Ask) -> list[bytes]:
        """Ask, or look at what has become of it: status, created_at, decided_at, decided_by, notes, edits. Raises
        `LeaseLost`."""
        ...


class Approvals:
    """The approvals of one attempt."""

    def __init__(self, task_id: str, token: int, steps: Steps, waits: Waits, services: ApprovalServices) -> None:
        self._task_id = task_id
        self._token = token
        self._steps = steps
        self._waits = waits
        self._services = services

    async def ask(self, request: ApprovalRequest, expires_in: timedelta, edits: Any) -> Decision:
        """Ask and wait for the answer; see `TaskContext.approval`."""
        adapter = None if edits is None else TypeAdapter(edits)
        # Before the place in the row is taken: what cannot be asked must change nothing.
        payload, schema = _checked(request, expires_in), _schema(adapter)
        entry = await self._steps.enter(STEP)
        approval_id = approval_id_of(self._task_id, entry.number)
        stored = entry.result
        if stored is None:
            item = Ask(
                task_id=self._task_id,
                token=self._token,
                id=approval_id,
                number=entry.number,
                facts=to_json({"name": STEP}),
                expires_in_ms=int(expires_in.total_seconds() * 1000),
                subject=request.subject,
                payload=payload,
                deciders=tuple(dict.fromkeys(request.deciders)),
                scope=request.scope or "",
                edits_schema=schema,
            )
            stored = await self._answer(entry, item)
        return _decision(from_json(stored), adapter)

    async def _answer(self, entry: Entry, item: Ask) -> bytes:
        """What has become of it, stored as the result of the step. Does not return while it is pending."""
        status, created_at, decided_at, decided_by, notes, edits = await self._services.ask_approval(item)
        if status == b"PENDING":
            shown = {"kind": "approval", "approval_id": item.id}
            await self._waits.subject(entry, f"approval:{item.id}", item.expires_in_ms, shown)
        outcome = {
            "approval_id": item.id,
            "status": status.decode(),
            "decided_at": int(decided_at),
            "decided_by": decided_by.decode(),
            "notes": notes.decode(),
            "edits": from_json(edits) if edits else None,
        }
        data = to_json(outcome)
        failed = status in (b"EXPIRED", b"WITHDRAWN")
        await self._steps.store(entry, data, (int(decided_at) - int(created_at)) / 1000, failed=failed)
        return data


def approval_id_of(task_id: str, number: int) -> str:
    """The id of an approval that a task asks for at a place in the row of its steps: the same in every attempt."""
    return hashlib.sha256(f"approval/{task_id}/{number}".encode()).hexdigest()[:32]


def _decision(outcome: Mapping[str, Any], adapter: TypeAdapter[Any] | None) -> Decision:
    # Not from the place in the row: the replay of a dead letter has the answer to what the old task asked.
    approval_id, status, by = outcome["approval_id"], ApprovalStatus(outcome["status"]), outcome["decided_by"]
    if status is ApprovalStatus.EXPIRED:
        raise ApprovalExpired(f"approval {approval_id} expired: nobody decided on it in time")
    if status is ApprovalStatus.WITHDRAWN:
        raise ApprovalWithdrawn(f"approval {approval_id} was withdrawn by {by or 'the end of its task'}")
    return Decision(
        approval_id=approval_id,
        approved=status is ApprovalStatus.APPROVED,
        notes=outcome["notes"],
        edits=_edits(approval_id, outcome["edits"], adapter),
        decided_by=by,
        decided_at=moment(outcome["decided_at"]),
    )


def _edits(approval_id: str, edits: Any, adapter: TypeAdapter[Any] | None) -> Any:
    if edits is None or adapter is None:
        return edits
    try:
        return adapter.validate_python(edits)
    except ValidationError as error:
        raise InvalidResult(
            f"approval {approval_id}: its edits are not what their type accepts: {faults_of(error)}"
        ) from error


def _checked(request: ApprovalRequest, expires_in: timedelta) -> bytes:
    """The payload as JSON. Raises `InvalidInput` or `TooLarge` for what cannot be asked."""
    subject = request.subject
    if len(subject) > MAX_SUBJECT_CHARS:
        raise TooLarge(f"a subject of {len(subject)} characters exceeds the bound of {MAX_SUBJECT_CHARS}")
    if not subject or not subject.isprintable():
        raise InvalidInput(f"subject {subject[:80]!r}: expected one line of text without control characters")
    if not 0.001 <= expires_in.total_seconds() <= MAX_DELAY_S:
        raise InvalidInput(f"expires_in {expires_in}: expected more than 0 and at most ten years")
    if len(request.deciders) > MAX_DECIDERS:
        raise TooLarge(f"{len(request.deciders)} deciders exceed the bound of {MAX_DECIDERS}")
    for name in (*request.deciders, *((request.scope,) if request.scope is not None else ())):
        if not LABEL.fullmatch(name):
            raise InvalidInput(f"{name[:80]!r}: expected a user or a scope, 1 to 128 characters, no control characters")
    return _payload_json(request.payload)


def _payload_json(payload: Any) -> bytes:
    try:
        data = to_json(payload)
        is_object = isinstance(from_json(data, allow_inf_nan=False), dict)
    except (ValueError, PydanticSerializationError) as error:
        raise InvalidInput(f"payload of an approval: expected what JSON can hold: {error}") from error
    if not is_object:
        raise InvalidInput("payload of an approval: expected a JSON object or a model")
    if len(data) > MAX_PAYLOAD_BYTES:
        raise TooLarge(f"a payload of {len(data)} bytes exceeds the bound of {MAX_PAYLOAD_BYTES} bytes")
    return data


def _schema(adapter: TypeAdapter[Any] | None) -> bytes:
    """The JSON schema that edits are checked against when a person decides; empty where no type was given."""
    if adapter is None:
        return b""
    data = to_json(adapter.json_schema())
    if len(data) > MAX_SCHEMA_BYTES:
        raise TooLarge(f"a schema of edits of {len(data)} bytes exceeds the bound of {MAX_SCHEMA_BYTES} bytes")
    return data

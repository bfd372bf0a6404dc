"""Approvals as people see them: listed, read, decided once, withdrawn. `approvals.py` says what they are.

Whom an approval concerns (the user of its task, its deciders, whoever has its scope, admins) may read it; to everybody
else it does not exist.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from pydantic_core import from_json, to_json

from app.engine.approvals import ApprovalStatus
from app.engine.edit_schema import faults_of
from app.engine.job import fields_of, moment
from app.engine.queue import MAX_LIMIT
from app.engine.submissions import LABEL
from app.errors import Conflict, Forbidden, Gone, InvalidInput, NotFound, TooLarge
from app.store import keys
from app.store.approval_scripts import ApprovalScripts

MAX_NOTES_CHARS = 4_000
MAX_EDITS_BYTES = 32 * 1024
"""With the longest notes, this still fits into an event of 64 KiB."""
EXPIRE_EVERY_S = 1.0


class Person(Protocol):
    """Who calls."""

    @property
    def user_id(self) -> str:
        """The caller's name."""
        ...

    @property
    def scopes(self) -> frozenset[str]:
        """What the caller may do besides."""
        ...

    @property
    def is_admin(self) -> bool:
        """Whether the caller may do everything."""
        ...


class AlreadyDecided(Conflict):
    """The approval is not pending any more: `status` says what became of it, `decided_by` who did it."""

    title = "Already decided"

    def __init__(self, approval_id: str, status: str, decided_by: str) -> None:
        super().__init__(f"approval {approval_id} is {status} already" + (f", by {decided_by}" if decided_by else ""))
        self.status, self.decided_by = status, decided_by

    def extra(self) -> dict[str, Any]:
        """What became of it, and who did it (null: the end of its task)."""
        return {"approval_status": self.status, "decided_by": self.decided_by or None}


@dataclass(frozen=True, slots=True)
class Approval:
    """An approval. Times are aware and in UTC; `decided_at` is also when it expired or was withdrawn."""

    approval_id: str
    task_id: str
    task: str
    user_id: str
    project_id: str | None
    status: ApprovalStatus
    subject: str
    deciders: tuple[str, ...]
    scope: str | None
    created_at: datetime
    expires_at: datetime
    decided_at: datetime | None
    decided_by: str | None
    notes: str | None
    payload: Any = None
    """This and the following are left out of lists."""
    edits: Any = None
    edits_schema: Any = None

    def concerns(self, person: Person) -> bool:
        """Whether this person may know of it."""
        return person.is_admin or person.user_id == self.user_id or self._is_named(person)

    def may_be_decided_by(self, person: Person) -> bool:
        """Whether this person may decide on it."""
        if person.is_admin or self._is_named(person):
            return True
        return not self.deciders and self.scope is None and person.user_id == self.user_id

    def may_be_withdrawn_by(self, person: Person) -> bool:
        """Whether this person may take it back."""
        return person.is_admin or person.user_id == self.user_id

    def _is_named(self, person: Person) -> bool:
        return person.user_id in self.deciders or (self.scope is not None and self.scope in person.scopes)


@dataclass(frozen=True, slots=True)
class ApprovalPage:
    """Some approvals, newest first; `next_cursor` is None at the end."""

    items: list[Approval]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a person wants. `key` names the decision, so that the same again after a lost reply is known."""

    approved: bool
    notes: str = ""
    edits: dict[str, Any] | None = None
    key: str | None = None


class ApprovalDesk:
    """Look at approvals, decide on them, withdraw them."""

    def __init__(self, scripts: ApprovalScripts) -> None:
        self._scripts = scripts

    async def page(
        self, person: Person, *, status: ApprovalStatus | None = None, cursor: str = "", limit: int = 50
    ) -> ApprovalPage:
        """Those that concern the person, newest first. Raises `InvalidInput` for a wrong limit."""
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidInput(f"limit={limit}: expected 1 to {MAX_LIMIT}", pointer="limit")
        indices = _indices(person, pending=status is ApprovalStatus.PENDING)
        next_cursor, rows = await self._scripts.list_approvals(indices, cursor, limit, status or "")
        return ApprovalPage([approval_of(row.decode(), fields_of(fields)) for row, fields in rows], next_cursor or None)

    async def get(self, approval_id: str, person: Person) -> Approval:
        """One of them. Raises `NotFound`, also for one that does not concern the person."""
        fields = {name: value.decode() for name, value in (await self._scripts.read_approval(approval_id)).items()}
        approval = approval_of(approval_id, fields) if fields else None
        if approval is None or not approval.concerns(person):
            raise NotFound(f"no approval {approval_id}")
        return approval

    async def decide(self, approval_id: str, verdict: Verdict, person: Person) -> Approval:
        """Decide on it, once, and resume its task.

        Raises `NotFound`, `Forbidden` for whom it concerns but who may not decide, `InvalidInput` for edits that the
        task does not accept (with pointers), `TooLarge`, `Gone` when it expired, and `AlreadyDecided`.
        """
        approval = await self.get(approval_id, person)
        if not approval.may_be_decided_by(person):
            raise Forbidden(
                f"user {person.user_id!r} may not decide on approval {approval_id}: expected {_who(approval)}"
            )
        edits = _checked(approval, verdict)
        status = ApprovalStatus.APPROVED if verdict.approved else ApprovalStatus.REJECTED
        decision = _fingerprint(verdict, edits, person.user_id)
        reply = await self._scripts.close_approval(
            approval_id, status, by=person.user_id, notes=verdict.notes, edits=edits, decision=decision
        )
        _raise_refusal(approval_id, reply)
        return await self.get(approval_id, person)

    async def withdraw(self, approval_id: str, person: Person) -> None:
        """Take it back, which only the user of its task and admins may; one that is withdrawn stays so.

        Raises `NotFound`, `Forbidden`, `Gone` when it expired, and `AlreadyDecided`.
        """
        approval = await self.get(approval_id, person)
        if not approval.may_be_withdrawn_by(person):
            raise Forbidden(
                f"user {person.user_id!r} may not withdraw approval {approval_id}: it is {approval.user_id!r}'s"
            )
        reply = await self._scripts.close_approval(approval_id, ApprovalStatus.WITHDRAWN, by=person.user_id)
        if reply[:2] != [b"closed", b"WITHDRAWN"]:
            _raise_refusal(approval_id, reply)

    async def expire(self) -> int:
        """End those whose time is over. Returns how many."""
        return await self._scripts.expire_approvals()

    async def watch(self) -> None:
        """End those whose time is over, once a second, for ever."""
        while True:
            await self.expire()
            await asyncio.sleep(EXPIRE_EVERY_S)


def _indices(person: Person, *, pending: bool) -> list[str]:
    if person.is_admin:
        return [keys.approvals(pending=pending)]
    of_scopes: Iterable[str] = (keys.approvals_of_scope(scope, pending=pending) for scope in sorted(person.scopes))
    return [keys.approvals_of_user(person.user_id, pending=pending), *of_scopes]


def approval_of(approval_id: str, fields: Mapping[str, str]) -> Approval:
    """An approval from the fields of its hash."""
    return Approval(
        approval_id=approval_id,
        task_id=fields["task_id"],
        task=fields["task"],
        user_id=fields["user_id"],
        project_id=fields.get("project_id"),
        status=ApprovalStatus(fields["status"]),
        subject=fields["subject"],
        deciders=tuple(fields["deciders"].split("\n")) if "deciders" in fields else (),
        scope=fields.get("scope"),
        created_at=moment(fields["created_at"]),
        expires_at=moment(fields["expires_at"]),
        decided_at=moment(fields["decided_at"]) if "decided_at" in fields else None,
        decided_by=fields.get("decided_by"),
        notes=fields.get("notes"),
        payload=_json(fields, "payload"),
        edits=_json(fields, "edits"),
        edits_schema=_json(fields, "edits_schema"),
    )


def _json(fields: Mapping[str, str], name: str) -> Any:
    return from_json(fields[name]) if name in fields else None


def _who(approval: Approval) -> str:
    named = [*approval.deciders, *([f"whoever has the scope {approval.scope!r}"] if approval.scope else [])]
    return ", ".join(named) or approval.user_id


def _checked(approval: Approval, verdict: Verdict) -> bytes:
    """The edits as JSON; empty where there are none."""
    if len(verdict.notes) > MAX_NOTES_CHARS:
        raise TooLarge(
            f"notes of {len(verdict.notes)} characters exceed the bound of {MAX_NOTES_CHARS}", pointer="/notes"
        )
    if verdict.key is not None and not LABEL.fullmatch(verdict.key):
        raise InvalidInput("Idempotency-Key: expected 1 to 128 characters and no control characters")
    if verdict.edits is None:
        return b""
    data = to_json(verdict.edits)
    if len(data) > MAX_EDITS_BYTES:
        raise TooLarge(f"edits of {len(data)} bytes exceed the bound of {MAX_EDITS_BYTES} bytes", pointer="/edits")
    if approval.edits_schema is not None:
        faults = tuple((f"/edits{at}", detail) for at, detail in faults_of(approval.edits_schema, verdict.edits))
        if faults:
            raise InvalidInput(f"{faults[0][0]}: {faults[0][1]}", pointer=faults[0][0], faults=faults)
    return data


def _fingerprint(verdict: Verdict, edits: bytes, user_id: str) -> str:
    if verdict.key is None:
        return ""
    parts = to_json([verdict.key, user_id, verdict.approved, verdict.notes, edits.decode()])
    return hashlib.sha256(parts).hexdigest()


def _raise_refusal(approval_id: str, reply: list[bytes]) -> None:
    match reply[0]:
        case b"missing":
            raise NotFound(f"no approval {approval_id}")
        case b"closed":
            status, by = reply[1].decode(), reply[2].decode()
            if status == ApprovalStatus.EXPIRED:
                raise Gone(f"approval {approval_id} expired: nobody decided on it in time")
            raise AlreadyDecided(approval_id, status, by)

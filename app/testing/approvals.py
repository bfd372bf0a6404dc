"""The scripts of approvals, in memory; and the person who decides in a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic_core import from_json, to_json

from app.engine.approval_desk import Approval, Verdict
from app.store.approval_scripts import ApprovalScripts, Ask
from app.store.items import Arg
from app.store.scripts import Scripts
from app.testing.children import Later
from app.testing.errors import HarnessError
from app.testing.ledger import Ledger, iso

Decisions = Mapping[str, Any] | Callable[[Approval], Any]
"""What is decided, by the subject of the approval, or asked of a function: True, False, a `Verdict`, `Later` one of
these, or None for nobody, so that it expires."""


@dataclass(frozen=True, slots=True)
class Decider:
    """Somebody who may decide on an approval, and nothing more."""

    user_id: str
    scopes: frozenset[str]
    is_admin: bool = False

    @classmethod
    def of(cls, approval: Approval) -> Decider:
        """The first who is named, or whoever has the scope, or the user of the task."""
        if approval.deciders:
            return cls(approval.deciders[0], frozenset())
        if approval.scope is not None:
            return cls("decider", frozenset({approval.scope}))
        return cls(approval.user_id, frozenset())


class MemoryApprovals:
    """The approvals of a run, as their hashes stand."""

    def __init__(self, ledger: Ledger) -> None:
        self.records: dict[str, dict[str, str]] = {}
        self._ledger = ledger

    def ask(self, args: Sequence[Arg]) -> list[bytes]:
        """See `ask_approval.lua`."""
        item = _ask_of(args)
        record = self._ledger.records[item.task_id]
        if not record.holds(item.token):
            return [b"stale"]
        if item.id not in self.records:
            self._write(item)
        self.expire()
        fields = self.records[item.id]
        names = ("status", "created_at", "decided_at", "decided_by", "notes", "edits")
        return [b"ok", *(fields.get(name, "").encode() for name in names)]

    def close(self, args: Sequence[Arg]) -> list[bytes]:
        """See `close_approval.lua`."""
        approval_id, status, by, notes, edits, decision = (_text(arg) for arg in args)
        self.expire()
        fields = self.records.get(approval_id)
        if fields is None:
            return [b"missing"]
        if fields["status"] != "PENDING":
            if decision and fields.get("decision") == decision:
                return [b"again"]
            return [b"closed", fields["status"].encode(), fields.get("decided_by", "").encode()]
        if decision:
            fields["decision"] = decision
        self._close(approval_id, status, by, notes, edits)
        return [b"ok"]

    def expire(self) -> int:
        """See `expire_approvals.lua`."""
        due = [key for key, fields in self._pending() if int(fields["expires_at"]) <= self._ledger.now_ms]
        for approval_id in due:
            self._close(approval_id, "EXPIRED")
        return len(due)

    def next_ms(self) -> int | None:
        """When the next one expires."""
        return min((int(fields["expires_at"]) for _, fields in self._pending()), default=None)

    def withdraw_of(self, task_id: str) -> None:
        """A task has ended: nobody reads a decision any more."""
        for approval_id, fields in self._pending():
            if fields["task_id"] == task_id:
                self._close(approval_id, "WITHDRAWN")

    def _pending(self) -> list[tuple[str, dict[str, str]]]:
        return [(key, fields) for key, fields in self.records.items() if fields["status"] == "PENDING"]

    def _write(self, item: Ask) -> None:
        record, now_ms = self._ledger.records[item.task_id], self._ledger.now_ms
        deadline = now_ms + item.expires_in_ms
        fields = {"task_id": item.task_id, "task": record.fields["task"], "user_id": record.fields["user_id"]}
        fields |= {"status": "PENDING", "subject": item.subject, "payload": item.payload.decode()}
        fields |= {"created_at": str(now_ms), "expires_at": str(deadline)}
        optional = {"project_id": record.fields.get("project_id", ""), "deciders": "\n".join(item.deciders)}
        optional |= {"scope": item.scope, "edits_schema": item.edits_schema.decode()}
        self.records[item.id] = fields | {name: value for name, value in optional.items() if value}
        record.steps[f"wait:{item.number}"] = b"%d %b" % (deadline, item.facts)
        record.fields.setdefault("steps", "0")
        told = {"approval_id": item.id, "subject": item.subject, "expires_at": iso(deadline)}
        self._ledger.note(record, "", "hitl_pending", to_json(told))
        self._ledger.tell(record, f"asks for an approval: {item.subject}")
        self._ledger.asked(item.id)

    def _close(self, approval_id: str, status: str, by: str = "", notes: str = "", edits: str = "") -> None:
        fields = self.records[approval_id]
        record = self._ledger.records[fields["task_id"]]
        given = {"decided_by": by, "notes": notes, "edits": edits}
        fields |= {"status": status, "decided_at": str(self._ledger.now_ms)}
        fields |= {name: value for name, value in given.items() if value}
        told: dict[str, Any] = {"approval_id": approval_id, "subject": fields["subject"], "status": status}
        if status in ("APPROVED", "REJECTED"):
            told["approved"] = status == "APPROVED"
        told |= {name: from_json(value) if name == "edits" else value for name, value in given.items() if value}
        self._ledger.note(record, "", "approval_decided", to_json(told))
        self._ledger.tell(record, f"approval {fields['subject']!r} is {status}" + (f" by {by}" if by else ""))
        self._ledger.come_about(record, f"approval:{approval_id}")


class DeskScripts(ApprovalScripts):
    """For the desk of a run: it reads from memory."""

    def __init__(self, scripts: Scripts, approvals: MemoryApprovals) -> None:
        super().__init__(scripts)
        self._approvals = approvals

    async def read_approval(self, approval_id: str) -> dict[str, bytes]:
        """The fields of an approval; empty where there is none."""
        return {name: value.encode() for name, value in self._approvals.records.get(approval_id, {}).items()}


def verdict_on(approval: Approval, decisions: Decisions) -> tuple[timedelta, Verdict] | None:
    """What the test decides on an approval, and after how long; None: nothing."""
    answer = decisions(approval) if callable(decisions) else decisions.get(approval.subject)
    after = timedelta()
    while isinstance(answer, Later):
        after, answer = after + answer.after, answer.answer
    if answer is None:
        return None
    if isinstance(answer, bool):
        return after, Verdict(answer)
    if isinstance(answer, Verdict):
        return after, answer
    raise HarnessError(f"{answer!r} for the approval {approval.subject!r}: expected True, False, a Verdict or Later")


def _ask_of(args: Sequence[Arg]) -> Ask:
    task, token, approval, number, facts, expires_in, subject, payload, deciders, scope, schema = args
    return Ask(
        task_id=_text(task),
        token=int(token),
        id=_text(approval),
        number=int(number),
        facts=_text(facts).encode(),
        expires_in_ms=int(expires_in),
        subject=_text(subject),
        payload=_text(payload).encode(),
        deciders=tuple(name for name in _text(deciders).split("\n") if name),
        scope=_text(scope),
        edits_schema=_text(schema).encode(),
    )


def _text(arg: Arg) -> str:
    return arg.decode() if isinstance(arg, bytes) else str(arg)

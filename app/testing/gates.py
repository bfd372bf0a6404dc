"""The gates of a run, in memory: see `app/engine/gates.py`, and of `lib.lua` what concerns gates.

A task that its gates hold is parked: it has no time at which it is due, until one of its gates lets it in. What the
store does besides, for gates that have lost a key or a member, is left out: nothing is lost here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.engine.job import Status
from app.testing.records import Record

FAIL_FAST = "fail-fast:"


class Gates:
    """The rows of unfinished tasks, each in the order in which its tasks came."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self._records = records
        self._rows: dict[str, list[str]] = {}

    def row(self, name: str) -> Sequence[str]:
        """The ids of the tasks in a gate; none where there is no such gate."""
        return self._rows.get(name, ())

    def enter(self, record: Record) -> bool:
        """Put a new task behind the last of each of its gates; whether they let it run."""
        for name, _ in record.gates:
            self._rows.setdefault(name, []).append(record.id)
        return self.pass_by(record)

    def pass_by(self, record: Record) -> bool:
        """Whether all gates of a task let it run."""
        return all(record.id in self.row(name)[:limit] for name, limit in record.gates)

    def leave(self, record: Record) -> list[Record]:
        """A task has ended; the tasks that its gates let in for it, now or when they are due."""
        let_in: dict[str, Record] = {}
        for name, limit in record.gates:
            if record.status is not Status.SUCCESS and name.startswith(FAIL_FAST):
                self._close(record, name)
            row = self._rows[name]
            before = row.index(record.id)
            row.remove(record.id)
            if before < limit <= len(row):
                let_in[row[limit - 1]] = self._records[row[limit - 1]]
            if not row:
                del self._rows[name]
        return [other for other in let_in.values() if self._is_admitted(other)]

    def _close(self, record: Record, name: str) -> None:
        parent = self._records.get(record.fields.get("parent_id", ""))
        if parent is not None:
            parent.fields["failed_group"] = name

    def _is_admitted(self, record: Record) -> bool:
        """Not one that is about to be cancelled: it stays parked until then."""
        has_begun = record.status is not Status.PENDING or "started_at" in record.fields
        return not has_begun and self.pass_by(record) and not self._is_doomed(record)

    def _is_doomed(self, record: Record) -> bool:
        parent = self._records.get(record.fields.get("parent_id", ""))
        if parent is None:
            return False
        if parent.status is Status.CANCELLED or "cancel" in parent.fields:
            return True
        return parent.fields.get("failed_group") in [name for name, _ in record.gates]

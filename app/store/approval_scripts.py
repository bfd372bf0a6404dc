"""A typed function for every Lua script about approvals, under the script's name; see `store/scripts.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.store import keys
from app.store.items import Arg
from app.store.scripts import SCAN_BOUND, Fields, Scripts


@dataclass(frozen=True, slots=True)
class Ask:
    """An approval that an attempt asks for; fields in the order in which `ask_approval.lua` reads them."""

    task_id: str
    token: int
    id: str
    number: int
    facts: bytes
    expires_in_ms: int
    subject: str
    payload: bytes
    deciders: tuple[str, ...]
    scope: str
    edits_schema: bytes

    def args(self) -> tuple[Arg, ...]:
        """The flat form of the script."""
        return (
            *(self.task_id, self.token, self.id, self.number, self.facts, self.expires_in_ms, self.subject),
            *(self.payload, "\n".join(self.deciders), self.scope, self.edits_schema),
        )


class ApprovalScripts:
    """The scripts of approvals, bound to the client of `scripts`."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def ask_approval(self, item: Ask) -> list[bytes]:
        """Ask for an approval, or look at what has become of it; see the script for the reply."""
        reply: list[bytes] = await self._scripts.run("ask_approval", item.args())
        return reply

    async def close_approval(
        self, approval_id: str, status: str, *, by: str, notes: str = "", edits: bytes = b"", decision: str = ""
    ) -> list[bytes]:
        """Decide on an approval, or withdraw it; see the script for the reply."""
        args: list[Arg] = [approval_id, status, by, notes, edits, decision]
        reply: list[bytes] = await self._scripts.run("close_approval", args)
        return reply

    async def expire_approvals(self) -> int:
        """End approvals whose time is over. Returns how many."""
        return int(await self._scripts.run("expire_approvals", ()))

    async def list_approvals(
        self, indices: Sequence[str], cursor: str, limit: int, status: str
    ) -> tuple[str, list[tuple[bytes, Fields]]]:
        """A page out of indices, newest first: the next cursor ('' at the end), and ids with their fields."""
        reply = await self._scripts.run("list_approvals", [cursor, limit, SCAN_BOUND, status, *indices])
        return reply[0].decode(), [(row[0], row[1]) for row in reply[1:]]

    async def read_approval(self, approval_id: str) -> dict[str, bytes]:
        """The fields of an approval; empty where there is none."""
        stored: dict[bytes, bytes] = await self._scripts.redis.execute_command("HGETALL", keys.approval(approval_id))
        return {field.decode(): value for field, value in stored.items()}

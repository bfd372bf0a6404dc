"""The commands that answer tasks: what they ask people, and events that they wait for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from app.cli_calls import call
from app.cli_tasks import BadArgument
from app.cli_views import print_json, print_pairs, print_table, when
from app.client import View


def list_all(status: str | None, *, limit: int, as_json: bool) -> int:
    """List approvals."""
    items = call(lambda api: api.approvals(status=status, limit=limit))
    if as_json:
        print_json(items)
        return 0
    rows = [
        (item["approval_id"], item["status"], item["subject"], item["task"], item["user_id"], when(item["expires_at"]))
        for item in items
    ]
    print_table(("id", "status", "subject", "task", "user", "expires"), rows, nothing="No approvals.")
    return 0


def show(approval_id: str, *, as_json: bool) -> int:
    """Show an approval."""
    approval = call(lambda api: api.approval(approval_id))
    print_json(approval) if as_json else _print(approval)
    return 0


def decide(approval_id: str, *, approved: bool, notes: str | None, edits: str | None, as_json: bool) -> int:
    """Approve or reject. Raises `BadArgument` for edits that are no JSON object."""
    wanted = None if edits is None else _object(edits)
    approval = call(lambda api: api.decide(approval_id, approved, notes=notes, edits=wanted))
    print_json(approval) if as_json else print(f"{approval['approval_id']}  {approval['status']}")
    return 0


def withdraw(approval_id: str) -> int:
    """Take an approval back."""
    call(lambda api: api.withdraw(approval_id))
    print(f"{approval_id}  WITHDRAWN")
    return 0


def send(task_id: str, name: str, payload: str | None, *, key: str | None, as_json: bool) -> int:
    """Send a task an event."""
    value = None if payload is None else _value(payload)
    answer = call(lambda api: api.send_event(task_id, name, value, idempotency_key=key))
    if as_json:
        print_json(answer)
    else:
        print(f"{task_id}  {name}  {'delivered' if answer['delivered'] else 'delivered before'}")
    return 0


def _print(approval: View) -> None:
    scope = approval["scope"]
    may = [*approval["deciders"], *([f"whoever has the scope {scope}"] if scope else [])]
    print_pairs(
        {
            "approval": approval["approval_id"],
            "subject": approval["subject"],
            "status": approval["status"],
            "task": f"{approval['task']} {approval['task_id']}",
            "user": approval["user_id"],
            "project": approval["project_id"],
            "may decide": may or approval["user_id"],
            "asked": when(approval["created_at"]),
            "expires": when(approval["expires_at"]),
            "ended": when(approval["decided_at"]),
            "by": approval["decided_by"],
            "notes": approval["notes"],
        }
    )
    for name in ("payload", "edits"):
        if approval[name]:
            print(name)
            print_json(approval[name])


def _value(text: str) -> Any:
    """JSON where it is JSON, else text; `@file` is a file's text. Raises `BadArgument`."""
    if text.startswith("@"):
        try:
            text = Path(text[1:]).expanduser().read_text("utf-8")
        except (OSError, UnicodeError) as error:
            raise BadArgument(f"{text}: cannot be read: {error}") from error
    try:
        return json.loads(text)
    except ValueError:
        return text


def _object(text: str) -> dict[str, Any]:
    value = _value(text)
    if not isinstance(value, dict):
        raise BadArgument(f"--edits {text[:80]}: expected a JSON object")
    return value

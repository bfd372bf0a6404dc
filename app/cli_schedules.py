"""The commands about schedules."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from app.cli_calls import call
from app.cli_views import print_json, print_pairs, print_table, when
from app.client import View


def list_all(*, as_json: bool) -> int:
    """List schedules."""
    items = call(lambda api: api.items("/api/schedules"))
    if as_json:
        print_json(items)
        return 0
    rows = [
        (
            item["name"],
            item["task"],
            item["cron"],
            item["timezone"],
            _next(item),
            when(item["last_firing_at"]),
            _last(item),
        )
        for item in items
    ]
    print_table(("schedule", "task", "cron", "zone", "next", "last", ""), rows, nothing="No schedules.")
    return 0


def show(name: str, *, as_json: bool) -> int:
    """Show a schedule."""
    item = call(lambda api: api.read(_path(name)))
    if as_json:
        print_json(item)
        return 0
    print_pairs(
        {
            "schedule": item["name"],
            "task": item["task"],
            "cron": f"{item['cron']} ({item['timezone']})",
            "jitter": f"{item['jitter_s']:g} s" if item["jitter_s"] else None,
            "overlap": "allowed" if item["overlap"] else "passed over",
            "missed": "caught up, as one" if item["catch_up"] == "once" else "forgotten",
            "user": item["user_id"],
            "next": _next(item),
            "last tick": when(item["last_tick_at"]),
            "outcome": item["last_outcome"],
            "last firing": when(item["last_firing_at"]),
            "last task": item["last_task_id"],
            "its status": item["last_task_status"],
        }
    )
    print("params")
    print_json(item["params"])
    return 0


def trigger(name: str) -> int:
    """Start the task of a schedule; its id goes to the output."""
    print(call(lambda api: api.act(f"{_path(name)}/trigger"))["task_id"])
    return 0


def change(name: str, action: str) -> int:
    """Pause or resume a schedule."""
    item = call(lambda api: api.act(f"{_path(name)}/{action}"))
    print(f"{item['name']}: {'paused' if item['paused'] else 'running, next ' + (_next(item) or 'never')}")
    return 0


def _path(name: str) -> str:
    return f"/api/schedules/{quote(name, safe='')}"


def _next(item: View) -> str:
    return "paused" if item["paused"] else when(item["next_firing_at"])


def _last(item: View) -> Any:
    # The outcome is worth a word where it is not simply that the task was started.
    outcome = item["last_outcome"]
    return item["last_task_status"] if outcome in (None, "fired") else outcome

"""The commands about queues, quotas, workers and task types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from app.cli_calls import call
from app.cli_views import print_json, print_table, size, when
from app.client import View


def task_types(*, as_json: bool) -> int:
    """List task types."""
    items = call(lambda api: api.items("/api/task-types"))
    rows = [(item["task"], item["queue"], _signature(item["params_schema"]), item["summary"]) for item in items]
    return _print(items, ("task", "queue", "parameters", "what it does"), rows, "No tasks.", as_json=as_json)


def _signature(schema: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    return " ".join(name if name in required else f"[{name}]" for name in schema.get("properties", {}))


def workers(*, as_json: bool) -> int:
    """List workers."""
    items = call(lambda api: api.items("/api/workers"))
    rows = [
        (
            item["worker_id"],
            item["version"],
            f"{item['running']} of {item['capacity']}",
            f"{item['cpu_percent']:g} %",
            size(item["rss_bytes"]),
            f"{item['loop_lag_ms']:g} ms",
            when(item["started_at"]),
            " ".join(item["lanes"]),
        )
        for item in items
    ]
    headers = ("worker", "version", "running", "cpu", "memory", "loop lag", "started", "queues")
    return _print(items, headers, rows, "No worker is alive.", as_json=as_json)


def queues(*, as_json: bool) -> int:
    """List queues."""
    items = call(lambda api: api.items("/api/queues"))
    rows = [_queue_row(item) for item in items]
    headers = ("queue", "ready", "delayed", "running", "waiting", "dead", "oldest", "a minute", "workers", "")
    return _print(items, headers, rows, "No queues.", as_json=as_json)


def quotas(*, as_json: bool) -> int:
    """List quotas."""
    items = call(lambda api: api.items("/api/quotas"))
    rows = [
        (
            item["key"],
            _of(item["requests_used"], item["requests_per_minute"]),
            _of(item["tokens_used"], item["tokens_per_minute"]),
            _of(item["held"], item["concurrency"]),
            item["waiting"],
            f"{item['share']:.0%} until {when(item['shrunk_until'])}" if item["shrunk_until"] else "",
        )
        for item in items
    ]
    headers = ("key", "requests", "tokens", "at once", "waiting", "shrunk")
    return _print(items, headers, rows, "No quotas are set.", as_json=as_json)


def _of(used: int, limit: int | None) -> str:
    return str(used) if limit is None else f"{used} of {limit}"


def change_queue(name: str, action: str) -> int:
    """Pause or resume a queue."""
    item = call(lambda api: api.act(f"/api/queues/{quote(name, safe='')}/{action}"))
    print(f"{item['name']}: {'paused' if item['paused'] else 'running'}")
    return 0


def _queue_row(item: View) -> tuple[Any, ...]:
    age_s = item["oldest_ready_age_s"]
    oldest = "" if age_s is None else f"{age_s:.1f} s"
    state = "paused" if item["paused"] else "" if item["workers"] else "no worker"
    counts = (item["ready"], item["delayed"], item["running"], item["waiting"], item["dead"])
    return item["name"], *counts, oldest, item["finished_per_minute"], item["workers"], state


def _print(items: Any, headers: tuple[str, ...], rows: Any, nothing: str, *, as_json: bool) -> int:
    if as_json:
        print_json(items)
    else:
        print_table(headers, rows, nothing=nothing)
    return 0

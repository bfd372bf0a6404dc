"""How commands print: tables and values for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from app.dev_views import clean


def print_json(value: Any) -> None:
    """As JSON, which a program reads in any locale."""
    is_utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(value, indent=2, ensure_ascii=not is_utf8))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[Any]], *, nothing: str) -> None:
    """Rows under headers; `nothing` says what there is none of. In colour on a terminal, plain columns elsewhere."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not cells:
        print(nothing)
    elif sys.stdout.isatty():
        _print_rich(headers, cells)
    else:
        _print_plain([list(headers), *cells])


def print_pairs(pairs: Mapping[str, Any]) -> None:
    """Names and values, one a line; those without a value are left out."""
    shown = {name: _cell(value) for name, value in pairs.items() if value not in (None, "", [])}
    width = max(map(len, shown), default=0)
    for name, value in shown.items():
        print(f"{name:<{width}}  {value}")


def when(moment: str | None) -> str:
    """A time of the API, to the second."""
    return "" if moment is None else f"{datetime.fromisoformat(moment):%Y-%m-%d %H:%M:%S}Z"


def waiting_words(waiting_for: Mapping[str, Any]) -> str:
    """What a task waits for, as the API says it, in words."""
    kind, until = waiting_for["kind"], f"until {when(waiting_for['until'])}"
    match kind:
        case "tasks":
            count = waiting_for["count"]
            return f"{count} task{'' if count == 1 else 's'} {until}"
        case "event":
            return f"event {waiting_for['name']} {until}"
        case "approval":
            return f"approval {waiting_for['approval_id']} {until}"
    return until


def size(count_bytes: int) -> str:
    """Bytes for people."""
    return f"{count_bytes / 1024 / 1024:.0f} MiB"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:g}"
    return clean(value if isinstance(value, str) else ", ".join(map(str, value)) if _is_list(value) else str(value))


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _print_plain(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_rich(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold cyan")
    for number, header in enumerate(headers):
        # The first one is copied into the next command.
        table.add_column(header, overflow="fold", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)

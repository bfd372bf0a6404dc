"""`python -m tests.bench [--json] [--only NAME]... [--quick] [--no-peers]`: the benchmarks.

The table goes to standard output, and what is being measured to standard error. Ctrl-C ends everything it started.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import replace

from rich.console import Console

from tests.bench.figures import NAMES, measure
from tests.bench.plan import FULL, QUICK, Plan
from tests.bench.report import as_json, machine, print_table
from tests.bench.watch import Watch

FILES = 8_192
"""Open files that a thousand sockets and a thousand model calls need, in this process and in those it starts."""
TABLE_WIDTH = 200


async def _measure(plan: Plan, options: argparse.Namespace) -> None:
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    watch, described = Watch(plan.limit_s), machine()
    rows = await measure(plan, options.only or NAMES, watch)
    took_s = watch.took_s
    if options.json:
        print(json.dumps(as_json(rows, plan, described, took_s), indent=2))
    else:
        console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
        print_table(rows, plan, described, took_s, console)


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> int:
    """Measure and print; the exit code says whether that was possible, not whether the aims are reached."""
    parser = argparse.ArgumentParser(prog="bench", description="Nightshift side by side with its peers.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--only", action="append", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, one run, under 90 s")
    parser.add_argument("--no-peers", action="store_true", help="measure Nightshift alone")
    options = parser.parse_args()
    _raise_file_limit()
    plan = replace(QUICK if options.quick else FULL, peers=not options.no_peers)
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(_measure(plan, options))
        return 0
    return 130


if __name__ == "__main__":
    sys.exit(main())

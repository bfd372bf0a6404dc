"""The benchmark itself: its result has the shape that readers of `--json` rely on. How fast anything is, is no test."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bench.processes import ROOT
from tests.bench.rows import Aim, Row, compared

PATIENCE_S = 60.0
ROW_FIELDS = {"key", "figure", "unit", "nightshift", "peers", "ratio", "aim", "reached", "note", "runs"}


@asynccontextmanager
async def bench(*arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench", "--quick", "--no-peers", *arguments, cwd=ROOT, stdout=PIPE, stderr=PIPE
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def result_of(*arguments: str) -> dict[str, Any]:
    async with bench("--json", *arguments) as process:
        out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return dict(json.loads(out))


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_json_describes_machine_plan_and_rows_of_the_chosen_figures() -> None:
    result = await result_of("--only", "drain", "--only", "pickup")

    assert set(result) == {"measured_at", "took_s", "machine", "plan", "conditions", "peers", "rows"}
    assert {"cores", "python", "os", "server"} <= set(result["machine"])
    assert result["plan"]["quick"] is True
    assert set(result["peers"]) == {"arq", "arq, 10 ms poll", "saq", "taskiq", "streaq"}
    rows = {row["key"]: row for row in result["rows"]}
    assert {"drain", "worker_us", "server_us", "pickup_p50", "pickup_p99"} <= set(rows)
    assert not any(key.startswith("enqueue") for key in rows)
    for row in rows.values():
        assert set(row) == ROW_FIELDS
        assert row["nightshift"] > 0
        assert row["runs"]["nightshift"] == [row["nightshift"]]
    # Without peers, an aim against them is neither reached nor missed.
    assert rows["pickup_p50"]["aim"] == "below the fastest peer"
    assert rows["pickup_p50"]["ratio"] is None
    assert rows["pickup_p50"]["reached"] is None


async def test_calls_and_groups_are_measured() -> None:
    result = await result_of("--only", "call", "--only", "gather")
    rows = {row["key"]: row["nightshift"] for row in result["rows"]}
    assert set(rows) == {"call_p50", "call_p99", "gather_s"}
    assert 0 < rows["call_p50"] <= rows["call_p99"]
    assert rows["gather_s"] > 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
async def test_an_interrupted_benchmark_leaves_no_process() -> None:
    async with bench("--only", "drain") as process:
        while len(children_of(process.pid)) < 2:  # the server and a client
            await asyncio.sleep(0.01)
        children = children_of(process.pid)
        process.send_signal(signal.SIGINT)
        out, _ = await process.communicate()

    assert process.returncode == 130
    assert out == b""
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("aim", "ours", "ratio", "reached"),
    [
        (Aim("", "ratio", "least", 5.0), 1.0, 5.0, True),
        (Aim("", "ratio", "least", 5.0), 9.0, 4.9, False),
        (Aim("", "ours", "most", 3.0), 3.1, None, False),
        (Aim("", "ours", "most", 3.0), 2.9, None, True),
        (Aim("", "ours", "most", 3.0), None, None, None),
        (Aim("", "ratio", "most", 1.0), 1.0, None, None),
    ],
)
def test_an_aim_is_reached_by_the_value_it_names(
    aim: Aim, ours: float | None, ratio: float | None, reached: bool | None
) -> None:
    assert Row("key", "figure", "ms", ours, ratio=ratio, aim=aim).reached is reached


def test_the_ratio_is_to_the_fastest_peer_that_was_measured() -> None:
    runs = {"ours": [40.0, 60.0, 50.0], "slow": [5.0, 5.0, 6.0], "fast": [10.0, 9.0, 20.0], "absent": []}

    rate = compared("key", "figure", "tasks/s", runs, ours="ours", better="higher")
    time = compared("key", "figure", "ms", runs, ours="ours", better="lower")

    assert (rate.ours, rate.ratio, time.ratio) == (50.0, 5.0, 10.0)
    assert rate.peers == {"slow": 5.0, "fast": 10.0, "absent": None}

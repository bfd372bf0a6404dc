"""All figures by name, and how they are run one after another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from tests.bench import api, contest, fairness, models, quotas, scaling, sockets, waits, workers
from tests.bench.plan import Plan
from tests.bench.rows import Row
from tests.bench.server import FAILURES
from tests.bench.watch import Watch

Figure = Callable[[Plan, Watch], Awaitable[list[Row]]]

RESERVE_S = 400.0
"""What the figures of our own take when the machine is quiet."""

CONTEST = ("drain", "pickup", "enqueue")
OWN: dict[str, Figure] = {
    "post": api.post_tasks,
    "emit": sockets.emit_to_socket,
    "models": models.model_calls,
    "kill": workers.killed_worker,
    "idle": workers.idle_worker,
    "workers": scaling.worker_growth,
    "fairness": fairness.first_tasks,
    "quotas": quotas.quota_accuracy,
    "steps": waits.step_overhead,
    "call": waits.call_and_return,
    "gather": waits.fan_out,
    "waiting": waits.many_waiting,
    "backlog": scaling.backlog_growth,
}
NAMES = (*CONTEST, *OWN)


async def measure(plan: Plan, names: Sequence[str], watch: Watch) -> list[Row]:
    """The rows of the named figures. One that cannot be measured is a row that says why."""
    rows: list[Row] = []
    reserve_s = RESERVE_S if any(name in names for name in OWN) else 0.0
    if parts := [name for name in CONTEST if name in names]:
        rows += await contest.contest(plan, parts, watch, reserve_s=reserve_s)
    for name, figure in OWN.items():
        if name in names:
            rows += await _tried(name, figure, plan, watch)
    return rows


async def _tried(name: str, figure: Figure, plan: Plan, watch: Watch) -> list[Row]:
    if watch.left_s < 0:
        return [Row(name, name, "", None, note="not measured: the time was up")]
    try:
        return await figure(plan, watch)
    except FAILURES as error:
        return [Row(name, name, "", None, note=f"not measured: {type(error).__name__}: {error}")]

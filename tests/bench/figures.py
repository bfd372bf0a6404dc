"""All figures by name, and how they are run one after another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from tests.bench import api, contest, models, scaling, sockets, workers
from tests.bench.plan import Plan
from tests.bench.rows import Row
from tests.bench.server import FAILURES

Say = Callable[[str], None]
Figure = Callable[[Plan, Say], Awaitable[list[Row]]]

CONTEST = ("drain", "pickup", "enqueue")
OWN: dict[str, Figure] = {
    "post": api.post_tasks,
    "emit": sockets.emit_to_socket,
    "models": models.model_calls,
    "kill": workers.killed_worker,
    "idle": workers.idle_worker,
    "backlog": scaling.backlog_growth,
    "workers": scaling.worker_growth,
}
NAMES = (*CONTEST, *OWN)


async def measure(plan: Plan, names: Sequence[str], say: Say) -> list[Row]:
    """The rows of the named figures. One that cannot be measured is a row that says why."""
    rows: list[Row] = []
    if parts := [name for name in CONTEST if name in names]:
        rows += await contest.contest(plan, parts, say)
    for name, figure in OWN.items():
        if name in names:
            rows += await _tried(name, figure, plan, say)
    return rows


async def _tried(name: str, figure: Figure, plan: Plan, say: Say) -> list[Row]:
    try:
        return await figure(plan, say)
    except FAILURES as error:
        return [Row(name, name, "", None, note=f"not measured: {type(error).__name__}: {error}")]

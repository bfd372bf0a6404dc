"""Flows whose workers are killed for real: nothing is started twice, and the result is that of an undisturbed run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from app.domains.flows.models import FlowRun, Node
from app.domains.flows.service import FLOW
from app.engine.job import Status
from app.engine.service import Engine
from app.engine.submissions import Submission
from app.engine.trees import Branch
from tests.acceptance.effects_flows import FLOW_TASKS
from tests.acceptance.processes import worker
from tests.acceptance.test_workers import trace
from tests.support import PATIENCE_S, engine_on, finished

pytestmark = pytest.mark.acceptance

LEASE_S = 1.0
MODULE = "tests.acceptance.effects_flows"


def leaf(name: Any) -> dict[str, Any]:
    return {"task": "effect.once", "params": {"name": name, "seconds": 0.05}}


FORM = {
    "sequence": [
        {"name": "a", **leaf("a")},
        {
            "name": "m",
            "map": ["m0", "m1", "m2"],
            "as": "n",
            "each": {"sequence": [leaf({"$from": "n"}), leaf({"$join": [{"$from": "n"}, "+"]})]},
        },
        {"name": "p", "parallel": {"x": leaf("x"), "y": {"sequence": [leaf("y"), leaf("z")]}}},
    ]
}
LEAVES = ("a", "m0", "m1", "m2", "m0+", "m1+", "m2+", "x", "y", "z")


def shape(branch: Branch) -> list[Any]:
    return [branch.record.label, *(shape(child) for child in branch.children)]


SHAPE = [
    *("", ["a"]),
    ["m", ["0", ["1"], ["2"]], ["1", ["1"], ["2"]], ["2", ["1"], ["2"]]],
    ["p", ["x"], ["y", ["1"], ["2"]]],
]


async def begun(engine: Engine) -> int:
    """How many leaves have begun at least once."""
    return sum([bool(await trace(engine, name)) for name in LEAVES])


async def test_a_flow_survives_the_death_of_every_worker_that_runs_it(redis_url: str, tmp_path: Path) -> None:
    async with engine_on(redis_url, FLOW_TASKS) as engine:
        params = FlowRun(node=Node.model_validate(FORM))
        task_id = (await engine.tasks.enqueue(Submission(FLOW, params), user_id="ada")).task_id
        for number, wanted in enumerate((1, 3, 6, 9)):
            async with (
                worker(f"worker{number}", tmp_path, redis_url, module=MODULE, lease_s=LEASE_S) as victim,
                asyncio.timeout(PATIENCE_S),
            ):
                while await begun(engine) < wanted:
                    await asyncio.sleep(0.005)
                await victim.kill()
        async with worker("last", tmp_path, redis_url, module=MODULE, lease_s=LEASE_S):
            record = await finished(engine, task_id)
        tree = await engine.trees.read(task_id, user_id="ada")
        ends = {name: sum(line.startswith("end") for line in await trace(engine, name)) for name in LEAVES}
    assert record.status is Status.SUCCESS
    assert record.result.keys() == {"x", "y"}
    assert shape(tree.root) == SHAPE
    assert set(statuses(tree.root)) == {Status.SUCCESS}
    # More than one where a worker died between the end of a leaf and the storing of it.
    assert min(ends.values()) >= 1


def statuses(branch: Branch) -> list[Status]:
    return [branch.record.status, *(status for child in branch.children for status in statuses(child))]

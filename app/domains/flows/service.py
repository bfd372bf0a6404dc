"""Running a flow: its nodes as children of a task, which waits for them durably.

A task runs one node. A `task` in it is a child; a node of another kind in it is a child too, a task `flows.run` of its
own, which is given that part of the form and the values of its references to the rest. So a task waits at one place at
a time, the tree of tasks is that of the form, whatever cancels a task cancels what is below it, and a crash, a retry or
another worker changes nothing: the outputs so far are stored results of waits (`app/engine/waits.py`).

Invariants: the form that runs is the one that was posted; values are never looked into for references, so what a task
returns cannot change a flow.

At each failure:

- a task fails for good or is cancelled: its parent's error policy decides, then that of the node above;
- a reference leads nowhere, or to no list where a list is needed: the node fails, and says what it found;
- the results of one node exceed 8 MiB together, or parameters made of references 1 MiB: the node fails (`TooLarge`);
- the queue is full: the task of the node is retried by its policy, and finds what it has started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from app.domains.flows.checks import check, fault_of
from app.domains.flows.models import FlowRun, Node
from app.domains.flows.references import fill, follow, name_of
from app.engine.context import TaskContext
from app.engine.waits import Call, OnError
from app.errors import ChildFailed, InvalidInput, TooLarge

FLOW = "flows.run"
MAX_START_BYTES = 64 * 1024 * 1024
"""Parameters of all tasks that one node starts."""


async def run_flow(ctx: TaskContext, flow: FlowRun) -> Any:
    """Run a flow to its end; its output. Raises `InvalidInput`, `ChildFailed`, `TooLarge`, and what a wait raises."""
    check(flow.node, "/node", inputs=flow.inputs)
    run, node = _Run(ctx, flow), flow.node
    if node.sequence is not None:
        return await run.sequence(node.sequence)
    if node.parallel is not None:
        return await run.parallel(node, node.parallel)
    if node.each is not None:
        return await run.map(node, node.each)
    return await run.sequence([node])


class _Run:
    """One node that runs. `outputs` are those that the nodes in it may refer to by name."""

    def __init__(self, ctx: TaskContext, flow: FlowRun) -> None:
        self._ctx = ctx
        self._inputs = flow.inputs
        self._priority = flow.priority
        self._refs: dict[int, list[str]] = {}

    async def sequence(self, nodes: Sequence[Node]) -> Any:
        """One node after the other; the output of the last."""
        outputs: dict[str, Any] = {}
        value = None
        for index, node in enumerate(nodes):
            label = node.name or str(index + 1)
            await self._tell(index, len(nodes), label)
            (value,) = await self._ctx.gather([self._call(node, label, outputs)])
            if node.name is not None:
                outputs[node.name] = value
        return value

    async def parallel(self, node: Node, parts: dict[str, Node]) -> dict[str, Any]:
        """Nodes side by side; their outputs by name."""
        calls = [self._call(part, name, {}) for name, part in parts.items()]
        return dict(zip(parts, await self._gather(node, calls), strict=True))

    async def map(self, node: Node, each: Node) -> list[Any]:
        """A node for each item of a list; their outputs in its order."""
        items = fill(node.map, lambda ref: self._look_up(ref, {}))
        if fault := fault_of(items):
            raise InvalidInput(f"map over {node.map}: {fault}")
        calls, size = [], 0
        for index, item in enumerate(items):
            if index % 500 == 0:
                await asyncio.sleep(0)  # ten thousand of them would hold up the loop
            calls.append(self._call(each, str(index), {node.item: item}))
            size += len(to_json(calls[-1].params))
            if size > MAX_START_BYTES:
                raise TooLarge(f"map: the parameters of {len(items)} tasks exceed the bound of {MAX_START_BYTES} bytes")
        return await self._gather(node, calls)

    async def _gather(self, node: Node, calls: Sequence[Call]) -> list[Any]:
        on_error = node.on_error or OnError.FAIL_FAST
        found = await self._ctx.gather(calls, on_error=on_error, limit=node.limit)
        return [{"error": _error(item)} if isinstance(item, ChildFailed) else item for item in found]

    def _call(self, node: Node, label: str, outputs: dict[str, Any]) -> Call:
        """The child that runs a node."""
        if node.task is None:
            inputs = {ref: self._look_up(ref, outputs) for ref in self._refs_of(node)}
            part = FlowRun(node=node, inputs=inputs, priority=self._priority)
            return Call(FLOW, part, priority=self._priority, label=label)
        params = fill(node.params or {}, lambda ref: self._look_up(ref, outputs))
        if not isinstance(params, dict):
            raise InvalidInput(f"{label}: expected an object as params of {node.task}, got {type(params).__name__}")
        return Call(node.task, params, priority=self._priority, label=label)

    def _refs_of(self, node: Node) -> list[str]:
        if id(node) not in self._refs:
            self._refs[id(node)] = sorted(node.refs())
        return self._refs[id(node)]

    def _look_up(self, ref: str, outputs: dict[str, Any]) -> Any:
        name = name_of(ref)
        return follow(ref, outputs[name]) if name in outputs else self._inputs[ref]

    async def _tell(self, done: int, total: int, label: str) -> None:
        """Report progress, unless it was before the task came to its last wait."""
        if round(100 * done / total, 1) > self._ctx.info.percent:
            await self._ctx.progress(done, total, label)


def _error(failure: ChildFailed) -> dict[str, Any]:
    return {**failure.error, "task_id": failure.task_id, "task": failure.task, "status": failure.status}

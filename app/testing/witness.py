"""A context that also notes what its task asks of it, entry by entry, so that entries can be compared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from pydantic import BaseModel
from pydantic_core import to_json

from app.engine.approvals import STEP, ApprovalRequest, Decision
from app.engine.context import TaskContext
from app.engine.registry import Task
from app.engine.waits import Call, End

P = TypeVar("P", bound=BaseModel)
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the row of steps as the task came to it. `detail` is what else has to be the same: parameters of
    children and ids, as JSON."""

    name: str
    detail: bytes = b""


@dataclass(slots=True, eq=False)
class Trail:
    """What a task did in one entry."""

    task_id: str
    marks: dict[int, Mark] = field(default_factory=dict)
    sent: list[tuple[int, str]] = field(default_factory=list)
    """Events sent outside of steps: how many places of the row were taken, and their type."""
    inside: dict[int, list[tuple[str, str]]] = field(default_factory=dict)
    """Tasks started inside a step, by its number: name and id."""
    value: bytes | None = None
    """The JSON of what it returned."""
    error: str | None = None
    """What it raised."""
    ended: bool = False
    """Whether that was the end of the task."""


class Witness(TaskContext):
    """See the module."""

    trail: Trail

    async def step(self, name: str, call: Callable[[], Awaitable[Any]], **options: Any) -> Any:
        """Noted with its name."""
        self._mark(name)
        return await super().step(name, call, **options)

    async def start(self, task: Any, params: Any, **options: Any) -> str:
        """Noted with its parameters, or, inside a step, with the id."""
        made = Call(task, params, key=options.get("key"))
        if self._steps.inside is None:
            self._mark(f"start {made.name}", _detail([made]))
            return await super().start(task, params, **options)
        task_id = await super().start(task, params, **options)
        self.trail.inside.setdefault(self._steps.taken - 1, []).append((made.name, task_id))
        return task_id

    async def call(self, task: Any, params: Any, **options: Any) -> Any:
        """Noted with its parameters and its key."""
        made = Call(task, params, key=options.get("key"))
        self._mark(f"call {made.name}", _detail([made]))
        return await super().call(task, params, **options)

    async def gather(self, calls: Sequence[Call], **options: Any) -> list[Any]:
        """Noted with the parameters of all."""
        self._mark(f"gather {len(calls)} tasks", _detail(calls))
        return await super().gather(calls, **options)

    async def start_many(self, calls: Sequence[Call], *, then: Call | None = None) -> list[str]:
        """Noted with the parameters of all."""
        self._mark(f"start {len(calls)} tasks", _detail([*calls, *([then] if then else [])]))
        return await super().start_many(calls, then=then)

    async def predecessors(self) -> list[End]:
        """Noted."""
        self._mark("predecessors")
        return await super().predecessors()

    async def approval(self, request: ApprovalRequest, *args: Any, **options: Any) -> Decision:
        """Noted with what is asked."""
        self._mark(STEP, to_json(request, fallback=repr))
        return await super().approval(request, *args, **options)

    async def join(self, task_ids: Sequence[str], **options: Any) -> Any:
        """Noted with the ids."""
        self._mark("join", to_json(list(task_ids)))
        return await super().join(task_ids, **options)

    async def sleep(self, duration: Any) -> None:
        """Noted; its length does not matter, since the deadline is that of the first time."""
        self._mark("sleep")
        await super().sleep(duration)

    async def wait_event(self, name: str, **options: Any) -> Any:
        """Noted with its name."""
        self._mark(f"event {name}")
        return await super().wait_event(name, **options)

    async def emit(self, kind: str, payload: dict[str, Any], **options: Any) -> None:
        """Noted outside of steps."""
        if self._steps.inside is None:
            self.trail.sent.append((self._steps.taken, kind))
        await super().emit(kind, payload, **options)

    def _mark(self, name: str, detail: bytes = b"") -> None:
        if self._steps.inside is None:
            self.trail.marks[self._steps.taken] = Mark(name, detail)


def watched(task: Task[P, R], trails: list[Trail]) -> Task[P, R]:
    """The same task, which adds a trail for each entry of the first one that runs, not of those that it starts."""

    async def function(ctx: TaskContext, params: P) -> R:
        trail = Trail(ctx.task_id)
        if not trails or trails[0].task_id == ctx.task_id:
            trails.append(trail)
        ctx.__class__ = Witness
        witness = cast(Witness, ctx)
        witness.trail = trail
        try:
            value = await task.function(witness, params)
        except Exception as error:
            trail.error = f"{type(error).__name__}: {error}"
            raise
        trail.value = to_json(value, by_alias=True, fallback=repr)
        return value

    return Task(task.spec, function)


def _detail(calls: Sequence[Call]) -> bytes:
    """Tasks, parameters and keys. What JSON cannot hold is refused by the engine, and shown here as it is."""
    told = [[call.name, call.params, *([call.key] if call.key else [])] for call in calls]
    return to_json(told, by_alias=True, fallback=repr)

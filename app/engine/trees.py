"""Trees of tasks: a task, what it has started, what those have started, as it all stands now.

Children are shown in the order in which they were started. What is forgotten (a finished task is, in its time) is not
there any more; of a large tree the levels near its root are shown first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from app.engine.job import TaskRecord, record_of
from app.engine.queue import TaskQueue
from app.errors import InvalidInput
from app.store.scripts import Scripts

MAX_DEPTH = 20
MAX_NODES = 1_000


@dataclass(slots=True)
class Branch:
    """A task with its children. `hidden` is how many more it has, which the bounds left out."""

    record: TaskRecord
    hidden: int
    children: list[Branch] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Tree:
    """A task with its descendants: `count` of them are shown, itself included; `truncated`: there are more."""

    root: Branch
    count: int
    truncated: bool


class Trees:
    """Read trees. `user_id=None` stands for an administrator."""

    def __init__(self, scripts: Scripts, tasks: TaskQueue) -> None:
        self._scripts = scripts
        self._tasks = tasks

    async def read(self, task_id: str, *, user_id: str | None, depth: int = 10, limit: int = 200) -> Tree:
        """A task and its descendants, `depth` levels of them and `limit` tasks in all.

        Raises `NotFound`, and `InvalidInput` for a depth over 20 or a limit over 1,000.
        """
        for name, value, least, most in (("depth", depth, 0, MAX_DEPTH), ("limit", limit, 1, MAX_NODES)):
            if not least <= value <= most:
                raise InvalidInput(f"{name}={value}: expected {least} to {most}", pointer=name)
        record = await self._tasks.get(task_id, user_id=user_id)
        rows = await self._scripts.read_tree(task_id, depth, limit)
        # A task of a stock client has no record before a worker has seen it, and no children.
        branches = [Branch(record_of(made, fields), hidden) for made, _, hidden, fields in rows] or [Branch(record, 0)]
        for branch, (_, parent, _, _) in zip(branches[1:], rows[1:], strict=True):
            branches[parent].children.append(branch)
        return Tree(branches[0], len(branches), any(branch.hidden for branch in branches))

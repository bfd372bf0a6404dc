"""What should become of tasks that wait: a model without Redis, which `test_wait_invariant` holds against the
scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

FINAL = ("SUCCESS", "FAILURE", "CANCELLED")
MAX_EVENTS = 2
"""That an inbox of the model keeps."""


@dataclass
class Expected:
    """A task as it should be."""

    user: str
    queue: str
    parent: str | None = None
    status: str = "PENDING"
    is_due: bool = True
    """Whether the next claim takes it; of a task that runs: whether its lease has run out."""
    attempt: int = 0
    token: int | None = None
    """Of the attempt that may write; None while nobody may."""
    is_cancelled: bool = False
    has_begun: bool = False
    resumes: bool = False
    """Whether its next claim goes on with the attempt that has waited."""
    pending: set[str] = field(default_factory=set)
    awaited: set[str] = field(default_factory=set)
    """Everything that the present wait is for, what has come about by now included."""
    fail_fast: bool = False
    begins_ms: int = 0
    """When it begins at the latest, of one that is to begin when others have ended (Unix ms)."""
    deadlines: dict[int, int] = field(default_factory=dict)
    """Of waits that have begun and are not over, by number (Unix ms)."""
    steps: list[bytes] = field(default_factory=list)
    inbox: dict[str, list[bytes]] = field(default_factory=dict)
    delivered: int = 0
    waited: int = 0
    children: list[str] = field(default_factory=list)
    has_letter: bool = False

    @property
    def is_finished(self) -> bool:
        """Whether it has come to its end."""
        return self.status in FINAL

    @property
    def deadline_ms(self) -> int:
        """Of the present wait."""
        return self.deadlines[len(self.steps)] if self.has_begun else self.begins_ms

    def stop_waiting(self) -> None:
        """It waits for nothing any more."""
        self.pending, self.awaited = set(), set()


class Model:
    """All tasks by id. What a sweep has forgotten is not there any more."""

    def __init__(self) -> None:
        self.tasks: dict[str, Expected] = {}
        self.seen: set[tuple[str, str]] = set()
        """Tasks and keys of deliveries."""
        self.letters: dict[str, Expected] = {}

    def is_refused(self, parent: str | None) -> bool:
        """Whether a task may not have children any more."""
        if parent is None:
            return False
        task = self.tasks[parent]
        return task.is_cancelled or task.status == "CANCELLED"

    def put(self, name: str, task: Expected) -> None:
        """A task was accepted."""
        self.tasks[name] = task
        if task.parent is not None:
            self.tasks[task.parent].children.append(name)

    def wait_to_begin(self, name: str, after: Sequence[str]) -> None:
        """An accepted task is to begin when others have ended."""
        task = self.tasks[name]
        subjects = [f"task:{other}" for other in after]
        if pending := self._still_to_come(task, subjects, False):
            task.status, task.pending, task.awaited = "WAITING", pending, set(subjects)
            task.is_due = False
            task.waited += 1

    def may_follow(self, user: str, after: Sequence[str]) -> bool:
        """Whether a user's task may begin after others."""
        return all(name in self.tasks and self.tasks[name].user == user for name in after)

    def due(self, queue: str) -> set[str]:
        """What a claim of everything in a queue takes."""
        return {name for name, task in self.tasks.items() if task.queue == queue and task.is_due}

    def claim(self, name: str, token: int) -> int:
        """A task was claimed; the number of the attempt."""
        task = self.tasks[name]
        resumes = task.resumes or (task.status == "WAITING" and task.has_begun)
        task.stop_waiting()
        task.has_begun = True
        task.attempt += not resumes
        task.status, task.token, task.is_due, task.resumes = "STARTED", token, False, False
        return task.attempt

    def may_write(self, name: str, token: int) -> bool:
        """Whether an attempt owns its task."""
        task = self.tasks.get(name)
        return task is not None and task.status == "STARTED" and task.token == token

    def begin_wait(self, name: str, timeout_ms: int, now_ms: int) -> int:
        """Come to the next wait, perhaps once more; its deadline."""
        task = self.tasks[name]
        return task.deadlines.setdefault(len(task.steps), now_ms + timeout_ms)

    def suspend(self, name: str, subjects: Sequence[str], fail_fast: bool, now_ms: int) -> None:
        """An attempt ended in the wait that `begin_wait` began."""
        task = self.tasks[name]
        pending = self._still_to_come(task, subjects, fail_fast)
        task.token = None
        if task.is_cancelled or task.deadline_ms <= now_ms or (subjects and not pending):
            self._resume(task)
        else:
            task.status, task.pending, task.awaited = "WAITING", pending, set(subjects)
            task.fail_fast, task.is_due, task.resumes = fail_fast, False, True
            task.waited += 1

    def _still_to_come(self, task: Expected, subjects: Sequence[str], fail_fast: bool) -> set[str]:
        pending = set()
        for subject in subjects:
            kind, _, name = subject.partition(":")
            other = self.tasks.get(name)
            is_over = bool(task.inbox.get(name)) if kind == "event" else other is None or other.is_finished
            has_failed = kind == "task" and (other is None or other.status != "SUCCESS")
            if not is_over:
                pending.add(subject)
            elif has_failed and fail_fast:
                return set()
        return pending

    def _resume(self, task: Expected) -> None:
        task.stop_waiting()
        task.status, task.is_due, task.resumes = "PENDING", True, task.has_begun

    def end(self, name: str, status: str) -> None:
        """A task came to its end, which may be what others wait for."""
        task = self.tasks[name]
        task.stop_waiting()
        task.status, task.token, task.is_due = status, None, False
        if status == "FAILURE":
            task.has_letter = True
            self.letters[name] = task
        for other in self.tasks.values():
            if f"task:{name}" in other.pending:
                other.pending.discard(f"task:{name}")
                if not other.pending or (status != "SUCCESS" and other.fail_fast):
                    self._resume(other)

    def put_back(self, name: str, counts: bool, delay_ms: int) -> None:
        """An attempt ended that is followed by another."""
        task = self.tasks[name]
        task.status, task.token = ("RETRY" if counts else "PENDING"), None
        task.attempt -= not counts
        task.is_due = task.is_cancelled or delay_ms == 0

    def cancel(self, name: str) -> None:
        """The owner cancels a task with all that it has started."""
        task = self.tasks[name]
        if task.status == "STARTED":
            task.is_cancelled = True
        elif not task.is_finished:
            self.end(name, "CANCELLED")
        for child in task.children:
            if child in self.tasks:
                self.cancel(child)

    def deliver(self, name: str, user: str, event: str, payload: bytes, key: str) -> bytes:
        """An event from outside; what the script should say."""
        task = self.tasks.get(name)
        if task is None or user not in ("", task.user):
            return b"missing"
        if key and (name, key) in self.seen:
            return b"again"
        if task.is_finished:
            return b"finished"
        if sum(map(len, task.inbox.values())) >= MAX_EVENTS:
            return b"full"
        if key:
            self.seen.add((name, key))
        task.inbox.setdefault(event, []).append(payload)
        task.delivered += 1
        if f"event:{event}" in task.pending:
            self._resume(task)
        return b"ok"

    def take(self, name: str, event: str) -> bytes | None:
        """The oldest event of a name becomes the result of the next step; None where there is none."""
        task = self.tasks[name]
        if not task.inbox.get(event):
            return None
        result = b'{"value":' + task.inbox[event].pop(0) + b"}"
        self.store(name, result)
        return result

    def store(self, name: str, result: bytes) -> None:
        """A step was completed, or a wait is over."""
        task = self.tasks[name]
        task.deadlines.pop(len(task.steps), None)
        task.steps.append(result)

    def forget(self, name: str) -> None:
        """A finished task was swept away."""
        del self.tasks[name]

    def count(self, queue: str, fits: Callable[[Expected], bool]) -> int:
        """How many tasks of a queue are of a kind."""
        return sum(task.queue == queue and fits(task) for task in self.tasks.values())

"""Is a task replay-safe: does it do the same when it is entered again from its top?

A task is entered again after every wait, after a retry, and after the death of its worker. What it did before is known
by the numbers of its steps, so its code between steps must come to the same steps again, with the same parameters for
its children, and must have no effects. Three runs look at that:

- *uninterrupted*, but for a death of the worker before the end is stored: what the code did alive is compared with what
  it does when all of its steps are answered from the store;
- with a death *after* each step is stored;
- with a death *before* each step is stored: its effect happens twice, which no engine can rule out, but the children
  that it starts have to be the same.

What a run cannot show: effects that do not pass through `ctx` (count them in your fakes, with `run_interrupted`), the
order of a set of strings, which is the same within one process, and what changes by the day.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar, Unpack

from pydantic import BaseModel

from app.engine.registry import Task
from app.testing.errors import NotReplaySafe
from app.testing.harness import Options, TaskHarness
from app.testing.ledger import END, Moment
from app.testing.run import Run
from app.testing.witness import Trail, watched

P = TypeVar("P", bound=BaseModel)
R = TypeVar("R")

RULE = (
    "Between steps a task may do only what depends on its parameters and on results of steps. Put what is random, what "
    "reads the clock or the world, and every effect into a ctx.step."
)


class Manner(StrEnum):
    """How a run is interrupted."""

    NOT = "when all of its steps are answered from the store"
    AFTER = "when its worker dies after each step"
    BEFORE = "when its worker dies before each step is stored"


@dataclass(slots=True)
class _Deaths:
    """Ends the worker of the task under test once at each place."""

    manner: Manner
    trails: list[Trail]
    task_id: str = ""
    seen: set[int] = field(default_factory=set)

    def __call__(self, when: Moment, task_id: str, number: int) -> bool:
        # The task under test is the first that is entered.
        self.task_id = self.task_id or task_id
        if task_id != self.task_id:
            return False
        if number == END and self.trails:
            self.trails[-1].ended = True
        wanted = Moment.BEFORE if number == END or self.manner is Manner.BEFORE else Moment.AFTER
        if when is not wanted or number in self.seen or (number != END and self.manner is Manner.NOT):
            return False
        self.seen.add(number)
        return True


async def run_interrupted(task: Task[P, R], params: P | dict[str, Any], **options: Unpack[Options]) -> Run[R]:
    """As `run_task`, but the worker dies after each step is stored, and before the end is; each time the task is
    entered again from its top. An effect inside a step happens once; count it in your fakes."""
    run, _ = await _run(Manner.AFTER, task, params, options)
    return run


async def check_replay_safe(
    task: Task[P, R], params: P | dict[str, Any], *, may_repeat: Collection[str] = (), **options: Unpack[Options]
) -> Run[R]:
    """Enter a task again at every place where its worker could die, and compare. Returns the uninterrupted run.

    Raises `NotReplaySafe`, which lists what differs: steps that come in another order, children with other parameters
    or that are started twice, events that are sent again (but for types in `may_repeat`), other results. Fakes are
    asked anew in each of the three runs, so what they answer should follow from what they are given.
    """
    found: dict[str, Manner] = {}
    first: Run[R] | None = None
    told: Run[R] | None = None
    for manner in Manner:
        run, trails = await _run(manner, task, params, options)
        first = first or run
        differences = list(_differences(trails, may_repeat)) or list(_other_end(first, run))
        if differences and told is None:
            told = run
        found = dict.fromkeys(differences, manner) | found
    assert first is not None
    if told is not None:
        listed = "\n".join(f"- {manner}: {text}" for text, manner in found.items())
        raise NotReplaySafe(f"{task.name} is not replay-safe:\n{listed}\n{RULE}\nThe first such run:\n{told}")
    return first


async def _run(
    manner: Manner, task: Task[P, R], params: P | dict[str, Any], options: Options
) -> tuple[Run[R], list[Trail]]:
    trails: list[Trail] = []
    async with TaskHarness(watched(task, trails), params, dies=_Deaths(manner, trails), **options) as harness:
        return await harness.finish(), trails


def _differences(trails: Sequence[Trail], may_repeat: Collection[str]) -> Iterator[str]:
    order = _other_order(trails)
    if order:
        yield order
    yield from _other_parameters(trails)
    yield from _started_twice(trails)
    yield from _sent_again(trails, may_repeat)
    ends = [trail for trail in trails if trail.ended]
    if not order and len(ends) > 1:
        yield from _other_steps(ends)
        yield from _other_results(ends)


def _other_order(trails: Sequence[Trail]) -> str | None:
    """The first step that has another name; what follows it is a consequence."""
    for number in sorted({number for trail in trails for number in trail.marks}):
        names = list(dict.fromkeys(trail.marks[number].name for trail in trails if number in trail.marks))
        if len(names) > 1:
            return f"step {number + 1} was {names[0]!r} and is {names[1]!r}"
    return None


def _other_parameters(trails: Sequence[Trail]) -> Iterator[str]:
    first: dict[int, tuple[str, bytes]] = {}
    told: set[int] = set()
    for trail in trails:
        for number, mark in trail.marks.items():
            name, detail = first.setdefault(number, (mark.name, mark.detail))
            if name == mark.name and detail != mark.detail and number not in told:
                told.add(number)
                yield (
                    f"step {number + 1} {name!r} was given {_cut(detail)} and is given {_cut(mark.detail)} "
                    "(the engine goes by the first)"
                )


def _started_twice(trails: Sequence[Trail]) -> Iterator[str]:
    first: dict[int, list[tuple[str, str]]] = {}
    for trail in trails:
        for number, started in trail.inside.items():
            before = first.setdefault(number, started)
            for (name, one), (again, other) in zip(before, started, strict=False):
                if name == again and one != other:
                    yield (
                        f"step {number + 1} {trail.marks[number].name!r} starts {name} a second time, as another task: "
                        "give it an idempotency_key, or start it outside of the step"
                    )


def _sent_again(trails: Sequence[Trail], may_repeat: Collection[str]) -> Iterator[str]:
    times = Counter(place for trail in trails for place in set(trail.sent))
    for (taken, kind), count in times.items():
        if count > 1 and kind not in may_repeat:
            where = f"behind step {taken}" if taken else "before the first step"
            yield (
                f"the event {kind!r} {where} is sent again, {count} times in all: send it inside a step, or allow it "
                f"with may_repeat={{{kind!r}}}"
            )


def _other_steps(ends: Sequence[Trail]) -> Iterator[str]:
    first, last = ends[0].marks, ends[-1].marks
    for number in sorted(first.keys() - last.keys()):
        yield f"the task ends without coming to step {number + 1} {first[number].name!r} again"
    for number in sorted(last.keys() - first.keys()):
        yield f"the task comes to a step {number + 1} {last[number].name!r}, behind which it had ended before"


def _other_results(ends: Sequence[Trail]) -> Iterator[str]:
    first, last = ends[0], ends[-1]
    if (first.error, first.value) != (last.error, last.value):
        yield f"the task {_end(first)}, and then {_end(last)}, with the same steps"


def _other_end(first: Run[Any], run: Run[Any]) -> Iterator[str]:
    ends = [(item.status, item.error.type if item.error else None) for item in (first, run)]
    if ends[0] != ends[1]:
        yield f"the task was {first!r} and is {run!r}"


def _end(trail: Trail) -> str:
    return f"raised {trail.error}" if trail.error is not None else f"returned {_cut(trail.value or b'nothing')}"


def _cut(data: bytes, length: int = 300) -> str:
    text = data.decode(errors="replace")
    return text if len(text) <= length else f"{text[:length]}…"

"""What answers for the tasks that a task under test starts: fakes, or the tasks themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, TypeAdapter, model_validator

from app.engine.context import TaskContext
from app.engine.policy import RetryPolicy, limits
from app.engine.registry import Catalogue, Task, TaskSpec
from app.errors import UnknownTask
from app.testing.errors import HarnessError

QUEUE = "default"


@dataclass(frozen=True, slots=True)
class Later:
    """A fake's answer that comes after some time on the fake clock; `answer` is anything that a fake may be."""

    after: timedelta
    answer: Any = None


NEVER: Final = Later(timedelta(days=3_650))
"""A fake that gives no answer while anybody waits for it."""

Fakes = Mapping[str | Task[Any, Any], Any]
"""By task or name: a result, an exception (instance or class), a function of the parameters, plain or async, `Later`,
or the task itself.

A function gets the task's own model where the key is a task, else a dictionary. It returns or raises what ends the
task, or returns `Later`, and is then asked again when the task is entered again.
"""


class AnyParams(BaseModel):
    """Parameters of a task that is known by its name alone."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _of_model(cls, value: Any) -> Any:
        return value.model_dump(mode="json", by_alias=True) if isinstance(value, BaseModel) else value


class Cast(Catalogue):
    """The tasks of a run. What was asked for and is not there is kept in `missing`, each with what to do about it."""

    def __init__(self, tasks: Iterable[Task[Any, Any]]) -> None:
        made = list(tasks)
        self.missing: list[str] = []
        super().__init__(made, {item.spec.queue for item in made})

    def __getitem__(self, name: str) -> Task[Any, Any]:
        found = self.get(name)
        if found is None:
            self.missing.append(
                f"the task started {name!r}, which the test does not know: give `children={{{name!r}: ...}}` a result, "
                "an exception or a function of the parameters, or give the task itself in `tasks=[...]`"
            )
            raise UnknownTask(self.missing[-1], pointer="/task")
        return found


def cast_of(subject: Task[Any, Any], tasks: Iterable[Task[Any, Any]], fakes: Fakes) -> Cast:
    """The task under test, tasks that run as they are, and fakes. Raises `HarnessError` for one that is given twice."""
    cast = {subject.name: subject}
    others = (item for item in tasks if item.spec is not subject.spec)
    for item in (*others, *(_fake(target, answer) for target, answer in fakes.items())):
        if cast.setdefault(item.name, item) is not item:
            raise HarnessError(f"{item.name!r} is given twice: expected the task itself or one fake")
    return Cast(cast.values())


def _fake(target: str | Task[Any, Any], answer: Any) -> Task[Any, Any]:
    name = target if isinstance(target, str) else target.name
    if isinstance(answer, Task):
        if answer.name != name:
            raise HarnessError(f"the child {name!r} cannot be played by the task {answer.name!r}: expected its name")
        return answer

    async def play(ctx: TaskContext, params: BaseModel) -> Any:
        return await _answer(ctx, answer, _plain(params))

    return Task(_spec_of(target), play)


def _spec_of(target: str | Task[Any, Any]) -> TaskSpec:
    once = RetryPolicy(max_retries=0)  # What a fake raises is how the child ends.
    if isinstance(target, Task):
        return replace(target.spec, retry=once)
    return TaskSpec(target, QUEUE, AnyParams, TypeAdapter(Any), once, limits(None, None), "")


async def _answer(ctx: TaskContext, answer: Any, params: Any) -> Any:
    if isinstance(answer, Later):
        await ctx.sleep(answer.after)
        return await _answer(ctx, answer.answer, params)
    if isinstance(answer, type) and issubclass(answer, BaseException):
        raise answer("as the test wants it")
    if isinstance(answer, BaseException):
        raise answer
    if not callable(answer):
        return answer
    value = answer(params)
    value = await value if inspect.isawaitable(value) else value
    return await _answer(ctx, value, params) if isinstance(value, Later) else value


def _plain(params: BaseModel) -> Any:
    return dict(params.model_extra or {}) if isinstance(params, AnyParams) else params

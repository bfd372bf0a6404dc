"""`@task`, what it declares, and the catalogue of all tasks.

    class Echo(BaseModel):
        value: str

    @task("system.echo", queue="default")
    async def echo(ctx: TaskContext, params: Echo) -> Echo:
        return params

The name is what clients post; it is the task's identity over versions. Parameters are one pydantic model, the result is
any type that pydantic can validate and write as JSON. The whole policy stands in the decorator.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_type_hints

from pydantic import BaseModel, TypeAdapter
from pydantic_core import to_json

from app.engine.gates import PLAIN, KeyPolicy, OnBusy, TaskKey, key_of
from app.engine.policy import Limits, RetryPolicy, limits
from app.errors import SettingsError, UnknownTask

if TYPE_CHECKING:
    from app.engine.context import TaskContext

P = TypeVar("P", bound=BaseModel)
R = TypeVar("R")

NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
QUEUE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
MAX_NAME_LENGTH = 100


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """Everything the engine knows about a task."""

    name: str
    queue: str
    params: type[BaseModel]
    result: TypeAdapter[Any]
    retry: RetryPolicy
    limits: Limits
    summary: str
    key: TaskKey | None = None

    @property
    def param_names(self) -> tuple[str, ...]:
        """The parameters as they are called in JSON, in order."""
        return tuple(field.alias or name for name, field in self.params.model_fields.items())


class Task(Generic[P, R]):
    """A declared task. Call it like the function that it decorates; pass it to `ctx.start` in place of its name."""

    def __init__(self, spec: TaskSpec, function: Callable[[TaskContext, P], Awaitable[R]]) -> None:
        self.spec = spec
        self.function = function
        self.__doc__ = function.__doc__

    @property
    def name(self) -> str:
        """The name that clients post."""
        return self.spec.name

    def __call__(self, ctx: TaskContext, params: P) -> Awaitable[R]:
        return self.function(ctx, params)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"


def task(
    name: str,
    *,
    queue: str = "default",
    timeout: timedelta | None = None,
    soft_limit: timedelta | None = None,
    retry: RetryPolicy | None = None,
    key: str | Callable[[P], str] | None = None,
    on_busy: OnBusy | str = OnBusy.QUEUE,
    debounce: timedelta | None = None,
    debounce_max: timedelta | None = None,
    throttle: timedelta | None = None,
    throttle_burst: int = 1,
) -> Callable[[Callable[[TaskContext, P], Awaitable[R]]], Task[P, R]]:
    """Declare a task.

    `timeout` is the hard limit of one attempt: 30 minutes by default, or the soft limit and 60 s more. At `soft_limit`
    (default: 60 s before the hard one, or four fifths of a hard one under 5 minutes) `SoftTimeLimit` is raised inside
    the task. `retry` defaults to 3 retries, exponential from 60 s to 600 s with full jitter, of errors that may pass.

    `key` makes of the parameters what the task is about, such as `conversation:42`: of each user's tasks of one key,
    whatever their type, one runs at a time, in the order in which they came. `on_busy` says what becomes of one that
    finds another unfinished, `debounce` (with `debounce_max`, 10 times as long by default) and `throttle` (with
    `throttle_burst`) what holds it back besides; see `app/engine/gates.py`. Clients cannot set any of it then.

    Raises `SettingsError` at import when the declaration is wrong.
    """

    def declare(function: Callable[[TaskContext, P], Awaitable[R]]) -> Task[P, R]:
        _check_names(name, queue)
        params, result = _types_of(name, function)
        try:
            bounds = limits(timeout, soft_limit)
            policy = KeyPolicy(
                OnBusy(on_busy), _seconds(debounce), _seconds(debounce_max), _seconds(throttle), throttle_burst
            )
        except ValueError as error:
            raise SettingsError(f"task {name!r}: {error}") from error
        own_key = _task_key(name, key, policy)
        summary = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
        return Task(TaskSpec(name, queue, params, result, retry or RetryPolicy(), bounds, summary, own_key), function)

    return declare


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


def _task_key(name: str, key: str | Callable[[Any], str] | None, policy: KeyPolicy) -> TaskKey | None:
    if key is None:
        if policy != PLAIN:
            raise SettingsError(f"task {name!r}: expected a key with on_busy, debounce and throttle")
        return None
    if not isinstance(key, str) and (not callable(key) or inspect.iscoroutinefunction(key)):
        raise SettingsError(f"task {name!r}: expected a text or a function of the parameters as the key, got {key!r}")
    if fault := policy.fault():
        raise SettingsError(f"task {name!r}: {fault[1]}")
    return TaskKey(key_of(key), policy)


def _check_names(name: str, queue: str) -> None:
    if not NAME.fullmatch(name) or len(name) > MAX_NAME_LENGTH:
        raise SettingsError(f"task {name!r}: expected a name such as domain.verb in lower case, at most 100 characters")
    if not QUEUE_NAME.fullmatch(queue):
        raise SettingsError(f"task {name!r}: expected a queue name in lower case, got {queue!r}")


def _types_of(name: str, function: Callable[..., Any]) -> tuple[type[BaseModel], TypeAdapter[Any]]:
    if not inspect.iscoroutinefunction(function):
        raise SettingsError(f"task {name!r}: expected a coroutine function (async def)")
    names = list(inspect.signature(function).parameters)
    hints = get_type_hints(function)
    params = hints.get(names[1]) if len(names) == 2 else None
    if not (isinstance(params, type) and issubclass(params, BaseModel)):
        raise SettingsError(f"task {name!r}: expected (ctx, params) where params is annotated with a pydantic model")
    for field_name, field in params.model_fields.items():
        # What a client posts is written by the enqueue and read by the worker.
        if field.validation_alias != field.serialization_alias:
            raise SettingsError(f"task {name!r}: expected {field_name!r} to have one alias for reading and writing")
    if "return" not in hints:
        raise SettingsError(f"task {name!r}: expected an annotated result")
    return params, TypeAdapter(hints["return"])


class Catalogue:
    """All tasks of a process, by name.

    Raises `SettingsError` when two have one name, one uses a queue that `queues` does not name, or a schema cannot be
    made.
    """

    def __init__(self, tasks: Iterable[Task[Any, Any]], queues: Iterable[str]) -> None:
        self._tasks: dict[str, Task[Any, Any]] = {}
        known = frozenset(queues)
        for item in tasks:
            if item.name in self._tasks:
                raise SettingsError(f"task {item.name!r} is declared twice")
            if item.spec.queue not in known:
                expected = ", ".join(sorted(known))
                raise SettingsError(f"task {item.name!r}: queue {item.spec.queue!r} has no lane; expected {expected}")
            _check_schemas(item.spec)
            self._tasks[item.name] = item

    @classmethod
    def of_modules(cls, modules: Iterable[ModuleType], queues: Iterable[str]) -> Catalogue:
        """Collect the tasks that modules declare."""
        return cls((value for module in modules for value in vars(module).values() if isinstance(value, Task)), queues)

    def get(self, name: str) -> Task[Any, Any] | None:
        """The task of that name, or None."""
        return self._tasks.get(name)

    def __getitem__(self, name: str) -> Task[Any, Any]:
        found = self._tasks.get(name)
        if found is None:
            raise UnknownTask(
                f"no task is called {name!r}; known are {', '.join(sorted(self._tasks))}", pointer="/task"
            )
        return found

    def __iter__(self) -> Iterator[Task[Any, Any]]:
        return iter(sorted(self._tasks.values(), key=lambda item: item.name))

    def __len__(self) -> int:
        return len(self._tasks)


def _check_schemas(spec: TaskSpec) -> None:
    try:
        schema = to_json(spec.params.model_json_schema())
        spec.result.json_schema()
    except Exception as error:
        raise SettingsError(f"task {spec.name!r}: no JSON schema can be made of its types: {error}") from error
    if b'"format":"password"' in schema:
        # A SecretStr would be stored as asterisks, and what it holds must not be stored.
        raise SettingsError(
            f"task {spec.name!r}: a parameter is a secret; parameters are stored and shown, expected the name of one"
        )

"""What an attempt is lent: the doors to the store that its context needs, and what the process shares."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from concurrent.futures import Executor
from typing import Any, Generic, Protocol, TypeVar

from app.engine.approvals import ApprovalServices
from app.engine.limits import Quotas
from app.engine.steps import StepStore
from app.engine.submissions import Submission
from app.engine.waits import WaitServices
from app.store.items import Emit

T = TypeVar("T")


class Resource(Generic[T]):
    """The name of something that the tasks of a process share, such as a client. `ctx.use` gives the thing itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<Resource {self.name}>"


Resources = Mapping[Resource[Any], Any]


class Services(StepStore, WaitServices, ApprovalServices, Protocol):
    """What the worker lends to the contexts of its attempts."""

    @property
    def resources(self) -> Resources:
        """What the tasks of this process share."""
        ...

    @property
    def quotas(self) -> Quotas:
        """The quotas of this process."""
        ...

    @property
    def executor(self) -> Executor:
        """Where CPU-bound work runs."""
        ...

    def emit(self, item: Emit) -> Awaitable[int]:
        """Append an event; 0 when the lease is lost."""
        ...

    async def start(self, submission: Submission, user_id: str, correlation_id: str | None) -> str:
        """Enqueue a task; its id."""
        ...

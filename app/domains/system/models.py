"""Parameters and results of the tasks that check an installation."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Echo(BaseModel):
    """Any JSON value."""

    model_config = ConfigDict(extra="forbid")

    value: Any = None


class Sleep(BaseModel):
    """How long to sleep, and in how many steps of progress."""

    model_config = ConfigDict(extra="forbid")

    seconds: float = Field(ge=0, le=86_400)
    steps: int = Field(1, ge=1, le=1_000)


class Slept(BaseModel):
    """How long it slept, in seconds."""

    seconds: float


class Fail(BaseModel):
    """How often to fail before succeeding; None: always."""

    model_config = ConfigDict(extra="forbid")

    times: int | None = Field(None, ge=0, le=1_000)
    retryable: bool = True


class Recovered(BaseModel):
    """The attempt that succeeded."""

    attempt: int

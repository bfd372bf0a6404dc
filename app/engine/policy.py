"""Pure decisions about attempts: what may run again, when, and for how long one may run.

Backoff is exponential with full jitter, after "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015): the delay
before retry n is drawn evenly from 0 to min(cap, base * factor ** (n - 1)).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta

import arq
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.errors import NightshiftError, SoftTimeLimit

MAX_DELAY_S = 10 * 366 * 86_400
"""Ten years; a task is delayed and waits no longer, whatever it is that delays it."""
MAX_RETRY_AFTER_S = 3_600.0
"""The longest `Retry-After` that is kept; a remote system must not park a task for days."""

DEFAULT_TIMEOUT = timedelta(minutes=30)
SOFT_MARGIN = timedelta(seconds=60)
"""What lies between the soft and the hard limit where a task sets only one of them."""
SHORT_TIMEOUT = timedelta(minutes=5)
"""Hard limits below it leave a fifth of themselves instead of the whole margin."""

_RETRYABLE = (TimeoutError, ConnectionError, RedisConnectionError, RedisTimeoutError, SoftTimeLimit, arq.Retry)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a task runs again after an error that may pass.

    `max_retries` attempts come after the first. Delays in seconds. `retry_on` names further exception types that count
    as retryable for this task.
    """

    max_retries: int = 3
    base_s: float = 60.0
    factor: float = 2.0
    cap_s: float = 600.0
    jitter: bool = True
    retry_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if self.max_retries < 0 or self.base_s < 0 or self.factor < 1 or self.cap_s < 0:
            raise ValueError(f"expected max_retries, base_s and cap_s >= 0 and factor >= 1, got {self}")

    @property
    def max_attempts(self) -> int:
        """The first attempt and all retries."""
        return self.max_retries + 1

    def ceiling_s(self, retry: int) -> float:
        """The longest delay before retry number `retry` (the first is 1)."""
        # The exponent is bounded so that a task with thousands of retries does not overflow a float.
        return float(min(self.cap_s, self.base_s * self.factor ** min(retry - 1, 64)))

    def delay_s(self, retry: int, draw: float | None = None) -> float:
        """The delay before retry `retry`; `draw` in 0..1 stands in for chance."""
        ceiling = self.ceiling_s(retry)
        if not self.jitter:
            return ceiling
        return ceiling * (random.random() if draw is None else draw)


@dataclass(frozen=True, slots=True)
class Decision:
    """What comes after a failed attempt: another one in `delay_s` seconds, or none (None)."""

    delay_s: float | None
    retryable: bool


def is_retryable(error: BaseException, policy: RetryPolicy) -> bool:
    """Whether running the same task again may help; of a group, as a TaskGroup raises it, each error must allow it."""
    if isinstance(error, policy.retry_on):
        return True
    if isinstance(error, BaseExceptionGroup):
        return all(is_retryable(item, policy) for item in error.exceptions)
    if isinstance(error, NightshiftError):
        return error.retryable
    return isinstance(error, _RETRYABLE) or getattr(error, "retryable", False) is True


def after_failure(error: BaseException, attempt: int, policy: RetryPolicy, draw: float | None = None) -> Decision:
    """Decide what follows attempt number `attempt` (the first is 1) that died of `error`.

    A `Retry-After` wins over the backoff, up to an hour; so does the delay of an `arq.Retry`.
    """
    if not is_retryable(error, policy):
        return Decision(None, retryable=False)
    if attempt >= policy.max_attempts:
        return Decision(None, retryable=True)
    wanted = _wanted_delay_s(error)
    delay = policy.delay_s(attempt, draw) if wanted is None else min(max(wanted, 0.0), MAX_RETRY_AFTER_S)
    return Decision(delay, retryable=True)


def _wanted_delay_s(error: BaseException) -> float | None:
    if isinstance(error, BaseExceptionGroup):
        return max((wait for item in error.exceptions if (wait := _wanted_delay_s(item)) is not None), default=None)
    if isinstance(error, arq.Retry):
        return None if error.defer_score is None else error.defer_score / 1000
    return getattr(error, "retry_after_s", None)


@dataclass(frozen=True, slots=True)
class Limits:
    """How long an attempt may run, in seconds: `soft_s` warns inside the task, `hard_s` ends it."""

    soft_s: float
    hard_s: float


def limits(timeout: timedelta | None, soft_limit: timedelta | None) -> Limits:
    """The limits of a task that sets one, both or none of them. Raises ValueError when the soft one is not the
    shorter."""
    if timeout is None:
        timeout = DEFAULT_TIMEOUT if soft_limit is None else soft_limit + SOFT_MARGIN
    if soft_limit is None:
        soft_limit = timeout * 0.8 if timeout < SHORT_TIMEOUT else timeout - SOFT_MARGIN
    if not timedelta() < soft_limit < timeout:
        raise ValueError(f"expected 0 < soft limit < timeout, got soft limit {soft_limit} and timeout {timeout}")
    return Limits(soft_limit.total_seconds(), timeout.total_seconds())

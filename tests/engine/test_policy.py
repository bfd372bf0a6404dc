"""What comes after a failed attempt, and how long one may run."""

from __future__ import annotations

from datetime import timedelta

import arq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.engine.policy import MAX_RETRY_AFTER_S, RetryPolicy, after_failure, is_retryable, limits
from app.errors import (
    CredentialsRefused,
    HardTimeLimit,
    InvalidInput,
    PermanentError,
    QueueFull,
    RemoteStatus,
    RemoteTimeout,
    RemoteUnreachable,
    RetryableError,
    SoftTimeLimit,
)

POLICY = RetryPolicy()


class Flagged(Exception):
    retryable = True


class TruthyFlag(Exception):
    retryable = "perhaps"


def status(code: int, retry_after_s: float | None = None) -> RemoteStatus:
    return RemoteStatus(f"HTTP {code}", remote_status=code, retry_after_s=retry_after_s)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), True),
        (ConnectionError(), True),
        (ConnectionResetError(), True),
        (RedisConnectionError(), True),
        (RedisTimeoutError(), True),
        (SoftTimeLimit(), True),
        (HardTimeLimit("x"), True),
        (RetryableError("x"), True),
        (RemoteTimeout("x"), True),
        (RemoteUnreachable("x"), True),
        (QueueFull("x"), True),
        (arq.Retry(), True),
        (Flagged(), True),
        *((status(code), True) for code in (408, 425, 429, 500, 502, 503, 504, 599)),
        *((status(code), False) for code in (400, 401, 403, 404, 409, 410, 422, 600)),
        (PermanentError("x"), False),
        (InvalidInput("x"), False),
        (CredentialsRefused("x"), False),
        (TruthyFlag(), False),
        (ValueError(), False),
        (OSError(), False),
        (MemoryError(), False),
        (SystemExit(), False),
        (ExceptionGroup("", [TimeoutError(), RetryableError("x")]), True),
        (ExceptionGroup("", [TimeoutError(), ExceptionGroup("", [ValueError()])]), False),
    ],
    ids=repr,
)
def test_an_error_that_may_pass_is_told_from_one_that_does_not(error: BaseException, expected: bool) -> None:
    assert is_retryable(error, POLICY) is expected


def test_a_task_may_name_further_errors() -> None:
    policy = RetryPolicy(retry_on=(KeyError, PermanentError))
    assert is_retryable(KeyError(), policy)
    assert is_retryable(PermanentError("x"), policy)
    assert not is_retryable(ValueError(), policy)


@pytest.mark.parametrize(("retry", "ceiling"), [(1, 60), (2, 120), (3, 240), (4, 480), (5, 600), (1_000_000, 600)])
def test_by_default_the_backoff_doubles_from_a_minute_to_ten(retry: int, ceiling: float) -> None:
    assert POLICY.ceiling_s(retry) == ceiling
    assert RetryPolicy(jitter=False).delay_s(retry) == ceiling


policies = st.builds(
    RetryPolicy,
    max_retries=st.integers(0, 10_000),
    base_s=st.floats(0, 1e6),
    factor=st.floats(1, 100),
    cap_s=st.floats(0, 1e6),
    jitter=st.booleans(),
)


@given(policy=policies, retry=st.integers(1, 10_000), draw=st.none() | st.floats(0, 1))
def test_a_backoff_lies_between_nothing_and_its_ceiling(policy: RetryPolicy, retry: int, draw: float | None) -> None:
    assert 0 <= policy.delay_s(retry, draw) <= policy.ceiling_s(retry) <= policy.cap_s


@given(policy=policies, retry=st.integers(1, 10_000))
def test_a_ceiling_never_falls(policy: RetryPolicy, retry: int) -> None:
    assert policy.ceiling_s(retry) <= policy.ceiling_s(retry + 1)


@given(draw=st.floats(0, 1), retry=st.integers(1, 10))
def test_jitter_is_full(draw: float, retry: int) -> None:
    assert POLICY.delay_s(retry, draw) == POLICY.ceiling_s(retry) * draw


def test_without_a_draw_chance_decides() -> None:
    assert len({POLICY.delay_s(1) for _ in range(20)}) > 1


@given(policy=policies, attempt=st.integers(1, 10_001))
def test_a_task_is_tried_as_often_as_its_policy_says(policy: RetryPolicy, attempt: int) -> None:
    decision = after_failure(TimeoutError(), attempt, policy)
    assert (decision.delay_s is not None) == (attempt <= policy.max_retries)
    assert decision.retryable


@pytest.mark.parametrize("attempt", [1, 3])
def test_an_error_that_does_not_pass_is_final_at_once(attempt: int) -> None:
    decision = after_failure(ValueError(), attempt, POLICY)
    assert (decision.delay_s, decision.retryable) == (None, False)


@pytest.mark.parametrize(
    ("error", "delay_s"),
    [
        (status(429, 7.5), 7.5),
        (status(503, 0.0), 0.0),
        (status(503, -3.0), 0.0),
        (status(429, 1e9), MAX_RETRY_AFTER_S),
        (status(429), 30.0),
        (arq.Retry(defer=5), 5.0),
        (arq.Retry(defer=timedelta(minutes=2)), 120.0),
        (arq.Retry(), 30.0),
        (ExceptionGroup("", [status(429, 7.5), status(429, 20.0), TimeoutError()]), 20.0),
        (ExceptionGroup("", [TimeoutError()]), 30.0),
    ],
    ids=repr,
)
def test_what_the_other_side_asks_for_wins_over_the_backoff(error: BaseException, delay_s: float) -> None:
    assert after_failure(error, 1, POLICY, draw=0.5).delay_s == delay_s


def test_retry_after_does_not_buy_another_try() -> None:
    assert after_failure(status(429, 1.0), POLICY.max_attempts, POLICY).delay_s is None


@pytest.mark.parametrize("wrong", [{"max_retries": -1}, {"base_s": -1.0}, {"factor": 0.5}, {"cap_s": -1.0}])
def test_a_policy_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]


SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


@pytest.mark.parametrize(
    ("timeout", "soft", "expected"),
    [
        (None, None, (29 * 60, 30 * 60)),
        (10 * MINUTE, None, (9 * 60, 10 * 60)),
        (5 * MINUTE, None, (4 * 60, 5 * 60)),
        (10 * SECOND, None, (8, 10)),
        (None, 45 * MINUTE, (45 * 60, 46 * 60)),
        (None, 5 * SECOND, (5, 65)),
        (20 * SECOND, 3 * SECOND, (3, 20)),
    ],
)
def test_limits_follow_from_what_a_task_sets(
    timeout: timedelta | None, soft: timedelta | None, expected: tuple[float, float]
) -> None:
    found = limits(timeout, soft)
    assert (found.soft_s, found.hard_s) == expected


@pytest.mark.parametrize(
    ("timeout", "soft"),
    [(MINUTE, MINUTE), (MINUTE, 2 * MINUTE), (timedelta(), None), (MINUTE, timedelta()), (-MINUTE, None)],
)
def test_limits_that_cannot_be_are_refused(timeout: timedelta, soft: timedelta | None) -> None:
    with pytest.raises(ValueError, match="expected 0 < soft limit < timeout"):
        limits(timeout, soft)


@given(st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(days=365)))
def test_a_task_is_warned_before_it_is_stopped(given_limit: timedelta) -> None:
    for found in (limits(given_limit, None), limits(None, given_limit)):
        assert 0 < found.soft_s < found.hard_s

"""One quota and four real processes that always ask for more than there is."""

from __future__ import annotations

from tests.bench.quotas import limits, measure

WINDOW_S = 3.0


async def test_four_processes_never_get_more_than_the_limit_and_use_nearly_all_of_it() -> None:
    _, granted = await measure(WINDOW_S, 2.2 * WINDOW_S)
    most, mean = granted.shares(limits(WINDOW_S)["llm"])
    assert most <= 1.0
    # How much exactly is measured by the benchmark, and by a test on a clock of its own.
    assert mean > 0.8
    assert granted.calls[-1][0] - granted.calls[0][0] > WINDOW_S

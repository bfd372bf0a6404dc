"""For the tests of people who write tasks: run one task in process, under a fake clock, without Redis.

    from app.testing import check_replay_safe, run_task

    async def test_a_reminder_is_sent_after_a_week() -> None:
        run = await run_task(remind, Remind(order="4711"), children={"mail.send": "sent"})
        assert run.result == "reminded"
        assert run.elapsed == timedelta(days=7)

The engine above the store is the real one; only the scripts of the store are played in memory (`memory.py`).
"""

from __future__ import annotations

from app.testing.children import NEVER, Fakes, Later
from app.testing.errors import HarnessError, NotReplaySafe
from app.testing.harness import Options, TaskHarness, run_task
from app.testing.limits import QuotaUse
from app.testing.replay import check_replay_safe, run_interrupted
from app.testing.run import Child, Run, SentEvent, StoredStep

__all__ = [
    "NEVER",
    "Child",
    "Fakes",
    "HarnessError",
    "Later",
    "NotReplaySafe",
    "Options",
    "QuotaUse",
    "Run",
    "SentEvent",
    "StoredStep",
    "TaskHarness",
    "check_replay_safe",
    "run_interrupted",
    "run_task",
]

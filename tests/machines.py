"""Running hypothesis's state machines against a server: their rules are plain functions, what they drive is not."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def run_machine(
    machine: type[RuleBasedStateMachine], *, examples: int, steps: int, derandomize: bool = False, **bound: Any
) -> None:
    """Run a machine; `bound` are attributes that all its instances have, such as the server and a loop."""
    run_state_machine_as_test(
        type(f"Bound{machine.__name__}", (machine,), bound),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize=derandomize,
        ),
    )

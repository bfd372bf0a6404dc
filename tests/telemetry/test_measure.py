"""Operations are counted by outcome, and every metric that is declared is used somewhere."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram

from app.telemetry.measure import measured

APP = Path(__file__).parents[2] / "app"


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (ValueError("no"), "ValueError"),
        (asyncio.CancelledError(), "abandoned"),
        (GeneratorExit(), "abandoned"),
    ],
)
def test_an_operation_is_counted_and_timed_by_its_outcome(error: BaseException | None, outcome: str) -> None:
    registry = CollectorRegistry()
    calls = Counter("calls", "Calls.", ("name", "outcome"), registry=registry)
    durations = Histogram("durations_seconds", "Durations.", ("name", "outcome"), registry=registry)
    try:
        with measured(calls, durations, "clone"):
            if error is not None:
                raise error
    except BaseException as raised:
        assert raised is error
    labels = {"name": "clone", "outcome": outcome}
    assert registry.get_sample_value("calls_total", labels) == 1
    assert registry.get_sample_value("durations_seconds_count", labels) == 1


def test_every_declared_metric_is_used() -> None:
    declared = re.findall(
        r"^([A-Z][A-Z_]+) = (?:_registered|Counter|Gauge|Histogram)", (APP / "telemetry/metrics.py").read_text(), re.M
    )
    used = "\n".join(path.read_text() for path in APP.rglob("*.py") if path.parent.name != "telemetry")
    assert len(declared) > 20
    assert [name for name in declared if not re.search(rf"\b{name}\b", used)] == []

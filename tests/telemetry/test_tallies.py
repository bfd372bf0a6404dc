from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry import METRICS_CONTENT_TYPE, metrics, render_metrics, tallies
from app.telemetry.tallies import Distribution, TallyCounter, TallyGauge, TallyHistogram


def exposed(name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(render_metrics().decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    return None


def test_a_tally_shows_in_the_exposition() -> None:
    labels = {"queue": "q-shows", "task": "t", "status": "SUCCESS"}
    assert exposed("nightshift_tasks_finished_total", **labels) is None
    metrics.TASKS_FINISHED.labels("q-shows", "t", "SUCCESS").inc()
    metrics.TASKS_FINISHED.labels("q-shows", "t", "SUCCESS").inc(2)
    assert exposed("nightshift_tasks_finished_total", **labels) == 3


def test_a_level_goes_up_and_down() -> None:
    running = metrics.TASKS_RUNNING.labels("q-level")
    running.inc(3)
    running.dec()
    assert exposed("nightshift_tasks_running", queue="q-level") == 2
    running.set(7)
    assert exposed("nightshift_tasks_running", queue="q-level") == 7


def test_metrics_of_prometheus_own_kind_stand_beside_the_tallies() -> None:
    before = exposed("nightshift_llm_tokens_total", model="m", kind="prompt") or 0
    metrics.LLM_TOKENS.labels("m", "prompt").inc(12)
    assert exposed("nightshift_llm_tokens_total", model="m", kind="prompt") == before + 12


def test_every_metric_has_our_prefix_and_a_description() -> None:
    ours = [
        family
        for family in text_string_to_metric_families(render_metrics().decode())
        if not family.name.startswith(("process_", "python_"))
    ]
    assert len(ours) >= 20
    assert all(family.name.startswith("nightshift_") and family.documentation for family in ours)


def test_the_content_type_is_the_one_of_the_text_format() -> None:
    assert METRICS_CONTENT_TYPE.startswith("text/plain; version=")


@given(st.lists(st.floats(0, 20) | st.sampled_from([0.0, 1.0, 2.5, 10.0]), max_size=50))
def test_a_tallied_histogram_reads_like_prometheus_own(values: list[float]) -> None:
    bounds = (1.0, 2.5, 10.0)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = TallyHistogram("x_seconds", "X.", ("q",), bounds)
    ours.register(tally)
    reference = Histogram("x_seconds", "X.", ("q",), buckets=bounds, registry=theirs)
    cell, other = tally.labels("a"), reference.labels("a")
    for value in values:
        cell.observe(value)
        other.observe(value)
    ours_text, theirs_text = generate_latest(ours).decode(), generate_latest(theirs).decode()
    assert ours_text.splitlines() == [line for line in theirs_text.splitlines() if "_created" not in line]


@given(st.floats(0, 100))
def test_an_observation_counts_under_the_first_bound_that_holds_it(value: float) -> None:
    distribution = Distribution((1.0, 10.0))
    distribution.observe(value)
    assert distribution.counts.index(1) == bisect_left((1.0, 10.0), value)
    assert distribution.buckets()[-1] == ("+Inf", 1.0)


def test_the_same_labels_are_the_same_cell_and_others_are_not() -> None:
    gauge = TallyGauge("x_level", "X.", ("a", "b"))
    assert gauge.labels("1", "2") is gauge.labels("1", "2")
    assert gauge.labels("1", "2") is not gauge.labels("2", "1")


def test_a_wrong_number_of_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="expected values for"):
        TallyCounter("x_things", "X.", ("a",)).labels("1", "2")


def test_bounds_must_ascend() -> None:
    with pytest.raises(ValueError, match="ascending"):
        TallyHistogram("x_seconds", "X.", (), (2.0, 1.0))


def test_names_chosen_by_clients_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "MAX_LABEL_SETS", 3)
    counter = TallyCounter("x_things", "X.", ("task",))
    for number in range(10):
        counter.labels(f"t{number}").inc()
    (family,) = counter.collect()
    assert {sample.labels["task"]: sample.value for sample in family.samples} == {"t0": 1, "t1": 1, "t2": 1, "other": 7}

"""Every metric of Nightshift, with its labels and unit.

Those of the engine's hot path are tallies (`app/telemetry/tallies.py`): touch them on the event loop's thread only. The
others are prometheus-client's own. All are used alike: `TASKS_FINISHED.labels(queue, task, status).inc()`,
`TASK_DURATION_S.labels(queue, task).observe(seconds)`. The label `task` is a name of the catalogue, or `unknown`.
"""

from __future__ import annotations

from typing import TypeVar

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from app.telemetry.tallies import TallyCounter, TallyGauge, TallyHistogram

METRICS_CONTENT_TYPE = CONTENT_TYPE_LATEST
"""What `GET /metrics` answers as its content type."""

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

_WAITS_S = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0)
_CALLS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_LAGS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BATCHES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1_024.0)

TallyT = TypeVar("TallyT", TallyCounter, TallyGauge, TallyHistogram)


def _registered(tally: TallyT) -> TallyT:
    REGISTRY.register(tally)
    return tally


# Tasks.

TASKS_ENQUEUED = _registered(
    TallyCounter("nightshift_tasks_enqueued", "Tasks accepted by this process.", ("queue", "task"))
)
TASKS_FINISHED = _registered(
    TallyCounter(
        "nightshift_tasks_finished", "Tasks that reached their final status here.", ("queue", "task", "status")
    )
)
TASK_RETRIES = _registered(
    TallyCounter("nightshift_task_retries", "Attempts that ended in another one.", ("queue", "task"))
)
TASK_DURATION_S = _registered(
    TallyHistogram("nightshift_task_duration_seconds", "Length of an attempt.", ("queue", "task"), _WAITS_S)
)
QUEUE_WAIT_S = _registered(
    TallyHistogram("nightshift_queue_wait_seconds", "From due to claimed.", ("queue",), _WAITS_S)
)
TASKS_RUNNING = _registered(TallyGauge("nightshift_tasks_running", "Attempts running in this process.", ("queue",)))
SCHEDULE_TICKS = Counter(
    "nightshift_schedule_ticks",
    "Ticks of schedules decided here (fired, caught_up, missed, paused, overlap), tries at a full queue (full), and "
    "triggers.",
    ("schedule", "outcome"),
    registry=REGISTRY,
)
QUEUE_TASKS = _registered(
    TallyGauge("nightshift_queue_tasks", "Unfinished tasks by state, as last read from Redis.", ("queue", "state"))
)

# The engine.

CLAIM_SIZE = _registered(
    TallyHistogram("nightshift_claim_size_tasks", "Tasks that one claim brought.", ("queue",), (0.0, *_BATCHES))
)
COMMIT_SIZE = _registered(
    TallyHistogram("nightshift_commit_size_tasks", "Ends of attempts committed together.", (), _BATCHES)
)
LEASES_LOST = _registered(TallyCounter("nightshift_leases_lost", "Attempts that another one overtook.", ("queue",)))
EVENTS_EMITTED = _registered(
    TallyCounter("nightshift_events_emitted", "Events appended, by kind of channel (task, user, ...).", ("channel",))
)
LOOP_LAG_S = _registered(
    TallyHistogram("nightshift_loop_lag_seconds", "How late the event loop came to a timer.", (), _LAGS_S)
)
SUPERVISED_RESTARTS = Counter(
    "nightshift_supervised_restarts",
    "Background services restarted after an error.",
    ("service",),
    registry=REGISTRY,
)
REDIS_RECONNECTS = Counter(
    "nightshift_redis_reconnects", "Connections to Redis made again after a loss.", registry=REGISTRY
)

REDIS_UP = Gauge("nightshift_redis_up", "Whether this scrape could read Redis (1) or not (0).", registry=REGISTRY)

# Quotas. `key` is one of the configured ones.

QUOTA_WAIT_S = Histogram(
    "nightshift_quota_wait_seconds",
    "From asking for quota until it was granted, or until the task left to wait.",
    ("key",),
    buckets=_WAITS_S,
    registry=REGISTRY,
)
QUOTA_RESERVATIONS = Counter(
    "nightshift_quota_reservations",
    "Reservations, by outcome (granted; postponed: the task left to wait).",
    ("key", "outcome"),
    registry=REGISTRY,
)
QUOTA_REFUSALS = Counter(
    "nightshift_quota_refusals", "Calls that the provider refused (429) all the same.", ("key",), registry=REGISTRY
)

# The API.

HTTP_REQUEST_DURATION_S = Histogram(
    "nightshift_http_request_duration_seconds",
    "Length of a request, by route template.",
    ("method", "route", "status"),
    buckets=_CALLS_S,
    registry=REGISTRY,
)
STREAM_CLIENTS = Gauge(
    "nightshift_stream_clients", "Open event streams, by transport (websocket, sse).", ("transport",), registry=REGISTRY
)
SLOW_CLIENTS_CLOSED = Counter(
    "nightshift_slow_clients_closed",
    "Streams closed because their client read too slowly.",
    ("transport",),
    registry=REGISTRY,
)

# The outside world. `outcome` is `ok` or the name of the error class.

LLM_CALLS = Counter("nightshift_llm_calls", "Calls of a model.", ("model", "outcome"), registry=REGISTRY)
LLM_TOKENS = Counter(
    "nightshift_llm_tokens", "Tokens as the model counts them, by kind (prompt, completion).", ("model", "kind"),
    registry=REGISTRY,
)  # fmt: skip
LLM_CALL_DURATION_S = Histogram(
    "nightshift_llm_call_duration_seconds",
    "Length of a call of a model, to the end of its stream.",
    ("model", "outcome"),
    buckets=_CALLS_S,
    registry=REGISTRY,
)
GIT_OPERATIONS = Counter("nightshift_git_operations", "git commands run.", ("operation", "outcome"), registry=REGISTRY)
GIT_OPERATION_DURATION_S = Histogram(
    "nightshift_git_operation_duration_seconds",
    "Length of a git command.",
    ("operation", "outcome"),
    buckets=_CALLS_S,
    registry=REGISTRY,
)
WEB_FETCHES = Counter("nightshift_web_fetches", "Pages fetched, or refused.", ("outcome",), registry=REGISTRY)


def render_metrics() -> bytes:
    """All metrics of this process in Prometheus' text format; the content type is `METRICS_CONTENT_TYPE`."""
    return generate_latest(REGISTRY)

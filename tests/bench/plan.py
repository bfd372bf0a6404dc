"""How much is measured: the whole run takes under 10 minutes, the quick one under 90 s."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Sizes of the measurements; times in seconds."""

    quick: bool
    peers: bool = True
    limit_s: float = 600.0
    runs: int = 3
    scale: float = 1.0
    """Of the numbers of tasks in a drain."""
    with_file: bool = True
    """Whether the drain is measured with the append-only file on, too."""
    concurrency: int = 32
    pickup_samples: int = 200
    pickup_gap_s: float = 0.02
    enqueue_s: float = 0.8
    api_slice_s: float = 1.0
    api_slices: int = 5
    api_connections: int = 16
    sockets: int = 1_000
    events_per_s: int = 1_000
    events_s: float = 10.0
    model_calls: int = 1_000
    model_chunks: int = 50
    model_chunk_s: float = 0.2
    kills: int = 3
    idle_s: float = 20.0
    backlogs: tuple[int, ...] = (1_000, 100_000, 1_000_000)
    backlog_tasks: int = 10_000
    """Drained at each backlog."""
    workers: tuple[int, ...] = (1, 2, 4)
    workers_tasks: int = 20_000
    fairness_backlogs: tuple[int, ...] = (1, 10_000)
    fairness_samples: int = 80
    step_tasks: int = 2_000
    call_samples: int = 200
    children: int = 1_000
    waiting: int = 10_000
    waiting_idle_s: float = 5.0
    quota_window_s: float = 10.0
    quota_windows: float = 3.5


FULL = Plan(quick=False)
QUICK = Plan(
    quick=True, limit_s=90.0, runs=1, scale=0.1, with_file=False, pickup_samples=40, enqueue_s=0.3,
    api_slice_s=0.4, api_slices=2, sockets=100, events_per_s=200, events_s=2.0,
    model_calls=100, model_chunks=20, model_chunk_s=0.1, kills=1, idle_s=3.0,
    backlogs=(1_000, 20_000), backlog_tasks=3_000, workers=(1, 2), workers_tasks=4_000,
    quota_window_s=3.0, quota_windows=2.5,
    fairness_backlogs=(1, 2_000), fairness_samples=30,
    step_tasks=200, call_samples=20, children=100, waiting=1_000, waiting_idle_s=1.0,
)  # fmt: skip

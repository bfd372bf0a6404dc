"""A worker that also has schedules."""

from __future__ import annotations

from tests.acceptance.effects import SCHEDULES, SETTINGS, TASKS, worker_settings

WorkerSettings = worker_settings(*TASKS, schedules=SCHEDULES) if SETTINGS.redis_url else {}

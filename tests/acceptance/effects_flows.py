"""A worker that also runs flows."""

from __future__ import annotations

from app.domains.flows.tasks import run
from tests.acceptance.effects import SETTINGS, TASKS, worker_settings

FLOW_TASKS = (*TASKS, run)

WorkerSettings = worker_settings(*FLOW_TASKS) if SETTINGS.redis_url else {}

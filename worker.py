"""The worker process: `arq worker.WorkerSettings`. Composition only."""

from __future__ import annotations

import asyncio
import socket
import sys

from arq import cron

from app.catalogue import LANES, SCHEDULES, catalogue
from app.engine import wire
from app.errors import SettingsError
from app.host import HEALTH_CHECK_INTERVAL_S, Host, host_redis_settings, retention, trimming
from app.schedule_jobs import schedule_jobs
from app.settings import settings
from app.store.keys import HOST_QUEUE, host_health
from app.telemetry import configure_logging, secret_values

try:
    import uvloop
except ImportError:  # PyPy and Windows run on asyncio's own loop.
    pass
else:
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())

try:
    SETTINGS = settings()
    configure_logging(SETTINGS.log_level, SETTINGS.log_format, secret_values(SETTINGS))
    HOST = Host(SETTINGS, catalogue(), LANES, SCHEDULES)
    REDIS = host_redis_settings(SETTINGS)
except SettingsError as error:
    sys.exit(str(error))


class WorkerSettings:
    """What arq's command line reads. Lanes, tasks and schedules are in `app.catalogue`."""

    redis_settings = REDIS
    queue_name = HOST_QUEUE
    cron_jobs = [  # noqa: RUF012  (arq wants a list)
        cron(retention, name="maintenance.retention", second=0, timeout=300),
        # Workspaces are on the disk of a host, so each worker looks at its own.
        cron(trimming, name="maintenance.trimming", minute=30, second=0, timeout=300, unique=False),
        *schedule_jobs(HOST.timetable),
    ]
    timezone = SETTINGS.zone
    on_startup = HOST.on_startup
    on_shutdown = HOST.on_shutdown
    job_serializer = wire.serializer
    job_deserializer = wire.deserializer
    keep_result = 0
    poll_delay = 1.0
    health_check_interval = HEALTH_CHECK_INTERVAL_S
    health_check_key = host_health(socket.gethostname())

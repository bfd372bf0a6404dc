"""The worker process: `arq worker.WorkerSettings`. Composition only."""

from __future__ import annotations

import asyncio
import sys

from arq import cron

from app.engine import wire
from app.errors import SettingsError
from app.host import HEALTH_CHECK_INTERVAL_S, Host, host_redis_settings, retention
from app.settings import settings
from app.store.keys import HOST_QUEUE
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
    HOST = Host(SETTINGS)
    REDIS = host_redis_settings(SETTINGS)
except SettingsError as error:
    sys.exit(str(error))


class WorkerSettings:
    """What arq's command line reads. Lanes, tasks and their policies are in `app.catalogue`."""

    redis_settings = REDIS
    queue_name = HOST_QUEUE
    cron_jobs = [cron(retention, name="maintenance.retention", second=0, timeout=300)]  # noqa: RUF012  (arq wants a list)
    timezone = SETTINGS.zone
    on_startup = HOST.on_startup
    on_shutdown = HOST.on_shutdown
    job_serializer = wire.serializer
    job_deserializer = wire.deserializer
    keep_result = 0
    poll_delay = 1.0
    health_check_interval = HEALTH_CHECK_INTERVAL_S

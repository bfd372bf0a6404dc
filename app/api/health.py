"""For those who run the service: is it alive, is it ready, what does it count.

None of these asks for credentials, since load balancers and scrapers have none. They tell names of queues, tasks and
routes, and nothing of any user.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request
from loguru import logger
from pydantic import BaseModel, ConfigDict, Field
from redis.exceptions import RedisError
from starlette.responses import Response

from app.api.dependencies import EngineDep, shutdown_of
from app.api.openapi import problem_responses
from app.api.queues import workers_by_queue
from app.engine.queues import QueueStats
from app.engine.service import Engine
from app.errors import Unavailable
from app.telemetry import METRICS_CONTENT_TYPE, render_metrics
from app.telemetry.metrics import QUEUE_TASKS, REDIS_UP

REDIS_TIMEOUT_S = 2.0
"""Whoever asks for health has a timeout of his own, mostly of a few seconds."""
READY_RETRY_S = 1.0

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: Literal["ok"]


class Readiness(BaseModel):
    """The service can take tasks and run them."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ready", "missing": []}]})

    status: Literal["ready"]
    missing: list[str] = Field(description="Nothing. The 503 names here what is not there.", max_length=0)


class NotReady(Unavailable):
    """Something without which tasks are not taken or not run is missing."""

    title = "Not ready"

    def __init__(self, missing: list[str]) -> None:
        super().__init__(f"missing: {', '.join(missing)}", retry_after_s=READY_RETRY_S)
        self.missing = missing

    def extra(self) -> dict[str, Any]:
        """What is missing: `redis`, or `worker:<queue>` for each queue with work that nobody works on."""
        return {"missing": self.missing}


@router.get("/healthz", summary="Alive?")
async def healthz() -> Health:
    """That this process answers. It says nothing of Redis: restarting the API would not bring it back."""
    return Health(status="ok")


@router.get("/readyz", summary="Ready?", responses=problem_responses(503))
async def readyz(request: Request, engine: EngineDep) -> Readiness:
    """That Redis can be reached, and that every queue with work that is not paused has a worker alive.

    The 503 lists in `missing` what is not there: `redis`, or `worker:<queue>`. It also comes while the process stops.
    """
    shutdown_of(request).refuse_late()
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            stats, workers = await engine.queues.stats(), await workers_by_queue(engine)
    except (RedisError, OSError) as error:  # a TimeoutError is an OSError
        logger.warning("not ready: Redis cannot be used: {}", error)
        raise NotReady(["redis"]) from None
    missing = [f"worker:{queue.name}" for queue in stats if _needs_worker(queue) and not workers[queue.name]]
    if missing:
        raise NotReady(missing)
    return Readiness(status="ready", missing=[])


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"description": "All metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(engine: EngineDep) -> Response:
    """What this process counted, and what stands in the queues now. Without Redis the latter is missing."""
    REDIS_UP.set(await _read_queues(engine))
    return Response(render_metrics(), media_type=METRICS_CONTENT_TYPE)


async def _read_queues(engine: Engine) -> bool:
    try:
        async with asyncio.timeout(REDIS_TIMEOUT_S):
            stats = await engine.queues.stats()
    except (RedisError, OSError) as error:
        logger.warning("a scrape without queues: Redis cannot be used: {}", error)
        QUEUE_TASKS.clear()
        return False
    QUEUE_TASKS.clear()
    for queue in stats:
        for state in ("ready", "delayed", "running", "waiting", "dead"):
            QUEUE_TASKS.labels(queue.name, state).set(getattr(queue, state))
    return True


def _needs_worker(queue: QueueStats) -> bool:
    return queue.has_work and not queue.paused

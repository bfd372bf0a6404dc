"""The service's own application with one more route, `POST /bench/empty`, which reads the body and answers 202.

    uvicorn --factory tests.bench.api_app:make

The route passes through the same middleware as all others.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import Response

from app.main import create_app
from app.settings import load_settings
from app.telemetry import configure_logging
from tests.bench.peers.nightshift import MAX_DEPTH


def make() -> FastAPI:
    """The application, with the settings of the environment, not of a `.env` file."""
    settings = load_settings(_env_file=None, queue_max_depth=MAX_DEPTH)
    configure_logging(settings.log_level, settings.log_format)
    app = create_app(settings)
    app.add_api_route("/bench/empty", _empty, methods=["POST"])
    return app


async def _empty(request: Request) -> Response:
    await request.body()
    return Response(status_code=202)

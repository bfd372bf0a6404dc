"""What the tests of the model client share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.clients.llm import (
    Delta,
    Message,
    Model,
    open_model,
)
from app.settings import Settings
from tests.fakes.model_server import ModelServer

# Given, so that the variables of whoever runs the tests do not count.
UNSET: dict[str, object] = dict.fromkeys(
    f"{kind}_{field}" for kind in ("llm", "embedding") for field in ("base_url", "api_key", "model")
)
QUESTION = [Message.system("Be brief."), Message.user("Why is the sky blue?")]


def settings_for(server: ModelServer, **changes: object) -> Settings:
    values = UNSET | {"llm_base_url": server.base_url, "llm_model": server.model, "llm_timeout_s": 5.0}
    return Settings(_env_file=None, **(values | changes))  # type: ignore[arg-type]


@asynccontextmanager
async def model_of(server: ModelServer, **changes: object) -> AsyncIterator[Model]:
    model = open_model(settings_for(server, **changes))
    try:
        yield model
    finally:
        await model.aclose()


async def collect(model: Model, messages: list[Message] = QUESTION, **options: object) -> list[Delta]:
    return [delta async for delta in model.stream(messages, **options)]  # type: ignore[arg-type]

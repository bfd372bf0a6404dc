"""What the tasks of a worker process share: the model, the git client, the workspaces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.clients.git import GitClient
from app.clients.llm import Model, open_model
from app.domains.workspaces import Workspaces
from app.engine.context import Resource, Resources
from app.settings import Settings

MODEL: Resource[Model] = Resource("model")
GIT: Resource[GitClient] = Resource("git client")
WORKSPACES: Resource[Workspaces] = Resource("workspaces")


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Open them for the length of the block. Raises `SettingsError` for settings that cannot be used."""
    model = open_model(settings)
    try:
        yield {MODEL: model, GIT: GitClient.from_settings(settings), WORKSPACES: workspaces(settings)}
    finally:
        await model.aclose()


def workspaces(settings: Settings) -> Workspaces:
    """The workspaces of this host."""
    return Workspaces(settings.data_dir / "workspaces")

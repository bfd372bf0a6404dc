"""What the tasks of a worker process share: the model (within its quotas), the git client, the workspaces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from app.clients.git import GitClient
from app.clients.llm import Estimate, Model, open_model
from app.domains.workspaces import Workspaces
from app.engine.context import TaskContext
from app.engine.lending import Resource, Resources
from app.engine.limits import Quota
from app.settings import Settings

_MODEL: Resource[Model] = Resource("model")
REPLY_TOKENS = 1_024
"""What is reserved for a reply whose length nobody bounds."""
GIT: Resource[GitClient] = Resource("git client")
WORKSPACES: Resource[Workspaces] = Resource("workspaces")


@asynccontextmanager
async def open_resources(settings: Settings) -> AsyncIterator[Resources]:
    """Open them for the length of the block. Raises `SettingsError` for settings that cannot be used."""
    model = open_model(settings)
    try:
        yield {_MODEL: model, GIT: GitClient.from_settings(settings), WORKSPACES: workspaces(settings)}
    finally:
        await model.aclose()


def model_of(ctx: TaskContext) -> Model:
    """The model, for a task: the only way to one. Each request reserves its quota before it and settles it after it.

    The key is `llm:<model>`, or `embedding:<model>`; where that has no limits of its own, `llm` or `embedding`.
    """
    return ctx.use(_MODEL).metered(partial(_reserved, ctx))


def _reserved(ctx: TaskContext, estimate: Estimate) -> AbstractAsyncContextManager[Quota]:
    key = f"{estimate.kind}:{estimate.model}"
    if estimate.reply_tokens is None:
        return ctx.quota(key, tokens=estimate.prompt_tokens, spare=REPLY_TOKENS)
    return ctx.quota(key, tokens=estimate.prompt_tokens + estimate.reply_tokens)


def workspaces(settings: Settings) -> Workspaces:
    """The workspaces of this host."""
    return Workspaces(settings.data_dir / "workspaces")

"""Tasks of repositories."""

from __future__ import annotations

from app.domains.repositories.models import ClonedRepository, CloneRepository, Digest, DigestRepository
from app.domains.repositories.service import clone_repository, digest_repository
from app.domains.resources import GIT, WORKSPACES, model_of
from app.engine.context import TaskContext
from app.engine.registry import task


@task("git.clone", queue="git")
async def clone(ctx: TaskContext, params: CloneRepository) -> ClonedRepository:
    """Clone a repository into a workspace on the worker's host."""
    return await clone_repository(ctx, ctx.use(GIT), ctx.use(WORKSPACES), params)


@task("git.digest", queue="git")
async def digest(ctx: TaskContext, params: DigestRepository) -> Digest:
    """Say what a repository is, how it is built and what changed lately, each statement with its file or commit."""
    return await digest_repository(ctx, ctx.use(GIT), model_of(ctx), ctx.use(WORKSPACES), params)

"""Workspaces: a checkout of one repository that belongs to one task.

A workspace is made beside its place and renamed into it when it is whole. Its objects are hard links into the mirror
where the file system allows, its `origin` is the remote's own URL. Code of the repository may have run in a workspace,
so its `.git/config` is not trusted: no command that is given credentials runs inside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from app.clients.git_mirror import Mirror, remove_tree
from app.clients.git_remote import COMMITS, TAGS
from app.clients.git_runner import GitRunner
from app.clients.git_url import RepositoryUrl, Scheme, parse_repository_url
from app.errors import Conflict, InvalidInput

_REMOTE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
EMPTY_BRANCH = "main"
"""The branch that is checked out, without a commit, in the workspace of an empty repository."""


@dataclass(frozen=True, slots=True)
class Clone:
    """A fresh workspace."""

    workspace: Path
    url: str
    """Canonical; holds no secret."""
    head: str | None
    """The id of the commit that is checked out; None: the repository is empty."""
    default_branch: str | None
    """What the remote's HEAD names; None when it names a commit, or nothing because the repository is empty."""
    branch: str | None
    """The branch that is checked out, without a commit when the repository is empty; None at a tag or a commit."""

    @property
    def empty(self) -> bool:
        """Whether the repository has no commit to check out."""
        return self.head is None


def check_destination(into: Path) -> None:
    """Raise `Conflict` unless `into` is free: absent, or an empty directory."""
    if into.is_symlink() or (into.exists() and not (into.is_dir() and not any(into.iterdir()))):
        raise Conflict(f"workspace {str(into)!r}: expected a path where nothing is yet")


async def make_workspace(mirror: Mirror, into: Path) -> str:
    """Check what is wanted out of an opened mirror and return its commit id. Leaves nothing behind when it fails."""
    partial = _beside(into)
    runner, wanted = mirror.runner, mirror.wanted
    try:
        head = await runner.text("rev-parse", "--verify", f"{wanted.ref}^{{commit}}", cwd=mirror.path)
        names = (str(mirror.path), str(partial))
        command = ("clone", "--quiet", "--local", "--no-checkout", "--origin=origin", "--", *names)
        await runner.run(*command, cwd=mirror.path, protocol=Scheme.FILE)
        await runner.run("config", "remote.origin.url", mirror.url.canonical, cwd=partial)
        if wanted.branch is None and not wanted.ref.startswith(TAGS):
            await _bring(runner, mirror.path, partial, wanted.ref)
        target = ("-B", wanted.branch) if wanted.branch else ("--detach",)
        command = ("checkout", "--progress", "--force", *target, head, "--")
        await runner.run(*command, cwd=partial, on_progress=mirror.on_progress)
        partial.rename(into)
    finally:
        await remove_tree(partial)
    return head


async def make_empty_workspace(runner: GitRunner, url: RepositoryUrl, into: Path) -> None:
    """Make the workspace of a repository without commits."""
    partial = _beside(into)
    try:
        partial.mkdir(parents=True)
        await runner.run("init", "--quiet", f"--initial-branch={EMPTY_BRANCH}", cwd=partial)
        await runner.run("remote", "add", "--", "origin", url.canonical, cwd=partial)
        partial.rename(into)
    finally:
        await remove_tree(partial)


async def remote_of(runner: GitRunner, workspace: Path, remote: str, *, allow_file: bool) -> RepositoryUrl:
    """The repository behind a remote's name or URL. What the workspace has configured must keep the rules, too."""
    if not _REMOTE_NAME.fullmatch(remote):
        return parse_repository_url(remote, allow_file=allow_file)
    url = await runner.text("config", "--get", f"remote.{remote}.url", cwd=workspace, accept=(0, 1))
    if not url:
        raise InvalidInput(f"workspace {str(workspace)!r}: no remote {remote!r}, expected its name or a URL")
    return parse_repository_url(url, allow_file=allow_file)


async def _bring(runner: GitRunner, mirror: Path, workspace: Path, ref: str) -> None:
    # A clone takes branches and tags only, and from a shallow mirror only what they need.
    name = ref if ref.startswith(COMMITS) else f"{COMMITS}{ref.removeprefix('refs/')}"
    options = ("--quiet", "--no-tags", "--update-shallow", "--no-write-fetch-head")
    await runner.run("fetch", *options, "--", str(mirror), f"+{ref}:{name}", cwd=workspace, protocol=Scheme.FILE)


def _beside(into: Path) -> Path:
    into.parent.mkdir(parents=True, exist_ok=True)
    return into.parent / f".{into.name}.{uuid4().hex}.partial"

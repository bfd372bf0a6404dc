"""The git client: repositories of the outside world as workspaces, their history as values, commits on their way back.

It runs the git program. What may be named is decided in `git_url`, what a process sees in `git_environment`, how it
runs and ends in `git_process`, what its failures mean in `git_errors`. Other packages import what they need from here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from app.clients.git_commit import Author, CommitResult, Files, make_commit
from app.clients.git_environment import Credentials
from app.clients.git_mirror import Mirror, mirror_path
from app.clients.git_process import OnProgress, Progress
from app.clients.git_push import ABSENT, PushResult, Rebased, push_head, rebase_onto
from app.clients.git_read import (
    Commit,
    Content,
    EntryKind,
    Text,
    Tree,
    TreeEntry,
    read_content,
    read_diff,
    read_log,
    read_show,
    read_tree,
)
from app.clients.git_remote import BRANCHES, Listing, Wanted, list_remote, resolve
from app.clients.git_runner import GitRunner
from app.clients.git_url import RepositoryUrl, Scheme, check_path, check_ref, check_revision, parse_repository_url
from app.clients.git_workspace import (
    EMPTY_BRANCH,
    Clone,
    check_destination,
    make_empty_workspace,
    make_workspace,
    remote_of,
)
from app.errors import GitFailed, InvalidInput, RefNotFound, RemoteTimeout, SettingsError, UnsafeUrl
from app.settings import Settings
from app.telemetry.measure import measured
from app.telemetry.metrics import GIT_OPERATION_DURATION_S, GIT_OPERATIONS

__all__ = [
    "ABSENT",
    "Author",
    "Clone",
    "Commit",
    "CommitResult",
    "Content",
    "Credentials",
    "EntryKind",
    "Files",
    "GitClient",
    "OnProgress",
    "Progress",
    "PushResult",
    "Rebased",
    "RepositoryUrl",
    "Scheme",
    "Text",
    "Tree",
    "TreeEntry",
    "check_path",
    "check_ref",
    "check_revision",
    "parse_repository_url",
]

MAX_DEPTH: Final = 1_000_000
DEFAULT_TEXT_BYTES: Final = 1024 * 1024
DEFAULT_TREE_ENTRIES: Final = 100_000


class GitClient:
    """Clones, reads, commits and pushes. Stateless between calls; one instance serves any number of tasks at once.

    Every method ends within `timeout_s` (each call may give its own), else it raises `RemoteTimeout`; cancelling it
    ends its git processes. Commands that reach a remote raise `CredentialsRefused`, `RepositoryNotFound`,
    `RefNotFound`, `RemoteStatus`, `RemoteTimeout`, `RemoteUnreachable` or `GitFailed`; names that are refused raise
    `UnsafeUrl` or `InvalidInput` before anything is started.
    """

    def __init__(
        self,
        mirrors: Path,
        *,
        allow_file_urls: bool = False,
        timeout_s: float = 600.0,
        credentials: Sequence[Credentials] = (),
    ) -> None:
        """`mirrors` is the directory of the mirrors; it is made when it is needed and may be shared by processes."""
        self._mirrors = mirrors.resolve()
        self._allow_file = allow_file_urls
        self._timeout_s = timeout_s
        self._runner = GitRunner(self._mirrors / ".home", tuple(credentials))

    @classmethod
    def from_settings(cls, settings: Settings) -> GitClient:
        """The client as the settings describe it. Raises `SettingsError` for a token without a host, or a bad host."""
        given: list[Credentials] = []
        if settings.git_token is not None:
            if not settings.git_token_host:
                raise SettingsError("NIGHTSHIFT_GIT_TOKEN: expected NIGHTSHIFT_GIT_TOKEN_HOST to name its host")
            try:
                given.append(Credentials(settings.git_token_host, settings.git_token))
            except (UnsafeUrl, InvalidInput) as error:
                raise SettingsError(f"NIGHTSHIFT_GIT_TOKEN_HOST, NIGHTSHIFT_GIT_TOKEN: {error.detail}") from error
        return cls(
            settings.data_dir / "mirrors",
            allow_file_urls=settings.git_allow_file_urls,
            timeout_s=settings.git_timeout_s,
            credentials=given,
        )

    async def clone(
        self,
        url: str,
        into: Path,
        *,
        ref: str | None = None,
        depth: int | None = None,
        on_progress: OnProgress | None = None,
        timeout_s: float | None = None,
    ) -> Clone:
        """Check a repository out into `into`, by way of its mirror.

        `ref` is a branch, a tag, a full `refs/...` or a full commit id; by default what the remote's HEAD names.
        `depth` is how many commits of history are wanted; by default all. An empty repository gives an empty
        workspace (`Clone.empty`). `into` must be absent or an empty directory, else `Conflict`; on failure it stays
        that way.
        """
        repository = parse_repository_url(url, allow_file=self._allow_file)
        if ref is not None:
            check_ref(ref)
        if depth is not None and not 1 <= depth <= MAX_DEPTH:
            raise InvalidInput(f"depth {depth}: expected 1 to {MAX_DEPTH} commits")
        check_destination(into)
        async with self._within(f"clone of {repository.canonical}", timeout_s):
            listing = await list_remote(self._runner, repository, ref)
            wanted = resolve(listing, ref, repository)
            if wanted is None:
                await make_empty_workspace(self._runner, repository, into)
                return Clone(into, repository.canonical, None, None, EMPTY_BRANCH)
            mirror = self._mirror(repository, depth, listing, wanted, on_progress)
            head = await _check_out(mirror, into)
            return Clone(into, repository.canonical, head, listing.default_branch, wanted.branch)

    async def log(
        self,
        workspace: Path,
        limit: int,
        *,
        since: datetime | None = None,
        revision: str = "HEAD",
        timeout_s: float | None = None,
    ) -> list[Commit]:
        """The newest `limit` commits, those committed before `since` left out; none in an empty repository.

        Raises `RefNotFound`, and `TooLarge` when they are more than 32 MiB of text.
        """
        async with self._within("log", timeout_s):
            return await read_log(self._runner, workspace, limit, since, revision)

    async def diff(
        self, workspace: Path, a: str, b: str, *, max_bytes: int = DEFAULT_TEXT_BYTES, timeout_s: float | None = None
    ) -> Text:
        """The patch from revision `a` to `b`, marked `truncated` past `max_bytes`. Raises `RefNotFound`."""
        async with self._within("diff", timeout_s):
            return await read_diff(self._runner, workspace, a, b, max_bytes)

    async def show(
        self,
        workspace: Path,
        revision: str,
        path: str | None = None,
        *,
        max_bytes: int = DEFAULT_TEXT_BYTES,
        timeout_s: float | None = None,
    ) -> Text:
        """A commit's message and patch (of one path), marked `truncated` past `max_bytes`. Raises `RefNotFound`."""
        async with self._within("show", timeout_s):
            return await read_show(self._runner, workspace, revision, path, max_bytes)

    async def tree(
        self,
        workspace: Path,
        revision: str = "HEAD",
        *,
        max_entries: int = DEFAULT_TREE_ENTRIES,
        timeout_s: float | None = None,
    ) -> Tree:
        """All files of a revision, marked `truncated` past `max_entries` or 32 MiB of listing. Raises `RefNotFound`."""
        async with self._within("tree", timeout_s):
            return await read_tree(self._runner, workspace, revision, max_entries)

    async def read_file(
        self,
        workspace: Path,
        revision: str,
        path: str,
        *,
        max_bytes: int = DEFAULT_TEXT_BYTES,
        timeout_s: float | None = None,
    ) -> Content:
        """A file as committed, marked `truncated` past `max_bytes`. Raises `RefNotFound`, `PathNotFound`."""
        async with self._within("read_file", timeout_s):
            return await read_content(self._runner, workspace, revision, path, max_bytes)

    async def commit(
        self,
        workspace: Path,
        *,
        message: str,
        author: Author,
        files: Files | None = None,
        patch: str | None = None,
        timeout_s: float | None = None,
    ) -> CommitResult:
        """Commit either `files` or `patch` on top of HEAD, and nothing else that may lie in the workspace.

        `CommitResult.nothing_to_commit` says that HEAD had it all. Raises `InvalidInput`, `PatchRejected`, and
        `TooLarge` past 64 MiB of content.
        """
        async with self._within("commit", timeout_s):
            return await make_commit(self._runner, workspace, files=files, patch=patch, message=message, author=author)

    async def push(
        self,
        workspace: Path,
        branch: str,
        *,
        remote: str = "origin",
        expected_old_head: str | None = None,
        timeout_s: float | None = None,
    ) -> PushResult:
        """Push the workspace's HEAD to `branch` of a remote, given by name or URL. Never a blind force.

        Without `expected_old_head` the branch may be created or moved forward. With a commit id it must be exactly
        there, with `ABSENT` it must not exist. Else `PushRejected`; `PushForbidden` when the remote's rules refuse it.
        """
        async with self._within(f"push to {branch!r}", timeout_s):
            url = await remote_of(self._runner, workspace, remote, allow_file=self._allow_file)
            return await push_head(self._runner, workspace, url, branch, expected_old_head)

    async def rebase(
        self,
        workspace: Path,
        branch: str,
        *,
        committer: Author,
        remote: str = "origin",
        timeout_s: float | None = None,
    ) -> Rebased:
        """Fetch `branch` of a remote and put the workspace's own commits on top of it: what to do after `PushRejected`.

        Raises `MergeConflict` with the files; the workspace is then as it was.
        """
        check_ref(branch)
        async with self._within(f"rebase onto {branch!r}", timeout_s):
            url = await remote_of(self._runner, workspace, remote, allow_file=self._allow_file)
            listing = await list_remote(self._runner, url)
            if BRANCHES + branch not in listing.refs:
                raise RefNotFound(f"{url.canonical}: no branch {branch!r}")
            wanted = Wanted(BRANCHES + branch, BRANCHES + branch)
            async with self._mirror(url, None, listing, wanted).opened() as mirror:
                return await rebase_onto(self._runner, workspace, mirror, branch, committer)

    def _mirror(
        self,
        url: RepositoryUrl,
        depth: int | None,
        listing: Listing,
        wanted: Wanted,
        on_progress: OnProgress | None = None,
    ) -> Mirror:
        path = mirror_path(self._mirrors, url, depth)
        return Mirror(self._runner, path, url, depth, listing, wanted, on_progress)

    @asynccontextmanager
    async def _within(self, what: str, timeout_s: float | None) -> AsyncIterator[None]:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        with measured(GIT_OPERATIONS, GIT_OPERATION_DURATION_S, what.partition(" ")[0]):
            try:
                async with asyncio.timeout(limit_s) as scope:
                    yield
            except TimeoutError as error:
                if not scope.expired():
                    raise
                raise RemoteTimeout(f"git {what}: not done within {limit_s:g} s") from error


async def _check_out(mirror: Mirror, into: Path) -> str:
    async with mirror.opened():
        # A mirror may list its refs and yet have lost objects (a full disk, a power cut): then it is made anew, once.
        with suppress(GitFailed, RefNotFound):
            return await make_workspace(mirror, into)
    async with mirror.opened(renew=True):
        return await make_workspace(mirror, into)

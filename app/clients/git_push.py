"""Pushing a workspace's commit, and moving it onto a remote branch that has moved.

The workspace itself never meets credentials: its configuration may have been changed by code that ran in it. A push
goes out of an empty repository of our own that borrows the workspace's objects; what is fetched comes through the
mirror.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from app.clients.git_commit import Author
from app.clients.git_errors import Failure, classify
from app.clients.git_mirror import remove_tree
from app.clients.git_process import Finished
from app.clients.git_remote import BRANCHES
from app.clients.git_runner import GitRunner
from app.clients.git_url import RepositoryUrl, Scheme, check_ref, is_commit_id
from app.errors import ClientError, InvalidInput, MergeConflict, PushForbidden, PushRejected, RefNotFound

ABSENT = "absent"
"""Expected old head of a branch that must not exist yet."""
_MOVED = ("lock ref", "failed to update ref", "already exists", "fetch first", "reference already")


@dataclass(frozen=True, slots=True)
class PushResult:
    """The remote branch after a push."""

    branch: str
    head: str
    created: bool
    up_to_date: bool
    """The branch had this head before; nothing was sent. So a push that is done again does no harm."""


@dataclass(frozen=True, slots=True)
class Rebased:
    """A workspace whose commits now stand on the remote branch."""

    head: str
    base: str
    """The remote branch's head, which the next push may expect."""


async def push_head(
    runner: GitRunner, workspace: Path, url: RepositoryUrl, branch: str, expected_old_head: str | None
) -> PushResult:
    """Push HEAD of the workspace to `branch`; see `GitClient.push`."""
    target = BRANCHES + _check_branch(branch)
    lease = _lease(target, expected_old_head)
    async with _sender(runner, workspace) as (sender, head):
        command = ("push", "--porcelain", "--no-verify", *lease, "--", url.canonical, f"{head}:{target}")
        left = await runner.run(*command, cwd=sender, url=url, accept=(0, 1))
    flag = _flag(left, target)
    if flag is None or flag.startswith("!") or left.status != 0:
        raise _refusal(runner.failure(command, left, url), url, branch, flag)
    return PushResult(branch, head, created=flag[0] == "*", up_to_date=flag[0] == "=")


async def rebase_onto(runner: GitRunner, workspace: Path, mirror: Path, branch: str, committer: Author) -> Rebased:
    """Put the workspace's own commits on top of what the mirror has as `branch`; see `GitClient.rebase`."""
    upstream = f"refs/remotes/origin/{_check_branch(branch)}"
    options = ("--quiet", "--no-tags", "--update-shallow", "--no-write-fetch-head")
    source = f"+{BRANCHES}{branch}:{upstream}"
    await runner.run("fetch", *options, "--", str(mirror), source, cwd=workspace, protocol=Scheme.FILE)
    await runner.run("rebase", "--abort", cwd=workspace, accept=(0, 1, 128))  # of an attempt that died in the middle
    left = await runner.run("rebase", "--quiet", upstream, cwd=workspace, env=committer.env, accept=(0, 1))
    if left.status != 0:
        raise await _conflict(runner, workspace, branch, left)
    base, head = (await runner.text("rev-parse", upstream, "HEAD", cwd=workspace)).split()
    return Rebased(head, base)


def _check_branch(branch: str) -> str:
    if branch.startswith("refs/"):
        raise InvalidInput(f"branch {branch!r}: expected its short name")
    return check_ref(branch)


def _lease(target: str, expected_old_head: str | None) -> tuple[str, ...]:
    if expected_old_head is None:
        return ()
    if expected_old_head != ABSENT and not is_commit_id(expected_old_head):
        raise InvalidInput(f"expected_old_head {expected_old_head!r}: expected a full commit id or {ABSENT!r}")
    return (f"--force-with-lease={target}:{'' if expected_old_head == ABSENT else expected_old_head}",)


@asynccontextmanager
async def _sender(runner: GitRunner, workspace: Path) -> AsyncIterator[tuple[Path, str]]:
    """An empty bare repository that can read the workspace's objects, and the commit id of its HEAD."""
    head = await runner.text("rev-parse", "--verify", "--quiet", "HEAD^{commit}", cwd=workspace, accept=(0, 1))
    if not head:
        raise RefNotFound(f"workspace {str(workspace)!r}: it has no commit to push")
    paths = ("--git-path", "objects", "--git-path", "shallow", "--show-object-format")
    objects, shallow, object_format = (await runner.text("rev-parse", *paths, cwd=workspace)).split("\n")
    sender = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="nightshift-push-"))
    try:
        await runner.run("init", "--quiet", "--bare", f"--object-format={object_format}", cwd=sender)
        (sender / "objects/info").mkdir(parents=True, exist_ok=True)
        (sender / "objects/info/alternates").write_text(f"{(workspace / objects).resolve()}\n")
        if (workspace / shallow).is_file():
            shutil.copyfile(workspace / shallow, sender / "shallow")
        yield sender, head
    finally:
        await remove_tree(sender)


def _flag(left: Finished, target: str) -> str | None:
    """The porcelain line of the branch: a flag character, then `from:to` and a summary."""
    lines = (line.split("\t") for line in left.stdout.decode(errors="replace").splitlines())
    found = (
        f"{fields[0] or ' '}{fields[2]}" for fields in lines if len(fields) == 3 and fields[1].endswith(f":{target}")
    )
    return next(found, None)


def _refusal(failure: Failure, url: RepositoryUrl, branch: str, flag: str | None) -> ClientError:
    if flag is None or not flag.startswith("!"):
        return classify(failure)
    reason = failure.said(flag[1:])
    where = f"{url.canonical}: branch {branch!r}"
    if reason.startswith("[rejected]") or any(word in reason for word in _MOVED):
        return PushRejected(f"{where} is not where it was expected, nothing was overwritten: {reason}")
    return PushForbidden(f"{where} refuses the push: {reason}; {failure.said(failure.stderr)}")


async def _conflict(runner: GitRunner, workspace: Path, branch: str, left: Finished) -> ClientError:
    names = await runner.text("diff", "--name-only", "-z", "--diff-filter=U", cwd=workspace)
    files = tuple(name for name in names.split("\0") if name)
    await runner.run("rebase", "--abort", cwd=workspace, accept=(0, 1, 128))
    if not files:
        return classify(runner.failure(["rebase"], left))
    return MergeConflict(f"the commits conflict with branch {branch!r} in {', '.join(files[:20])}", files=files)

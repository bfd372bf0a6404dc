"""A bare mirror per repository, shared by all processes of a machine: the second clone moves only what is new.

Protocol:
- The remote is asked for its refs at each use, with the caller's credentials. It thereby decides about access each
  time, and a mirror that has exactly those refs is used as it is.
- A mirror is read under a shared `flock` on `<mirror>.lock` and changed under an exclusive one. The kernel releases the
  lock of a process that dies. The lock file is never removed, for others may wait on it.
- A new mirror is made as `<mirror>.<random>.partial` and renamed when it is whole, so that a mirror with its own name
  is always a complete one. What a dead process left is removed by the next one that holds the lock.
- A mirror that git cannot use any more (a cut write, a lock file of a killed git) is replaced by a new one in the same
  way.
- A clone of limited depth has a mirror of its own, which holds that much history of the refs that were asked for.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from app.clients.git_process import OnProgress
from app.clients.git_remote import BRANCHES, TAGS, Listing, Wanted
from app.clients.git_runner import GitRunner
from app.clients.git_url import RepositoryUrl
from app.errors import GitFailed

_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Mirror:
    """One use of a repository's mirror, which may not exist yet: where it is, and what it is to have."""

    runner: GitRunner
    path: Path
    url: RepositoryUrl
    depth: int | None
    listing: Listing
    wanted: Wanted
    on_progress: OnProgress | None = None

    @asynccontextmanager
    async def opened(self, *, renew: bool = False) -> AsyncIterator[Path]:
        """Bring the mirror up to what the remote listed and keep it unchanged while the block runs.

        `renew` makes it anew. Raises what git says about the remote.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = self.path.with_suffix(".lock")
        async with file_lock(lock, exclusive=False):
            if not renew and await self._is_current():
                yield self.path
                return
        async with file_lock(lock, exclusive=True):
            # Somebody else may have done it meanwhile.
            if renew or not await self._is_current():
                await self._update(renew=renew)
        async with file_lock(lock, exclusive=False):
            yield self.path

    async def _is_current(self) -> bool:
        if not self.path.is_dir():
            return False
        command = ("for-each-ref", "--format=%(objectname)%00%(refname)%00%(HEAD)")
        left = await self.runner.run(*command, cwd=self.path, accept=range(256))
        return left.status == 0 and await asyncio.to_thread(self._has, left.stdout)

    def _has(self, output: bytes) -> bool:
        rows = [line.split("\0") for line in output.decode(errors="replace").splitlines()]
        has = {name: object_id for object_id, name, _ in rows}
        listed = self.listing.refs
        if self.wanted.ref not in has or listed.get(self.wanted.ref, has[self.wanted.ref]) != has[self.wanted.ref]:
            return False
        if self.depth:
            return True
        head = next((name for _, name, marker in rows if marker == "*"), None)
        default = self.listing.default_branch
        return _named(has) == _named(listed) and (default is None or head == BRANCHES + default)

    async def _update(self, *, renew: bool) -> None:
        await self._sweep()
        if not renew and self.path.is_dir():
            with suppress(GitFailed):
                return await self._fetch(self.path)
        # Nothing is there, or git has no name for what is wrong with it. The old one goes when the new one is whole.
        return await self._make()

    async def _make(self) -> None:
        partial = self.path.with_suffix(f".{uuid4().hex}.partial")
        try:
            partial.mkdir()
            await self.runner.run("init", "--quiet", "--bare", f"--object-format={self._object_format}", cwd=partial)
            await self._fetch(partial)
            if self.path.exists():
                self.path.rename(partial.with_suffix(".old"))
            partial.rename(self.path)
        finally:
            await self._sweep()

    async def _fetch(self, path: Path) -> None:
        options = ["--progress", "--force", "--no-tags", "--update-shallow", "--no-write-fetch-head"]
        specs = [f"+{self.wanted.source}:{self.wanted.ref}"]
        if self.depth:
            options.append(f"--depth={self.depth}")
        else:
            options.append("--prune")
            everything = [f"+{BRANCHES}*:{BRANCHES}*", f"+{TAGS}*:{TAGS}*"]
            specs = everything if self.wanted.ref.startswith((BRANCHES, TAGS)) else everything + specs
        command = ("fetch", *options, "--", self.url.canonical, *specs)
        await self.runner.run(*command, cwd=path, url=self.url, on_progress=self.on_progress)
        if self.listing.default_branch:
            await self.runner.run("symbolic-ref", "HEAD", BRANCHES + self.listing.default_branch, cwd=path)

    async def _sweep(self) -> None:
        """Remove what makers of this mirror left behind; only the holder of the exclusive lock may."""
        for pattern in (f"{self.path.stem}.*.partial", f"{self.path.stem}.*.old"):
            for left in list(self.path.parent.glob(pattern)):
                await remove_tree(left)

    @property
    def _object_format(self) -> str:
        sample = self.listing.head or next(iter(self.listing.refs.values()), "")
        return "sha256" if len(sample) == 64 else "sha1"


def mirror_path(root: Path, url: RepositoryUrl, depth: int | None) -> Path:
    """Where the mirror of a repository is: `<root>/<host>/<name>-<digest>[-depth-<n>].git`."""
    host = url.authority.replace(":", "_") or "local"
    name = re.sub(r"[^A-Za-z0-9_-]", "_", url.name)[:40]
    digest = hashlib.sha256(f"{url.scheme} {url.canonical}".encode()).hexdigest()[:16]
    suffix = f"-depth-{depth}" if depth else ""
    return root / host / f"{name}-{digest}{suffix}.git"


@asynccontextmanager
async def file_lock(path: Path, *, exclusive: bool) -> AsyncIterator[None]:
    """Hold a lock that all processes of the machine respect. Waiting costs neither the loop nor a thread.

    A waiter asks again after 5 to 100 ms: a blocking `flock` would hold a thread of the small default pool, and could
    not be cancelled.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    kind = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    pause_s = _FIRST_PAUSE_S
    try:
        while not _took(handle, kind):
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        yield
    finally:
        os.close(handle)


async def remove_tree(path: Path) -> None:
    """Delete a directory off the loop. What cannot be deleted stays for the next one who tries."""
    await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)


def _named(refs: dict[str, str]) -> dict[str, str]:
    return {name: object_id for name, object_id in refs.items() if name.startswith((BRANCHES, TAGS))}


def _took(handle: int, kind: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(handle, kind)
        return True
    return False

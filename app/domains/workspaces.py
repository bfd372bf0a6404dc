"""Directories in which tasks work: one per task, named after it, on the disk of the worker's host."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
MIN_AGE_S = 2 * 3600.0
"""A younger workspace is never removed: a task may be at work in it."""


class Workspaces:
    """The workspaces below one directory, which is made when it is needed, readable by its owner only."""

    def __init__(self, root: Path) -> None:
        # git runs elsewhere: a relative path would mean another place there.
        self._root = root.absolute()

    async def fresh(self, name: str) -> Path:
        """The path of an absent workspace for a task; what an earlier attempt left there is removed.

        It is called like the task's id, or, where that is no plain name (those of arq clients may be anything), like
        the id's digest.
        """
        path = self._root / (name if NAME.fullmatch(name) else hashlib.sha256(name.encode()).hexdigest())
        await asyncio.to_thread(self._clear, path)
        return path

    @asynccontextmanager
    async def temporary(self, name: str) -> AsyncIterator[Path]:
        """A fresh workspace that is removed at the end of the block."""
        path = await self.fresh(name)
        try:
            yield path
        finally:
            # Shielded, so that a cancelled task leaves nothing behind.
            await asyncio.shield(asyncio.to_thread(self._clear, path))

    async def remove_older_than(self, age_s: float) -> int:
        """Remove the workspaces whose directory changed longer than `age_s` seconds ago, `MIN_AGE_S` at least; how
        many there were."""
        return await asyncio.to_thread(self._remove_older_than, time.time() - max(age_s, MIN_AGE_S))

    def _clear(self, path: Path) -> None:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.exists():
            shutil.rmtree(path)

    def _remove_older_than(self, moment: float) -> int:
        old = [path for path in self._root.glob("*") if _changed_at(path) < moment]
        for path in old:
            shutil.rmtree(path, ignore_errors=True)
        return len(old)


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another worker of this host removes old ones in the same minute
        return time.time()

"""A person's machine: `python -m app.dev` as it is run there, and what it leaves."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import PATIENCE_S

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Machine:
    """A person's machine: an empty home, a working directory, an environment with little in it."""

    home: Path
    data_dir: Path

    def environment(self, **settings: object) -> dict[str, str]:
        given = {f"NIGHTSHIFT_{name.upper()}": str(value) for name, value in settings.items()}
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "PYTHONPATH": str(ROOT),
            "NIGHTSHIFT_DATA_DIR": str(self.data_dir),
            **given,
        }

    @asynccontextmanager
    async def start(
        self, *arguments: str, env: dict[str, str] | None = None, **settings: object
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """`python -m app.dev ARGUMENTS`, killed at the end of the block if it still runs."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "app.dev", *arguments),
            cwd=self.home,
            env=self.environment(**settings) | (env or {}),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def run(
        self, *arguments: str, env: dict[str, str] | None = None, **settings: object
    ) -> tuple[int | None, str, str]:
        """The same to its end: exit code, standard output and standard error."""
        async with asyncio.timeout(PATIENCE_S), self.start(*arguments, env=env, **settings) as process:
            out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()


def processes_of(data_dir: Path) -> list[str]:
    """The command lines of all processes that name the directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(data_dir) in line:
            found.append(line)
    return found


async def url_of(process: asyncio.subprocess.Process) -> str:
    """Wait until the service says where it is."""
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        while line := (await process.stdout.readline()).decode():
            if found := re.search(r"dashboard +(http://\S+)/", line):
                return found[1]
    raise AssertionError((await process.communicate())[1].decode())

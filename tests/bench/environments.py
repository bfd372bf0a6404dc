"""The peers' environments: `.bench/<peer>`, made with venv and pip from `requirements/<peer>.lock`, once."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.processes import ROOT, BenchError, run_quietly

LOCKS = Path(__file__).parent / "requirements"
INSTALL_S = 300.0


@dataclass(frozen=True)
class Contestant:
    """Who takes part. `tasks`: how many a drain of it takes, so that it lasts some seconds."""

    name: str
    module: str
    tasks: int
    environment: str | None = None
    env: dict[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        """The interpreter that runs it."""
        if self.environment is None:
            return Path(sys.executable)
        return ROOT / ".bench" / self.environment / ("Scripts" if os.name == "nt" else "bin") / "python"


OURS = Contestant("nightshift", "nightshift", 20_000)
PEERS = (
    Contestant("arq", "arq", 1_200, "arq"),
    Contestant("arq, 10 ms poll", "arq", 5_000, "arq", {"NIGHTSHIFT_BENCH_POLL_S": "0.01"}),
    Contestant("saq", "saq", 4_000, "saq"),
    Contestant("taskiq", "taskiq", 4_000, "taskiq"),
    Contestant("streaq", "streaq", 4_000, "streaq"),
)


async def prepare(name: str, say: Callable[[str], None]) -> None:
    """Make a peer's environment unless it stands there as its lock wants it. Raises `BenchError` when that fails."""
    lock = LOCKS / f"{name}.lock"
    folder = ROOT / ".bench" / name
    mark = folder / "installed"
    # The interpreter is part of it: another Python needs another environment.
    wanted = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    if mark.is_file() and mark.read_text() == wanted:
        return
    say(f"installing {name}")
    await run_quietly(sys.executable, "-m", "venv", "--clear", folder, timeout_s=INSTALL_S)
    python = next(path for path in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if path.exists())
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", lock)
    await run_quietly(python, *pip, timeout_s=INSTALL_S)
    mark.write_text(wanted)


def version_of(name: str) -> str:
    """The version of a peer that its lock names."""
    for line in (LOCKS / f"{name}.lock").read_text().splitlines():
        package, found, rest = line.partition("==")
        if found and package == name:
            return rest.split()[0]
    raise BenchError(f"the lock of {name} does not name it")

"""Real git repositories for tests, made with the git program and nothing of the machine's configuration."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

AUTHOR_NAME = "Ada"
AUTHOR_EMAIL = "ada@example.org"
_ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_NAME": AUTHOR_NAME,
    "GIT_AUTHOR_EMAIL": AUTHOR_EMAIL,
    "GIT_COMMITTER_NAME": AUTHOR_NAME,
    "GIT_COMMITTER_EMAIL": AUTHOR_EMAIL,
    "LC_ALL": "C",
}


def git(cwd: Path, *args: str, stdin: str | None = None, env: Mapping[str, str] | None = None) -> str:
    """Run git and return its output without the last line end. Raises `CalledProcessError`."""
    done = subprocess.run(
        ["git", *args], cwd=cwd, env=_ENV | dict(env or {}), input=stdin, capture_output=True, text=True, check=True
    )
    return done.stdout.removesuffix("\n")


def commit_files(repository: Path, files: Mapping[str, str | bytes], message: str, *, at: int = 1_700_000_000) -> str:
    """Write files into a checkout and commit everything in it, at so many seconds since the epoch. Returns the id."""
    for name, content in files.items():
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    git(repository, "add", "--all")
    date = f"{at} +0000"
    env = {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    git(repository, "commit", "--quiet", "--allow-empty", "-m", message, env=env)
    return git(repository, "rev-parse", "HEAD")


def make_checkout(path: Path, branch: str = "main") -> Path:
    """An empty repository with a working tree."""
    path.mkdir(parents=True)
    git(path, "init", "--quiet", f"--initial-branch={branch}")
    return path


def make_bare(path: Path, branch: str = "main") -> Path:
    """An empty repository that can be pushed to."""
    path.mkdir(parents=True)
    git(path, "init", "--quiet", "--bare", f"--initial-branch={branch}")
    return path


def publish(checkout: Path, bare: Path) -> None:
    """Push all branches and tags of a checkout."""
    git(checkout, "push", "--quiet", "--force", str(bare), "refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*")

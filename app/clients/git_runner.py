"""git commands with the environment they need, their failures as typed errors, their secrets kept out of both."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.clients.git_environment import Credentials, environment, make_home
from app.clients.git_errors import Failure, classify
from app.clients.git_process import Finished, OnProgress, run_git, subcommand
from app.clients.git_url import RepositoryUrl, Scheme

MAX_OUTPUT_BYTES: Final = 64 * 1024 * 1024
"""Bound on the output of commands whose caller names none, such as the list of a remote's refs."""


@dataclass(frozen=True, slots=True)
class GitRunner:
    """Runs git with one HOME and one set of credentials. Commands get the time limit of the task that awaits them."""

    home: Path
    credentials: tuple[Credentials, ...] = ()

    def credentials_for(self, url: RepositoryUrl | None) -> Credentials | None:
        """The credentials that may be shown to the repository's host."""
        return next((item for item in self.credentials if url and item.match(url)), None)

    async def run(
        self,
        *args: str,
        cwd: Path | None = None,
        url: RepositoryUrl | None = None,
        protocol: Scheme | None = None,
        env: dict[str, str] | None = None,
        stdin: bytes = b"",
        max_bytes: int = MAX_OUTPUT_BYTES,
        cut: bool = False,
        accept: Collection[int] = (0,),
        on_progress: OnProgress | None = None,
    ) -> Finished:
        """Run one command in `cwd` (default: a directory that is no repository) and return what it left.

        Only commands that are given `url` may reach its host, with the credentials for it. Raises `TooLarge` past
        `max_bytes` unless `cut`, and the error that describes an exit status outside `accept`.
        """
        if not (self.home / ".gitconfig").exists():
            make_home(self.home)
        where = cwd or self.home
        given = self.credentials_for(url)
        variables = environment(self.home, url=url, credentials=given, protocol=protocol)
        # Without it a directory that is no repository would stand for the repository around it.
        variables["GIT_CEILING_DIRECTORIES"] = str(where.absolute().parent)
        left = await run_git(
            args,
            cwd=where,
            env=variables | (env or {}),
            max_bytes=max_bytes,
            cut=cut,
            stdin=stdin,
            on_progress=on_progress,
        )
        if left.status not in accept and not left.truncated:
            raise classify(self.failure(args, left, url))
        return left

    def failure(self, args: Sequence[str], left: Finished, url: RepositoryUrl | None = None) -> Failure:
        """A finished command as a failure to be classified."""
        given = self.credentials_for(url)
        secret = given.token.get_secret_value() if given else ""
        return Failure(subcommand(args), left.status, left.stderr, url, secret)

    async def text(self, *args: str, cwd: Path, accept: Collection[int] = (0,)) -> str:
        """The output of a local command as text without its last line end."""
        return (await self.run(*args, cwd=cwd, accept=accept)).stdout.decode(errors="replace").rstrip("\n")

"""ssh, with a program of that name in the place of the real one: no network, but git's own side of the protocol."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.clients.git import Author, Credentials, GitClient
from app.errors import CredentialsRefused, GitFailed, RemoteUnreachable, RepositoryNotFound
from tests.fakes.repositories import commit_files, git, make_bare, make_checkout, publish

# Runs what the far end would run, in the directory that is the login's home there.
PROGRAM = """\
#!/bin/sh
printf '%s\\n' "$@" >> {log}
env >> {log}
for last in "$@"; do :; done
cd {home} && eval "$last"
"""


class Ssh:
    """The stand-in: answers with a message and a status, or serves the repositories in `home`."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "far"
        self.log = directory / "ssh.log"
        self.bin = directory / "bin"
        self.home.mkdir()
        self.bin.mkdir()
        self._write(PROGRAM.format(log=self.log, home=self.home))

    def refuse(self, message: str) -> None:
        self._write(f"#!/bin/sh\necho '{message}' >&2\nexit 255\n")

    def _write(self, text: str) -> None:
        (self.bin / "ssh").write_text(text)
        (self.bin / "ssh").chmod(0o755)


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ssh:
    made = Ssh(tmp_path)
    monkeypatch.setenv("PATH", f"{made.bin}:{os.environ['PATH']}")
    return made


@pytest.fixture
def client(tmp_path: Path) -> GitClient:
    return GitClient(tmp_path / "mirrors", timeout_s=30, credentials=[Credentials("h.example", SecretStr("s3cr3t"))])


@pytest.fixture
def served(ssh: Ssh, tmp_path: Path) -> Path:
    checkout = make_checkout(tmp_path / "origin")
    commit_files(checkout, {"a": "a"}, "First")
    path = make_bare(ssh.home / "team/app.git")
    publish(checkout, path)
    return path


async def test_a_repository_behind_ssh_is_cloned_and_pushed_to(
    client: GitClient, ssh: Ssh, served: Path, tmp_path: Path
) -> None:
    for number, url in enumerate(("git@h.example:team/app.git", f"ssh://git@h.example:2222{served}")):
        cloned = await client.clone(url, tmp_path / f"w{number}")
        made = await client.commit(
            cloned.workspace, files={f"x{number}": b"x"}, message="X", author=Author("Ada", "a@b.c")
        )
        await client.push(cloned.workspace, "main")
        assert git(served, "rev-parse", "main") == made.id
    said = ssh.log.read_text().splitlines()
    assert {"-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "git@h.example", "2222"} <= set(said)
    assert "git-upload-pack 'team/app.git'" in said
    assert "s3cr3t" not in ssh.log.read_text()


@pytest.mark.parametrize(
    ("message", "kind", "says"),
    [
        ("git@h.example: Permission denied (publickey).", CredentialsRefused, "ssh key"),
        ("Host key verification failed.", GitFailed, "known_hosts"),
        ("ssh: connect to host h.example port 22: Connection refused", RemoteUnreachable, "refused"),
        ("ERROR: Repository not found.", RepositoryNotFound, "team/app"),
    ],
)
async def test_what_ssh_says_becomes_an_error(
    client: GitClient, ssh: Ssh, tmp_path: Path, message: str, kind: type[Exception], says: str
) -> None:
    ssh.refuse(message)
    with pytest.raises(kind, match=says):
        await client.clone("git@h.example:team/app.git", tmp_path / "a")

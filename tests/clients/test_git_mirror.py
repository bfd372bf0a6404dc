"""Mirrors: the second clone is cheap, a half-made or damaged one is made anew, processes take turns."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.clients.git import GitClient
from app.clients.git_mirror import file_lock, mirror_path
from app.clients.git_url import parse_repository_url
from app.errors import ClientError, CredentialsRefused, RepositoryNotFound
from tests.fakes.git_server import Answer, GitServer
from tests.fakes.repositories import commit_files, git, make_bare, make_checkout, publish
from tests.fakes.tls import make_certificate

REPOSITORY = "team/app.git"


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """The checkout from which the served repository is published."""
    path = make_checkout(tmp_path / "origin")
    commit_files(path, {"README.md": "# App\n"}, "First")
    return path


@pytest.fixture
def server(origin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitServer]:
    publish(origin, make_bare(tmp_path / "served" / REPOSITORY))
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
    monkeypatch.setenv("NO_PROXY", "localhost")
    with GitServer(tmp_path / "served", certificate) as running:
        yield running


@pytest.fixture
def client(tmp_path: Path) -> GitClient:
    return GitClient(tmp_path / "mirrors", timeout_s=30)


def mirror_for(server: GitServer, tmp_path: Path, depth: int | None = None) -> Path:
    return mirror_path(tmp_path / "mirrors", parse_repository_url(server.url(REPOSITORY), allow_file=False), depth)


def fetches(server: GitServer) -> int:
    return sum(b"command=fetch" in request.body for request in server.requests)


async def moved(origin: Path, server: GitServer) -> str:
    """Publish one more commit."""
    head = commit_files(origin, {"more": "more\n"}, "More")
    publish(origin, server.root / REPOSITORY)
    return head


@pytest.mark.parametrize("depth", [None, 1])
async def test_the_second_clone_asks_for_the_refs_and_fetches_nothing(
    client: GitClient, server: GitServer, tmp_path: Path, depth: int | None
) -> None:
    first = await client.clone(server.url(REPOSITORY), tmp_path / "a", depth=depth)
    assert fetches(server) == 1
    second = await client.clone(server.url(REPOSITORY), tmp_path / "b", depth=depth)
    assert fetches(server) == 1
    assert first.head == second.head
    assert (tmp_path / "b" / "README.md").exists()


@pytest.mark.parametrize("depth", [None, 1])
async def test_a_clone_has_what_the_remote_has_now(
    client: GitClient, server: GitServer, origin: Path, tmp_path: Path, depth: int | None
) -> None:
    await client.clone(server.url(REPOSITORY), tmp_path / "a", depth=depth)
    head = await moved(origin, server)
    assert (await client.clone(server.url(REPOSITORY), tmp_path / "b", depth=depth)).head == head


async def test_branches_that_appear_vanish_or_are_rewritten_are_followed(
    client: GitClient, server: GitServer, origin: Path, tmp_path: Path
) -> None:
    served = server.root / REPOSITORY
    git(origin, "branch", "old/branch")
    publish(origin, served)
    await client.clone(server.url(REPOSITORY), tmp_path / "a")
    # A branch may become a directory of branches, and main another history.
    git(served, "branch", "-D", "old/branch")
    git(origin, "branch", "-D", "old/branch")
    git(origin, "branch", "old")
    git(origin, "checkout", "--quiet", "--orphan", "new")
    head = commit_files(origin, {"x": "x"}, "Rewritten")
    git(origin, "branch", "-M", "new", "main")
    publish(origin, served)
    work = (await client.clone(server.url(REPOSITORY), tmp_path / "b")).workspace
    assert git(work, "rev-parse", "HEAD") == head
    assert git(work, "for-each-ref", "--format=%(refname)", "refs/remotes").split() == [
        "refs/remotes/origin/HEAD",
        "refs/remotes/origin/main",
        "refs/remotes/origin/old",
    ]


async def test_another_default_branch_is_followed(
    client: GitClient, server: GitServer, origin: Path, tmp_path: Path
) -> None:
    git(origin, "branch", "trunk")
    publish(origin, server.root / REPOSITORY)
    assert (await client.clone(server.url(REPOSITORY), tmp_path / "a")).default_branch == "main"
    git(server.root / REPOSITORY, "symbolic-ref", "HEAD", "refs/heads/trunk")
    again = await client.clone(server.url(REPOSITORY), tmp_path / "b")
    assert (again.default_branch, again.branch) == ("trunk", "trunk")
    assert git(again.workspace, "symbolic-ref", "refs/remotes/origin/HEAD") == "refs/remotes/origin/trunk"


async def test_the_host_decides_about_access_each_time(client: GitClient, server: GitServer, tmp_path: Path) -> None:
    await client.clone(server.url(REPOSITORY), tmp_path / "a")
    server.users["ada"] = "s3cr3t"
    with pytest.raises(CredentialsRefused):
        await client.clone(server.url(REPOSITORY), tmp_path / "b")
    server.answers["/"] = Answer(404)
    with pytest.raises(RepositoryNotFound):
        await client.clone(server.url(REPOSITORY), tmp_path / "b")


async def test_clones_at_once_make_one_mirror(client: GitClient, server: GitServer, tmp_path: Path) -> None:
    await asyncio.gather(*(client.clone(server.url(REPOSITORY), tmp_path / f"w{number}") for number in range(6)))
    assert fetches(server) == 1


async def test_what_a_killed_maker_left_is_removed(client: GitClient, server: GitServer, tmp_path: Path) -> None:
    mirror = mirror_for(server, tmp_path)
    shallow = mirror_for(server, tmp_path, depth=1)
    left = [mirror.with_suffix(".0123.partial"), mirror.with_suffix(".4567.old")]
    other = shallow.with_suffix(".89ab.partial")
    for path in (*left, other):
        (path / "objects").mkdir(parents=True)
    await client.clone(server.url(REPOSITORY), tmp_path / "a")
    assert mirror.is_dir()
    assert not [path for path in left if path.exists()]
    assert other.exists(), "another mirror's maker may be at work"


@pytest.mark.parametrize(
    "damage",
    [
        "rm -r objects/* && mkdir -p objects/info objects/pack",
        "rm HEAD",
        "touch packed-refs.lock shallow.lock HEAD.lock",
        "for f in objects/pack/*.pack objects/??/*; do test -f $f && chmod u+w $f && : > $f; done; true",
    ],
    ids=["objects lost", "head lost", "locks left", "objects cut"],
)
@pytest.mark.parametrize("new", [False, True], ids=["as it was", "moved on"])
async def test_a_damaged_mirror_is_made_anew(
    client: GitClient, server: GitServer, origin: Path, tmp_path: Path, damage: str, new: bool
) -> None:
    first = await client.clone(server.url(REPOSITORY), tmp_path / "a")
    process = await asyncio.create_subprocess_shell(damage, cwd=mirror_for(server, tmp_path))
    assert await process.wait() == 0
    head = await moved(origin, server) if new else first.head
    second = await client.clone(server.url(REPOSITORY), tmp_path / "b")
    assert second.head == head
    assert git(second.workspace, "fsck", "--no-progress") == ""


async def test_a_mirror_survives_a_remote_that_fails(
    client: GitClient, server: GitServer, origin: Path, tmp_path: Path
) -> None:
    await client.clone(server.url(REPOSITORY), tmp_path / "a")
    mirror = mirror_for(server, tmp_path)
    inode = mirror.stat().st_ino
    head = await moved(origin, server)
    server.fetches = Answer(418, {}, b"I am a teapot")
    with pytest.raises(ClientError):
        await client.clone(server.url(REPOSITORY), tmp_path / "b")
    server.fetches = None
    assert (await client.clone(server.url(REPOSITORY), tmp_path / "b")).head == head
    assert mirror.stat().st_ino == inode


async def test_a_lock_is_shared_by_readers_and_excludes_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    async with file_lock(path, exclusive=False), file_lock(path, exclusive=False):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), file_lock(path, exclusive=True):
                pytest.fail("a writer came in")
    async with asyncio.timeout(5), file_lock(path, exclusive=True):
        pass


async def test_a_lock_of_another_process_is_waited_for_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        f"import fcntl; f = open({str(path)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert holder.stdout
    assert await asyncio.wait_for(holder.stdout.readline(), 10) == b"held\n"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), file_lock(path, exclusive=False):
            pytest.fail("the other process holds it")
    holder.kill()
    async with asyncio.timeout(5), file_lock(path, exclusive=True):
        pass
    await holder.communicate()


def test_each_repository_and_depth_has_a_mirror_of_its_own() -> None:
    urls = [
        "https://h/a/b",
        "https://h/a/b.git",
        "https://h:8443/a/b",
        "ssh://git@h/a/b",
        "git@h:a/b",
        "https://h2/a/b",
    ]
    urls += ["/h/a/b", "/h/a_b", "/h/a b", "/srv/日本"]
    root = Path("/m")
    parsed = [parse_repository_url(url, allow_file=True) for url in urls]
    paths = {mirror_path(root, url, depth) for url in parsed for depth in (None, 1, 10)}
    assert len(paths) == 3 * len(urls)
    assert all(path.parent.parent == root and path.name.isascii() for path in paths)

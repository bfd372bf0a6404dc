"""Pushing without ever overwriting what somebody else did, and catching up with a branch that moved."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.clients.git import ABSENT, Author, GitClient
from app.errors import (
    GitFailed,
    InvalidInput,
    MergeConflict,
    PushForbidden,
    PushRejected,
    RefNotFound,
    RepositoryNotFound,
    UnsafeUrl,
)
from tests.fakes.git_server import GitServer
from tests.fakes.repositories import commit_files, git, make_bare, make_checkout, publish
from tests.fakes.tls import make_certificate

ADA = Author("Ada", "ada@example.org")


@pytest.fixture
def client(tmp_path: Path) -> GitClient:
    return GitClient(tmp_path / "mirrors", allow_file_urls=True, timeout_s=30)


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A bare repository with two commits on main."""
    checkout = make_checkout(tmp_path / "origin")
    commit_files(checkout, {"a.txt": "one\ntwo\nthree\n"}, "First")
    commit_files(checkout, {"b.txt": "b\n"}, "Second")
    path = make_bare(tmp_path / "remote.git")
    publish(checkout, path)
    return path


@pytest.fixture
async def work(client: GitClient, remote: Path, tmp_path: Path) -> Path:
    """A workspace of it with one commit more."""
    workspace = (await client.clone(str(remote), tmp_path / "work")).workspace
    await client.commit(workspace, files={"mine.txt": b"mine\n"}, message="Mine", author=ADA)
    return workspace


def head_of(repository: Path, revision: str = "HEAD") -> str:
    return git(repository, "rev-parse", revision)


def somebody_pushes(remote: Path, tmp_path: Path, files: dict[str, str]) -> str:
    """Another clone of the repository pushes a commit to main."""
    other = tmp_path / "other"
    if not other.exists():
        git(tmp_path, "clone", "--quiet", str(remote), str(other))
    head = commit_files(other, files, "Theirs")
    git(other, "push", "--quiet", "origin", "HEAD:main")
    return head


async def test_a_branch_is_moved_forward(client: GitClient, work: Path, remote: Path) -> None:
    pushed = await client.push(work, "main")
    assert pushed.head == head_of(work) == head_of(remote, "main")
    assert (pushed.branch, pushed.created, pushed.up_to_date) == ("main", False, False)


async def test_a_new_branch_is_created(client: GitClient, work: Path, remote: Path) -> None:
    pushed = await client.push(work, "work/story-1", expected_old_head=ABSENT)
    assert pushed.created
    assert head_of(remote, "refs/heads/work/story-1") == head_of(work)


async def test_the_same_push_again_sends_nothing(client: GitClient, work: Path, remote: Path) -> None:
    base = head_of(work, "HEAD~1")
    await client.push(work, "main", expected_old_head=base)
    for expected in (base, None, ABSENT):
        again = await client.push(work, "main", expected_old_head=expected)
        assert (again.up_to_date, again.head) == (True, head_of(remote, "main"))


@pytest.mark.parametrize("expected", ["base", None])
async def test_a_branch_that_moved_is_not_overwritten(
    client: GitClient, work: Path, remote: Path, tmp_path: Path, expected: str | None
) -> None:
    base = head_of(work, "HEAD~1")
    theirs = somebody_pushes(remote, tmp_path, {"theirs.txt": "theirs\n"})
    with pytest.raises(PushRejected, match="main") as caught:
        await client.push(work, "main", expected_old_head=base if expected else None)
    assert not isinstance(caught.value, PushForbidden)
    assert head_of(remote, "main") == theirs


async def test_a_branch_that_should_not_exist_is_not_overwritten(client: GitClient, work: Path, remote: Path) -> None:
    git(remote, "branch", "taken", "main~1")
    with pytest.raises(PushRejected):
        await client.push(work, "taken", expected_old_head=ABSENT)
    assert head_of(remote, "taken") == head_of(remote, "main~1")


async def test_a_branch_that_should_exist_is_not_created(client: GitClient, work: Path, remote: Path) -> None:
    with pytest.raises(PushRejected):
        await client.push(work, "gone", expected_old_head=head_of(work, "HEAD~1"))
    assert git(remote, "branch", "--list", "gone") == ""


async def test_history_is_rewritten_only_from_the_expected_head(client: GitClient, work: Path, remote: Path) -> None:
    await client.push(work, "story", expected_old_head=ABSENT)
    old = head_of(work)
    git(work, "reset", "--quiet", "--hard", "HEAD~1")
    await client.commit(work, files={"mine.txt": b"other\n"}, message="Other", author=ADA)
    with pytest.raises(PushRejected):
        await client.push(work, "story")
    with pytest.raises(PushRejected):
        await client.push(work, "story", expected_old_head=head_of(work, "HEAD~1"))
    pushed = await client.push(work, "story", expected_old_head=old)
    assert head_of(remote, "story") == pushed.head != old


async def test_a_shallow_workspace_can_push(client: GitClient, remote: Path, tmp_path: Path) -> None:
    workspace = (await client.clone(str(remote), tmp_path / "shallow", depth=1)).workspace
    await client.commit(workspace, files={"x": b"x"}, message="X", author=ADA)
    await client.push(workspace, "main")
    assert head_of(remote, "main") == head_of(workspace)
    assert git(remote, "rev-list", "--count", "main") == "3"
    assert git(remote, "fsck", "--no-progress") == ""


async def test_a_remote_is_a_name_or_a_url_within_the_rules(client: GitClient, work: Path, tmp_path: Path) -> None:
    other = make_bare(tmp_path / "other.git")
    await client.push(work, "main", remote=f"file://{other}")
    assert head_of(other, "main") == head_of(work)
    with pytest.raises(InvalidInput, match="upstream"):
        await client.push(work, "main", remote="upstream")
    for url in ("http://h/a", "https://ada:secret@h/a", "ext::sh -c id"):
        with pytest.raises(UnsafeUrl):
            await client.push(work, "main", remote=url)
        # As code that ran in the workspace may have set it.
        git(work, "config", "remote.origin.url", url)
        with pytest.raises(UnsafeUrl):
            await client.push(work, "main")
    with pytest.raises(UnsafeUrl):
        await GitClient(tmp_path / "mirrors").push(work, "main", remote=str(other))


async def test_what_cannot_be_pushed_says_why(client: GitClient, work: Path, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFound):
        await client.push(work, "main", remote=str(tmp_path / "absent.git"))
    with pytest.raises(InvalidInput, match="short name"):
        await client.push(work, "refs/heads/main")
    with pytest.raises(InvalidInput, match="expected_old_head"):
        await client.push(work, "main", expected_old_head="main")
    empty = (await client.clone(str(make_bare(tmp_path / "empty.git")), tmp_path / "e")).workspace
    with pytest.raises(RefNotFound, match="no commit"):
        await client.push(empty, "main")


async def test_rules_of_the_host_forbid_a_push(
    client: GitClient, work: Path, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path)
    monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
    monkeypatch.setenv("NO_PROXY", "localhost")
    hook = remote / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho 'main is protected: open a pull request' >&2\nexit 1\n")
    hook.chmod(0o755)
    with GitServer(tmp_path, certificate) as server, pytest.raises(PushForbidden, match="pull request") as caught:
        await client.push(work, "main", remote=server.url("remote.git"))
    assert isinstance(caught.value, PushRejected)
    assert head_of(remote, "main") != head_of(work)


async def test_commits_are_put_on_top_of_a_branch_that_moved_and_pushed(
    client: GitClient, work: Path, remote: Path, tmp_path: Path
) -> None:
    theirs = somebody_pushes(remote, tmp_path, {"theirs.txt": "theirs\n"})
    rebased = await client.rebase(work, "main", committer=ADA)
    assert rebased.base == theirs == head_of(work, "HEAD~1")
    assert rebased.head == head_of(work)
    assert (work / "theirs.txt").exists()
    assert (work / "mine.txt").exists()
    await client.push(work, "main", expected_old_head=rebased.base)
    assert git(remote, "log", "--format=%s", "main").split("\n") == ["Mine", "Theirs", "Second", "First"]


async def test_a_shallow_workspace_catches_up(client: GitClient, remote: Path, tmp_path: Path) -> None:
    workspace = (await client.clone(str(remote), tmp_path / "shallow", depth=1)).workspace
    await client.commit(workspace, files={"x": b"x"}, message="X", author=ADA)
    for number in range(3):
        somebody_pushes(remote, tmp_path, {f"t{number}": "t\n"})
    rebased = await client.rebase(workspace, "main", committer=ADA)
    await client.push(workspace, "main", expected_old_head=rebased.base)
    assert git(remote, "rev-list", "--count", "main") == "6"


async def test_a_conflict_names_the_files_and_leaves_the_workspace_as_it_was(
    client: GitClient, work: Path, remote: Path, tmp_path: Path
) -> None:
    await client.commit(work, files={"a.txt": b"one\nmine\nthree\n"}, message="Mine too", author=ADA)
    before = head_of(work)
    somebody_pushes(remote, tmp_path, {"a.txt": "one\ntheirs\nthree\n"})
    for _ in range(2):
        with pytest.raises(MergeConflict, match=r"a\.txt") as caught:
            await client.rebase(work, "main", committer=ADA)
        assert caught.value.files == ("a.txt",)
        assert head_of(work) == before
        assert git(work, "status", "--porcelain") == ""
        assert git(work, "symbolic-ref", "HEAD") == "refs/heads/main"


async def test_a_rebase_that_died_in_the_middle_does_not_stop_the_next_one(
    client: GitClient, work: Path, remote: Path, tmp_path: Path
) -> None:
    await client.commit(work, files={"a.txt": b"one\nmine\nthree\n"}, message="Mine too", author=ADA)
    theirs = somebody_pushes(remote, tmp_path, {"a.txt": "one\ntheirs\nthree\n"})
    git(work, "fetch", "--quiet", str(remote), "main")
    assert head_of(work, "FETCH_HEAD") == theirs
    with pytest.raises(Exception, match="returned non-zero"):
        git(work, "rebase", "FETCH_HEAD")
    assert (work / ".git" / "rebase-merge").exists()
    with pytest.raises(MergeConflict):
        await client.rebase(work, "main", committer=ADA)


async def test_a_rebase_needs_a_branch_and_does_not_drop_changes(
    client: GitClient, work: Path, remote: Path, tmp_path: Path
) -> None:
    with pytest.raises(RefNotFound, match="nope"):
        await client.rebase(work, "nope", committer=ADA)
    somebody_pushes(remote, tmp_path, {"theirs.txt": "theirs\n"})
    (work / "a.txt").write_text("not committed\n")
    with pytest.raises(GitFailed, match="unstaged changes"):
        await client.rebase(work, "main", committer=ADA)
    assert (work / "a.txt").read_text() == "not committed\n"

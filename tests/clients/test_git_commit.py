"""Commits out of files and patches."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.clients.git import Author, GitClient
from app.errors import InvalidInput, PatchRejected, RepositoryNotFound, TooLarge
from tests.fakes.repositories import commit_files, git, make_bare, make_checkout

ADA = Author("Ada Lovelace", "ada@example.org")


@pytest.fixture
def client(tmp_path: Path) -> GitClient:
    return GitClient(tmp_path / "mirrors", allow_file_urls=True, timeout_s=30)


@pytest.fixture
async def work(client: GitClient, tmp_path: Path) -> Path:
    """A workspace with some files, one of them executable, and a symbolic link out of it."""
    source = make_checkout(tmp_path / "source")
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o755)
    (source / "out").symlink_to(tmp_path)
    commit_files(source, {"a.txt": "one\ntwo\nthree\n", "dir/b.txt": "b\n", ".gitignore": "*.log\n"}, "First")
    return (await client.clone(str(source), tmp_path / "work")).workspace


def files_at(work: Path, revision: str = "HEAD") -> set[str]:
    return set(git(work, "ls-tree", "-r", "--name-only", revision).splitlines())


async def test_files_are_written_changed_and_deleted_in_one_commit(client: GitClient, work: Path) -> None:
    parent = git(work, "rev-parse", "HEAD")
    files = {"a.txt": b"1\n", "new/deep/c.bin": bytes(range(256)), "dir/b.txt": None, "debug.log": b"log\n"}
    result = await client.commit(work, files=files, message="Change\n\nWhy.\n\n", author=ADA)
    assert result.id == git(work, "rev-parse", "main") == git(work, "rev-parse", "HEAD")
    assert git(work, "rev-parse", "HEAD~1") == parent
    assert set(result.files) == set(files)
    assert not result.nothing_to_commit
    assert files_at(work) == {"a.txt", "new/deep/c.bin", ".gitignore", "run", "out", "debug.log"}
    assert (work / "a.txt").read_bytes() == b"1\n"
    assert (work / "new/deep/c.bin").read_bytes() == bytes(range(256))
    assert not (work / "dir").exists()
    assert git(work, "status", "--porcelain") == ""
    shown = git(work, "log", "-1", "--format=%an|%ae|%cn|%ce|%B")
    assert shown.rstrip() == "Ada Lovelace|ada@example.org|Ada Lovelace|ada@example.org|Change\n\nWhy."


async def test_nothing_to_commit_is_an_outcome(client: GitClient, work: Path) -> None:
    before = git(work, "rev-parse", "HEAD")
    for files in ({"a.txt": b"one\ntwo\nthree\n"}, {"absent": None}):
        result = await client.commit(work, files=files, message="Same", author=ADA)
        assert (result.id, result.files, result.nothing_to_commit) == (None, (), True)
    assert git(work, "rev-parse", "HEAD") == before


async def test_the_same_commit_again_is_nothing_to_commit(client: GitClient, work: Path) -> None:
    for expected in (False, True):
        result = await client.commit(work, files={"x": b"x"}, message="X", author=ADA)
        assert result.nothing_to_commit is expected


async def test_an_executable_stays_executable(client: GitClient, work: Path) -> None:
    await client.commit(work, files={"run": b"#!/bin/sh\nexit 1\n"}, message="Run", author=ADA)
    assert git(work, "ls-tree", "HEAD", "run").startswith("100755")
    assert (work / "run").stat().st_mode & 0o111


async def test_only_what_is_given_is_committed(client: GitClient, work: Path) -> None:
    (work / "a.txt").write_text("left over\n")
    (work / "staged").write_text("staged\n")
    git(work, "add", "staged")
    (work / "untracked").write_text("untracked\n")
    result = await client.commit(work, files={"x": b"x"}, message="X", author=ADA)
    assert result.files == ("x",)
    assert (work / "a.txt").read_text() == "left over\n"
    assert git(work, "status", "--porcelain").split("\n") == ["M a.txt".rjust(8), "A  staged", "?? untracked"]


async def test_a_file_that_lies_changed_in_the_workspace_is_committed_as_given(client: GitClient, work: Path) -> None:
    (work / "a.txt").write_text("left over\n")
    await client.commit(work, files={"a.txt": b"given\n"}, message="A", author=ADA)
    assert (work / "a.txt").read_text() == git(work, "show", "HEAD:a.txt") + "\n" == "given\n"


async def test_nothing_is_written_through_a_symbolic_link(client: GitClient, work: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="out"):
        await client.commit(work, files={"out/evil": b"x"}, message="X", author=ADA)
    assert not (tmp_path / "evil").exists()
    # A link that only lies in the workspace, where the commit wants a directory.
    (work / "made").symlink_to(tmp_path)
    await client.commit(work, files={"made/evil": b"x"}, message="X", author=ADA)
    assert not (tmp_path / "evil").exists()
    # The link itself may be replaced by a file.
    await client.commit(work, files={"out": b"plain"}, message="X", author=ADA)
    assert (work / "out").read_bytes() == b"plain"
    assert not (work / "out").is_symlink()
    assert tmp_path.is_dir()


async def test_a_directory_is_not_replaced_by_accident(client: GitClient, work: Path) -> None:
    with pytest.raises(InvalidInput, match="directory"):
        await client.commit(work, files={"dir": b"x"}, message="X", author=ADA)
    with pytest.raises(InvalidInput, match=r"a\.txt"):
        await client.commit(work, files={"a.txt/x": b"x"}, message="X", author=ADA)
    with pytest.raises(InvalidInput, match="directory"):
        await client.commit(work, files={"n": b"x", "n/x": b"x"}, message="X", author=ADA)
    result = await client.commit(work, files={"a.txt": None, "a.txt/x": b"x"}, message="X", author=ADA)
    assert set(result.files) == {"a.txt", "a.txt/x"}
    assert (work / "a.txt" / "x").read_bytes() == b"x"


@pytest.mark.parametrize(
    "path", ["", "/x", "../x", "a/../../x", ".git/hooks/post-commit", "-x", "a\nb", "a\\b", ".GIT/x"]
)
async def test_hostile_paths_are_refused(client: GitClient, work: Path, path: str) -> None:
    before = git(work, "rev-parse", "HEAD")
    with pytest.raises(InvalidInput):
        await client.commit(work, files={"fine": b"", path: b"x"}, message="X", author=ADA)
    assert git(work, "rev-parse", "HEAD") == before


@pytest.mark.parametrize(
    "path", [":(glob)**", "*.txt", "[ab].txt", "$(id)", "a;b", 'q"uote', "日本 語.txt", ":(exclude)x"]
)
async def test_odd_names_are_names(client: GitClient, work: Path, path: str) -> None:
    result = await client.commit(work, files={path: b"odd\n"}, message="Odd", author=ADA)
    assert result.files == (path,)
    assert (work / path).read_bytes() == b"odd\n"
    assert (work / "a.txt").read_text() == "one\ntwo\nthree\n"
    assert (await client.read_file(work, "HEAD", path)).data == b"odd\n"


PATCH = """\
diff --git a/a.txt b/a.txt
--- a/a.txt
+++ b/a.txt
@@ -1,3 +1,3 @@
 one
-two
+2
 three
diff --git a/n.txt b/n.txt
new file mode 100644
--- /dev/null
+++ b/n.txt
@@ -0,0 +1 @@
+new
"""


async def test_a_patch_becomes_a_commit(client: GitClient, work: Path) -> None:
    result = await client.commit(work, patch=PATCH, message="Patch", author=ADA)
    assert set(result.files) == {"a.txt", "n.txt"}
    assert (work / "a.txt").read_text() == "one\n2\nthree\n"
    assert (work / "n.txt").read_text() == "new\n"
    assert git(work, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    "patch",
    [
        PATCH.replace("-two", "-zwei"),
        "this is no patch",
        "",
        PATCH.replace("a.txt", "absent.txt"),
        PATCH.replace("n.txt", "../../n.txt"),
        PATCH.replace("b/n.txt", "b/.git/hooks/pre-commit"),
        PATCH.replace("n.txt", "out/n.txt"),
    ],
    ids=["another context", "no patch", "empty", "absent file", "outside", "hook", "through a link"],
)
async def test_a_patch_that_does_not_apply_changes_nothing(client: GitClient, work: Path, patch: str) -> None:
    before = git(work, "rev-parse", "HEAD")
    with pytest.raises(PatchRejected) as caught:
        await client.commit(work, patch=patch, message="Patch", author=ADA)
    assert not caught.value.retryable
    assert git(work, "rev-parse", "HEAD") == before
    assert git(work, "status", "--porcelain") == ""


async def test_a_first_commit_of_an_empty_repository(client: GitClient, tmp_path: Path) -> None:
    work = (await client.clone(str(make_bare(tmp_path / "empty.git")), tmp_path / "a")).workspace
    assert (await client.commit(work, files={"x": None}, message="Nothing", author=ADA)).nothing_to_commit
    result = await client.commit(work, files={"x": b"x"}, message="First", author=ADA)
    assert git(work, "log", "--format=%H %P %s") == f"{result.id}  First"
    assert git(work, "symbolic-ref", "HEAD") == "refs/heads/main"
    pushed = await client.push(work, "main")
    assert (pushed.head, pushed.created) == (result.id, True)


async def test_a_commit_on_a_detached_head(client: GitClient, work: Path) -> None:
    git(work, "checkout", "--quiet", "--detach")
    main = git(work, "rev-parse", "main")
    result = await client.commit(work, files={"x": b"x"}, message="X", author=ADA)
    assert git(work, "rev-parse", "HEAD") == result.id
    assert git(work, "rev-parse", "main") == main


async def test_commits_at_once_lose_nothing(client: GitClient, work: Path) -> None:
    # HEAD moves only from the commit that was built upon: the slower one fails instead of dropping the other's commit.
    jobs = (client.commit(work, files={name: b"x"}, message=name, author=ADA) for name in ("x", "y"))
    done = await asyncio.gather(*jobs, return_exceptions=True)
    made = [result for result in done if not isinstance(result, BaseException)]
    assert made
    assert {result.id for result in made} <= set(git(work, "log", "--format=%H").split())


async def test_bounds_are_named(client: GitClient, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.clients.git_commit.MAX_COMMIT_BYTES", 10)
    with pytest.raises(TooLarge, match="10 bytes"):
        await client.commit(work, files={"a": b"123456", "b": b"123456"}, message="X", author=ADA)
    with pytest.raises(TooLarge, match="10 bytes"):
        await client.commit(work, patch=PATCH, message="X", author=ADA)


async def test_what_is_missing_or_too_much_is_refused(client: GitClient, work: Path, tmp_path: Path) -> None:
    for message in ("", " \n ", "a\x00b", "x" * 100_000):
        with pytest.raises(InvalidInput, match="message"):
            await client.commit(work, files={"x": b"x"}, message=message, author=ADA)
    with pytest.raises(InvalidInput, match="either"):
        await client.commit(work, message="X", author=ADA)
    with pytest.raises(InvalidInput, match="either"):
        await client.commit(work, files={"x": b"x"}, patch=PATCH, message="X", author=ADA)
    with pytest.raises(InvalidInput, match="files"):
        await client.commit(work, files={}, message="X", author=ADA)
    (tmp_path / "plain").mkdir()
    with pytest.raises(RepositoryNotFound):
        await client.commit(tmp_path / "plain", files={"x": b"x"}, message="X", author=ADA)


@pytest.mark.parametrize(
    ("name", "email"), [("", "a@b"), ("Ada", ""), ("A<b", "a@b"), ("Ada\n", "a@b"), ("...", "a@b")]
)
def test_an_author_is_one_that_git_can_write_down(name: str, email: str) -> None:
    with pytest.raises(InvalidInput, match="author"):
        Author(name, email)

"""Cloning and reading, on repositories of this machine."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.clients import git as client_module
from app.clients.git import EntryKind, GitClient, Progress, TreeEntry
from app.errors import (
    Conflict,
    InvalidInput,
    PathNotFound,
    RefNotFound,
    RepositoryNotFound,
    SettingsError,
    TooLarge,
    UnsafeUrl,
)
from app.settings import Settings
from app.telemetry.metrics import REGISTRY
from tests.fakes.repositories import commit_files, git, make_bare, make_checkout

FIRST, SECOND = 1_700_000_000, 1_700_003_600


@pytest.fixture
def client(tmp_path: Path) -> GitClient:
    return GitClient(tmp_path / "mirrors", allow_file_urls=True, timeout_s=30)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkout with two commits on main, a branch `side/one`, a tag `v1` and an annotated tag `v2`."""
    path = make_checkout(tmp_path / "source")
    commit_files(path, {"README.md": "# One\n", "src/app.py": "print(1)\n"}, "First\n\nBody of it.\n\nMore.", at=FIRST)
    git(path, "tag", "v1")
    git(path, "branch", "side/one")
    commit_files(path, {"README.md": "# One\n# Two\n", "日本 語.txt": "x\n"}, "Second", at=SECOND)
    git(path, "tag", "-a", "-m", "two", "v2")
    return path


def names_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def head_of(path: Path, revision: str = "HEAD") -> str:
    return git(path, "rev-parse", f"{revision}^{{commit}}")


async def test_a_clone_has_the_default_branch_checked_out(client: GitClient, source: Path, tmp_path: Path) -> None:
    cloned = await client.clone(str(source), tmp_path / "work" / "a")
    assert cloned.head == head_of(source)
    assert (cloned.default_branch, cloned.branch, cloned.empty) == ("main", "main", False)
    assert cloned.workspace == tmp_path / "work" / "a"
    assert (cloned.workspace / "README.md").read_text() == "# One\n# Two\n"
    assert git(cloned.workspace, "status", "--porcelain") == ""
    assert git(cloned.workspace, "remote", "get-url", "origin") == cloned.url == str(source)
    assert names_in(tmp_path / "work") == ["a"]


@pytest.mark.parametrize(
    ("ref", "branch", "revision"),
    [
        ("side/one", "side/one", "v1"),
        ("refs/heads/side/one", "side/one", "v1"),
        ("v1", None, "v1"),
        ("v2", None, "main"),
        ("refs/tags/v2", None, "main"),
    ],
)
@pytest.mark.parametrize("depth", [None, 1])
async def test_a_ref_is_a_branch_or_a_tag(
    client: GitClient, source: Path, tmp_path: Path, ref: str, branch: str | None, revision: str, depth: int | None
) -> None:
    cloned = await client.clone(str(source), tmp_path / "a", ref=ref, depth=depth)
    assert (cloned.head, cloned.branch, cloned.default_branch) == (head_of(source, revision), branch, "main")
    assert head_of(cloned.workspace) == cloned.head


@pytest.mark.parametrize("depth", [None, 1])
async def test_a_ref_is_a_commit_id_also_of_a_commit_that_no_branch_has(
    client: GitClient, source: Path, tmp_path: Path, depth: int | None
) -> None:
    git(source, "checkout", "--quiet", "--detach", "v1")
    lonely = commit_files(source, {"x": "x"}, "Lonely")
    git(source, "update-ref", "refs/pull/1/head", lonely)
    git(source, "checkout", "--quiet", "main")
    cloned = await client.clone(str(source), tmp_path / "a", ref=lonely, depth=depth)
    assert (cloned.head, cloned.branch) == (lonely, None)
    assert (tmp_path / "a" / "x").read_text() == "x"
    by_name = await client.clone(str(source), tmp_path / "b", ref="refs/pull/1/head", depth=depth)
    assert (by_name.head, by_name.branch) == (lonely, None)


async def test_a_branch_comes_before_a_tag_of_its_name(client: GitClient, source: Path, tmp_path: Path) -> None:
    git(source, "tag", "both", "v1")
    git(source, "branch", "both", "main")
    assert (await client.clone(str(source), tmp_path / "a", ref="both")).head == head_of(source, "main")
    assert (await client.clone(str(source), tmp_path / "b", ref="refs/tags/both")).head == head_of(source, "v1")


async def test_a_checkout_at_a_commit_is_cloned_at_that_commit(client: GitClient, source: Path, tmp_path: Path) -> None:
    git(source, "checkout", "--quiet", "--detach", "v1")
    only = commit_files(source, {"x": "x"}, "On no branch")
    cloned = await client.clone(str(source), tmp_path / "a")
    assert (cloned.head, cloned.default_branch, cloned.branch) == (only, None, None)


async def test_depth_bounds_the_history(client: GitClient, source: Path, tmp_path: Path) -> None:
    cloned = await client.clone(str(source), tmp_path / "a", depth=1)
    assert cloned.head == head_of(source)
    assert len(await client.log(cloned.workspace, 10)) == 1
    commit_files(source, {"z": "z"}, "Third")
    again = await client.clone(str(source), tmp_path / "b", depth=1)
    assert again.head == head_of(source)
    assert len(await client.log(again.workspace, 10)) == 1


async def test_a_shallow_source_can_be_cloned(client: GitClient, source: Path, tmp_path: Path) -> None:
    shallow = tmp_path / "shallow"
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{source}", str(shallow))
    for number, depth in enumerate((None, 1)):
        cloned = await client.clone(str(shallow), tmp_path / f"a{number}", depth=depth)
        assert cloned.head == head_of(source)
        (commit,) = await client.log(cloned.workspace, 10)
        # Its parents are not there: that every file was added would be a wrong statement.
        assert commit.files_changed is None


async def test_an_empty_repository_is_a_clear_outcome(client: GitClient, tmp_path: Path) -> None:
    source = make_bare(tmp_path / "empty.git")
    cloned = await client.clone(str(source), tmp_path / "a")
    assert (cloned.head, cloned.default_branch, cloned.branch, cloned.empty) == (None, None, "main", True)
    assert await client.log(cloned.workspace, 10) == []
    with pytest.raises(RefNotFound):
        await client.clone(str(source), tmp_path / "b", ref="main")


async def test_a_missing_repository_and_a_missing_ref_are_told_apart(
    client: GitClient, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(RepositoryNotFound, match="absent"):
        await client.clone(str(tmp_path / "absent"), tmp_path / "a")
    with pytest.raises(RepositoryNotFound):
        await client.clone(str(make_directory(tmp_path / "plain")), tmp_path / "a")
    with pytest.raises(RefNotFound, match="nope"):
        await client.clone(str(source), tmp_path / "a", ref="nope")
    with pytest.raises(RefNotFound):
        await client.clone(str(source), tmp_path / "a", ref="0" * 39 + "1")
    assert not (tmp_path / "a").exists()


def make_directory(path: Path) -> Path:
    path.mkdir()
    return path


async def test_a_directory_in_use_is_not_overwritten(client: GitClient, source: Path, tmp_path: Path) -> None:
    taken = make_directory(tmp_path / "taken")
    (taken / "mine").write_text("mine")
    with pytest.raises(Conflict, match="taken"):
        await client.clone(str(source), taken)
    assert names_in(taken) == ["mine"]
    empty = make_directory(tmp_path / "empty")
    assert (await client.clone(str(source), empty)).head == head_of(source)


@pytest.mark.parametrize("depth", [0, -1, 10_000_000])
async def test_a_senseless_depth_is_refused(client: GitClient, source: Path, tmp_path: Path, depth: int) -> None:
    with pytest.raises(InvalidInput, match="depth"):
        await client.clone(str(source), tmp_path / "a", depth=depth)


async def test_progress_is_reported_in_percent(client: GitClient, source: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []

    async def keep(progress: Progress) -> None:
        seen.append(progress)

    await client.clone(str(source), tmp_path / "a", on_progress=keep)
    assert seen
    assert all(0 <= progress.percent <= 100 and progress.phase for progress in seen)
    assert seen[-1].percent == 100


async def test_a_checkout_of_another_user_can_be_cloned(client: GitClient, source: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    for path in (source, *source.rglob("*")):
        os.lchown(path, 12_345, 12_345)
    assert not (await client.clone(str(source), tmp_path / "a")).empty


async def test_nothing_in_a_cloned_repository_is_run(client: GitClient, source: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    names = ("post-checkout", "pre-commit", "post-commit")
    hooks = {f".git/hooks/{name}": f"#!/bin/sh\ntouch {mark}\n" for name in names}
    attributes = {".gitattributes": "* filter=lfs diff=lfs\n", ".lfsconfig": "[lfs]\nurl=https://evil.example\n"}
    commit_files(source, attributes, "Attributes")
    for name, text in hooks.items():
        (source / name).write_text(text)
        (source / name).chmod(0o755)
    git(source, "config", "uploadpack.packObjectsHook", f"touch {mark};")
    git(source, "config", "core.fsmonitor", f"touch {mark};")
    git(source, "config", "core.sshCommand", f"touch {mark};")
    cloned = await client.clone(str(source), tmp_path / "a")
    assert not mark.exists()
    assert not list((cloned.workspace / ".git/hooks").glob("*"))


async def test_submodules_are_not_followed(client: GitClient, source: Path, tmp_path: Path) -> None:
    git(source, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(source), "sub")
    commit_files(source, {}, "Submodule")
    cloned = await client.clone(str(source), tmp_path / "a")
    assert names_in(cloned.workspace / "sub") == []
    (entry,) = (item for item in (await client.tree(cloned.workspace)).entries if item.path == "sub")
    assert (entry.kind, entry.size) == (EntryKind.SUBMODULE, None)


INJECTIONS = [
    "--upload-pack=touch {mark}",
    "-u",
    "ext::sh -c touch% {mark}",
    "a..b",
    "$(touch {mark})\n",
    "--output={mark}",
]


@pytest.mark.parametrize("text", INJECTIONS)
async def test_hostile_names_are_refused_before_git_sees_them(
    client: GitClient, source: Path, tmp_path: Path, text: str
) -> None:
    hostile = text.format(mark=tmp_path / "ran")
    work = (await client.clone(str(source), tmp_path / "a")).workspace
    calls: list[Callable[[], object]] = [
        lambda: client.clone(hostile, tmp_path / "b"),
        lambda: client.clone(str(source), tmp_path / "b", ref=hostile),
        lambda: client.log(work, 1, revision=hostile),
        lambda: client.diff(work, hostile, "HEAD"),
        lambda: client.diff(work, "HEAD", hostile),
        lambda: client.show(work, hostile),
        lambda: client.tree(work, hostile),
        lambda: client.read_file(work, hostile, "README.md"),
        lambda: client.push(work, hostile),
        lambda: client.push(work, "main", remote=hostile),
        lambda: client.push(work, "main", expected_old_head=hostile),
    ]
    for call in calls:
        with pytest.raises((InvalidInput, UnsafeUrl)):
            await call()  # type: ignore[misc]
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("path", ["--output=x", "-x", "../secret", "/etc/passwd", ".git/config", "a\nb", ":(top)x"])
async def test_hostile_paths_are_refused_or_not_found(
    client: GitClient, source: Path, tmp_path: Path, path: str
) -> None:
    work = (await client.clone(str(source), tmp_path / "a")).workspace
    with pytest.raises((InvalidInput, PathNotFound)):
        await client.read_file(work, "HEAD", path)
    if not path.startswith(":"):
        with pytest.raises(InvalidInput):
            await client.show(work, "HEAD", path)


async def test_the_log_tells_who_what_and_how_much(client: GitClient, source: Path, tmp_path: Path) -> None:
    work = (await client.clone(str(source), tmp_path / "a")).workspace
    second, first = await client.log(work, 10)
    assert (first.id, first.author, first.email) == (head_of(source, "v1"), "Ada", "ada@example.org")
    assert (first.subject, first.body) == ("First", "Body of it.\n\nMore.")
    assert first.date == datetime.fromtimestamp(FIRST, UTC)
    assert (first.files_changed, first.insertions, first.deletions) == (2, 2, 0)
    assert (second.subject, second.body) == ("Second", "")
    assert (second.files_changed, second.insertions, second.deletions) == (2, 2, 0)


async def test_the_log_is_bounded_by_count_and_date(client: GitClient, source: Path, tmp_path: Path) -> None:
    work = (await client.clone(str(source), tmp_path / "a")).workspace
    assert [commit.subject for commit in await client.log(work, 1)] == ["Second"]
    since = datetime.fromtimestamp(SECOND - 60, UTC)
    assert [commit.subject for commit in await client.log(work, 10, since=since)] == ["Second"]
    assert [commit.subject for commit in await client.log(work, 10, revision="HEAD~1")] == ["First"]
    with pytest.raises(InvalidInput, match="limit"):
        await client.log(work, 0)
    with pytest.raises(RefNotFound):
        await client.log(work, 1, revision="nope")


async def test_a_merge_has_no_counts_and_an_empty_commit_has_zero(
    client: GitClient, source: Path, tmp_path: Path
) -> None:
    git(source, "checkout", "--quiet", "side/one")
    commit_files(source, {}, "Nothing")
    git(source, "merge", "--quiet", "--no-ff", "-m", "Merge", "main")
    work = (await client.clone(str(source), tmp_path / "a")).workspace
    counts = {commit.subject: commit.files_changed for commit in await client.log(work, 10)}
    assert counts == {"Merge": None, "Second": 2, "Nothing": 0, "First": 2}


async def test_strange_text_in_commits_is_kept_apart(client: GitClient, source: Path, tmp_path: Path) -> None:
    odd = "Sub|ject \x1e \x1f %x00 \t'\"\n\n 3 files changed, 5 insertions(+)\n\x0cend"
    git(source, "-c", "user.name=x", "commit", "--quiet", "--allow-empty", "--cleanup=verbatim", "-m", odd)
    work = (await client.clone(str(source), tmp_path / "a")).workspace
    strange, second, _ = await client.log(work, 3)
    assert strange.body == " 3 files changed, 5 insertions(+)\n\x0cend"
    assert strange.files_changed == 0
    assert second.subject == "Second"


async def test_a_log_past_its_bound_is_refused(
    client: GitClient, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.clients.git_read.MAX_LOG_BYTES", 200)
    work = (await client.clone(str(source), tmp_path / "a")).workspace
    with pytest.raises(TooLarge, match="200 bytes"):
        await client.log(work, 10)


async def test_a_diff_leads_from_one_revision_to_the_other(client: GitClient, source: Path, tmp_path: Path) -> None:
    work = (await client.clone(str(source), tmp_path / "a")).workspace
    diff = await client.diff(work, "v1", "main")
    assert "+# Two\n" in diff.text
    assert "日本 語.txt" in diff.text
    assert not diff.truncated
    back = await client.diff(work, "main", "v1")
    assert "-# Two\n" in back.text
    with pytest.raises(RefNotFound):
        await client.diff(work, "v1", "nope")


async def test_a_long_text_is_cut_after_a_line_and_says_so(client: GitClient, source: Path, tmp_path: Path) -> None:
    work = (await client.clone(str(source), tmp_path / "a")).workspace
    whole = await client.diff(work, "v1", "main")
    part = await client.diff(work, "v1", "main", max_bytes=100)
    assert part.truncated
    assert whole.text.startswith(part.text)
    assert part.text.endswith("\n")
    exact = await client.diff(work, "v1", "main", max_bytes=len(whole.text.encode()))
    assert exact == whole
    tiny = await client.diff(work, "v1", "main", max_bytes=3)
    assert (tiny.text, tiny.truncated) == (whole.text[:3], True)


async def test_show_gives_a_commit_or_what_it_did_to_one_path(client: GitClient, source: Path, tmp_path: Path) -> None:
    work = (await client.clone(str(source), tmp_path / "a")).workspace
    whole = (await client.show(work, "HEAD")).text
    assert "Second" in whole
    assert "+# Two" in whole
    assert "日本 語.txt" in whole
    part = (await client.show(work, "HEAD", "README.md")).text
    assert "+# Two" in part
    assert "日本" not in part


async def test_a_tree_has_kinds_and_sizes(client: GitClient, source: Path, tmp_path: Path) -> None:
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o755)
    (source / "link").symlink_to("/etc/passwd")
    commit_files(source, {}, "Kinds")
    work = (await client.clone(str(source), tmp_path / "a")).workspace
    tree = await client.tree(work)
    assert tree.entries == (
        TreeEntry("README.md", EntryKind.FILE, 12),
        TreeEntry("link", EntryKind.SYMLINK, 11),
        TreeEntry("run", EntryKind.EXECUTABLE, 10),
        TreeEntry("src/app.py", EntryKind.FILE, 9),
        TreeEntry("日本 語.txt", EntryKind.FILE, 2),
    )
    assert not tree.truncated
    assert stat.S_IMODE((work / "run").stat().st_mode) & 0o111
    cut = await client.tree(work, "HEAD", max_entries=2)
    assert (cut.entries, cut.truncated) == (tree.entries[:2], True)


async def test_a_tree_listing_past_its_bound_says_so(
    client: GitClient, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = (await client.clone(str(source), tmp_path / "a")).workspace
    monkeypatch.setattr("app.clients.git_read.MAX_TREE_BYTES", 90)
    tree = await client.tree(work)
    assert [entry.path for entry in tree.entries] == ["README.md"]
    assert tree.truncated


async def test_a_file_is_read_as_committed(client: GitClient, source: Path, tmp_path: Path) -> None:
    data = bytes(range(256)) * 8
    commit_files(source, {"bin": data}, "Binary")
    work = (await client.clone(str(source), tmp_path / "a")).workspace
    (work / "bin").write_bytes(b"not committed")
    content = await client.read_file(work, "HEAD", "bin")
    assert (content.data, content.size, content.truncated) == (data, len(data), False)
    part = await client.read_file(work, "HEAD", "bin", max_bytes=1000)
    assert (part.data, part.size, part.truncated) == (data[:1000], len(data), True)
    exact = await client.read_file(work, "HEAD", "bin", max_bytes=len(data))
    assert exact == content
    assert (await client.read_file(work, "v1", "README.md")).data == b"# One\n"
    assert (await client.read_file(work, "HEAD", "日本 語.txt")).data == b"x\n"


async def test_what_cannot_be_read_says_why(client: GitClient, source: Path, tmp_path: Path) -> None:
    work = (await client.clone(str(source), tmp_path / "a")).workspace
    with pytest.raises(PathNotFound, match=r"nope\.txt"):
        await client.read_file(work, "HEAD", "nope.txt")
    with pytest.raises(RefNotFound, match="nope"):
        await client.read_file(work, "nope", "README.md")
    with pytest.raises(InvalidInput, match="directory"):
        await client.read_file(work, "HEAD", "src")
    with pytest.raises(InvalidInput, match="max_bytes"):
        await client.read_file(work, "HEAD", "README.md", max_bytes=0)


async def test_a_directory_is_not_taken_for_the_repository_around_it(
    client: GitClient, source: Path, tmp_path: Path
) -> None:
    inner = make_directory(source / "inner")
    with pytest.raises(RepositoryNotFound, match="not a git repository"):
        await client.log(inner, 1)
    with pytest.raises(InvalidInput, match="no such directory"):
        await client.log(tmp_path / "absent", 1)


async def test_many_clones_of_one_repository_at_once(client: GitClient, source: Path, tmp_path: Path) -> None:
    # None has a mirror yet: one makes it, the others wait for it without holding up the loop.
    refs = ["main", "side/one", "v1", "v2"] * 2
    clones = await asyncio.gather(
        *(client.clone(str(source), tmp_path / f"w{number}", ref=ref) for number, ref in enumerate(refs))
    )
    assert [cloned.head for cloned in clones] == [head_of(source, ref) for ref in refs]


def test_the_settings_describe_the_client(tmp_path: Path) -> None:
    base = Settings(data_dir=tmp_path, _env_file=None)
    GitClient.from_settings(base)
    token = {"git_token": SecretStr("s3cr3t")}
    GitClient.from_settings(base.model_copy(update=token | {"git_token_host": "h"}))
    for host in (None, "https://h"):
        with pytest.raises(SettingsError, match="NIGHTSHIFT_GIT_TOKEN_HOST") as caught:
            GitClient.from_settings(base.model_copy(update=token | {"git_token_host": host}))
        assert "s3cr3t" not in caught.value.detail


def test_the_public_names() -> None:
    assert all(hasattr(client_module, name) for name in client_module.__all__)


async def test_operations_are_counted(client: GitClient, source: Path, tmp_path: Path) -> None:
    def count(outcome: str) -> float:
        labels = {"operation": "clone", "outcome": outcome}
        return REGISTRY.get_sample_value("nightshift_git_operations_total", labels) or 0.0

    before = count("ok"), count("RepositoryNotFound")
    await client.clone(str(source), tmp_path / "a")
    with pytest.raises(RepositoryNotFound):
        await client.clone(str(tmp_path / "nowhere"), tmp_path / "b")
    assert (count("ok"), count("RepositoryNotFound")) == (before[0] + 1, before[1] + 1)

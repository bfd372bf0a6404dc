"""Reading a workspace's history and files out of git's objects; the checked-out files are never looked at.

Every output has a bound. What a caller may want the beginning of (texts, trees) comes back marked `truncated`; where a
part would be misleading (history), going past the bound raises `TooLarge`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from app.clients.git_runner import GitRunner
from app.clients.git_url import check_path, check_revision
from app.errors import InvalidInput, MalformedReply, PathNotFound, RefNotFound

MAX_COMMITS: Final = 10_000
MAX_LOG_BYTES: Final = 32 * 1024 * 1024
MAX_TREE_BYTES: Final = 32 * 1024 * 1024
_HEADER_BYTES: Final = 256
_LOG_FORMAT: Final = "%x00".join(("%H", "%P", "%an", "%ae", "%at", "%D", "%s", "%b"))
_LOG_FIELDS: Final = 8
_STAT: Final = re.compile(r"(\d+) (file|insertion|deletion)")
_PLAIN: Final = ("--no-color", "--no-ext-diff", "--no-textconv")


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit of a history. Text that is not UTF-8 has replacement characters."""

    id: str
    author: str
    email: str
    date: datetime
    """When it was written, in UTC."""
    subject: str
    body: str
    files_changed: int | None
    """Against the first parent; None for a merge, and where a shallow clone has no parent to compare with."""
    insertions: int | None
    deletions: int | None


@dataclass(frozen=True, slots=True)
class Text:
    """Text out of git, cut after its last whole line within the bound when `truncated`."""

    text: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of one file; only the first ones when `truncated`."""

    data: bytes
    size: int
    """Bytes of the whole file."""
    truncated: bool


class EntryKind(StrEnum):
    """What a path in a tree is."""

    FILE = "file"
    EXECUTABLE = "executable"
    SYMLINK = "symlink"
    SUBMODULE = "submodule"


@dataclass(frozen=True, slots=True)
class TreeEntry:
    """One path of a tree."""

    path: str
    kind: EntryKind
    size: int | None
    """Bytes; None for a submodule."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The paths of a revision in git's order; `truncated` when there are more than were asked for."""

    entries: tuple[TreeEntry, ...]
    truncated: bool


_KINDS: Final = {
    "100644": EntryKind.FILE,
    "100664": EntryKind.FILE,
    "100755": EntryKind.EXECUTABLE,
    "120000": EntryKind.SYMLINK,
    "160000": EntryKind.SUBMODULE,
}


async def read_log(
    runner: GitRunner, workspace: Path, limit: int, since: datetime | None = None, revision: str = "HEAD"
) -> list[Commit]:
    """The newest commits first; an empty repository has none.

    `since` leaves out what was committed before. Raises `RefNotFound`, `InvalidInput`, and `TooLarge` past 32 MiB.
    """
    if not 1 <= limit <= MAX_COMMITS:
        raise InvalidInput(f"limit {limit}: expected 1 to {MAX_COMMITS} commits")
    check_revision(revision)
    if revision == "HEAD" and await _is_unborn(runner, workspace):
        return []
    options = ["log", "-z", "--shortstat", "--no-renames", "--decorate=full", *_PLAIN, f"--format={_LOG_FORMAT}"]
    options += [f"--max-count={limit}", *([f"--since=@{since.timestamp():.0f}"] if since else [])]
    left = await runner.run(*options, "--end-of-options", revision, "--", cwd=workspace, max_bytes=MAX_LOG_BYTES)
    # A large history takes longer to read than the loop may be held up.
    return await asyncio.to_thread(lambda: list(parse_log(left.stdout.decode(errors="replace"))))


def parse_log(output: str) -> Iterator[Commit]:
    """Read `git log -z --shortstat`: eight fields a commit, and its counts in front of the next commit's id."""
    fields = output.split("\0")
    for start in range(0, len(fields) - _LOG_FIELDS, _LOG_FIELDS):
        # "\n 2 files changed, 3 insertions(+)\n<id>": the counts are those of the commit before.
        commit_id = fields[start].rpartition("\n")[2]
        stat = fields[start + _LOG_FIELDS].rpartition("\n")[0]
        yield _commit(commit_id, fields[start + 1 : start + _LOG_FIELDS], stat)


async def read_diff(runner: GitRunner, workspace: Path, a: str, b: str, max_bytes: int) -> Text:
    """The patch that leads from one revision to another. Raises `RefNotFound`."""
    revisions = (check_revision(a), check_revision(b))
    return await _text(runner, workspace, ("diff", *_PLAIN, "--end-of-options", *revisions, "--"), max_bytes)


async def read_show(runner: GitRunner, workspace: Path, revision: str, path: str | None, max_bytes: int) -> Text:
    """A commit's message and patch, of one path or of all. Raises `RefNotFound`."""
    paths = (check_path(path),) if path is not None else ()
    command = ("show", *_PLAIN, "--format=medium", "--end-of-options", check_revision(revision), "--", *paths)
    return await _text(runner, workspace, command, max_bytes)


async def read_tree(runner: GitRunner, workspace: Path, revision: str, max_entries: int) -> Tree:
    """All paths of a revision with kind and size, at most `max_entries`. Raises `RefNotFound`."""
    if max_entries < 1:
        raise InvalidInput(f"max_entries {max_entries}: expected at least 1")
    command = ("ls-tree", "-r", "-z", "--long", "--full-tree", check_revision(revision))
    left = await runner.run(*command, cwd=workspace, max_bytes=MAX_TREE_BYTES, cut=True)
    return await asyncio.to_thread(parse_tree, left.stdout, max_entries, cut=left.truncated)


def parse_tree(output: bytes, max_entries: int, *, cut: bool) -> Tree:
    """Read `git ls-tree -z --long`; `cut` says that the output is not whole."""
    # Each entry ends with NUL: what follows the last one is empty, or the cut half of an entry.
    lines = output.split(b"\0")[:-1]
    entries = tuple(_entry(line.decode(errors="replace")) for line in lines[:max_entries])
    return Tree(entries, truncated=cut or len(lines) > max_entries)


async def read_content(runner: GitRunner, workspace: Path, revision: str, path: str, max_bytes: int) -> Content:
    """A file's bytes as committed (of a symbolic link: its target).

    Raises `RefNotFound`, `PathNotFound`, and `InvalidInput` for a directory.
    """
    _check_bound(max_bytes)
    name = f"{check_revision(revision)}:{check_path(path)}"
    command = ("cat-file", "--batch")
    bound = max_bytes + _HEADER_BYTES
    left = await runner.run(*command, cwd=workspace, stdin=f"{name}\n".encode(), max_bytes=bound, cut=True)
    header, _, data = left.stdout.partition(b"\n")
    words = header.decode(errors="replace").split(" ")
    if words[-1] == "missing":
        raise await _missing(runner, workspace, revision, path)
    if words[1:2] != ["blob"]:
        raise InvalidInput(f"path {path!r} at {revision}: expected a file, it is a directory")
    size = int(words[2])
    return Content(data[: min(size, max_bytes)], size, truncated=size > max_bytes)


async def _missing(runner: GitRunner, workspace: Path, revision: str, path: str) -> PathNotFound | RefNotFound:
    command = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if await runner.text(*command, cwd=workspace, accept=(0, 1, 128)):
        return PathNotFound(f"path {path!r}: no such file at {revision}")
    return RefNotFound(f"revision {revision!r}: no such branch, tag or commit in the workspace")


async def _is_unborn(runner: GitRunner, workspace: Path) -> bool:
    return not await runner.text("rev-parse", "--verify", "--quiet", "HEAD", cwd=workspace, accept=(0, 1))


async def _text(runner: GitRunner, workspace: Path, command: tuple[str, ...], max_bytes: int) -> Text:
    _check_bound(max_bytes)
    left = await runner.run(*command, cwd=workspace, max_bytes=max_bytes, cut=True)
    if not left.truncated:
        return Text(left.stdout.decode(errors="replace"), truncated=False)
    whole = left.stdout[: left.stdout.rfind(b"\n") + 1] or left.stdout  # one endless line is cut within
    return Text(whole.decode(errors="ignore"), truncated=True)


def _check_bound(max_bytes: int) -> None:
    if max_bytes < 1:
        raise InvalidInput(f"max_bytes {max_bytes}: expected at least 1")


def _commit(commit_id: str, record: list[str], stat: str) -> Commit:
    parents, author, email, written, decoration, subject, body = record
    counts = {unit: int(number) for number, unit in _STAT.findall(stat)}
    # "grafted" is how git marks a commit whose parents a shallow clone does not have.
    known = " " not in parents and "grafted" not in decoration.split(", ")
    files, insertions, deletions = (
        counts.get(unit, 0) if known else None for unit in ("file", "insertion", "deletion")
    )
    return Commit(commit_id, author, email, _date(written), subject, body.strip("\n"), files, insertions, deletions)


def _date(seconds: str) -> datetime:
    try:
        return datetime.fromtimestamp(int(seconds), UTC)
    except (ValueError, OverflowError, OSError):
        # Broken importers have written commits of the year 50,000; git shows those as the epoch.
        return datetime.fromtimestamp(0, UTC)


def _entry(line: str) -> TreeEntry:
    meta, _, path = line.partition("\t")
    words = meta.split()
    if len(words) != 4:
        raise MalformedReply(f"git ls-tree: expected mode, type, id and size, got {meta!r}")
    return TreeEntry(path, _KINDS.get(words[0], EntryKind.FILE), int(words[3]) if words[3].isdigit() else None)

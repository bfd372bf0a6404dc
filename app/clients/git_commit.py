"""Committing: given files or a patch become one commit on top of HEAD.

The commit is put together beside the workspace's index, out of HEAD and what is given. So it holds exactly that,
whatever else was left in the workspace, and nothing is written through a symbolic link of the repository. HEAD moves
last, and only from the commit that was built upon. An attempt that dies before has changed nothing that the next one
would not write again.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.clients.git_mirror import remove_tree
from app.clients.git_process import Finished
from app.clients.git_runner import GitRunner
from app.clients.git_url import check_path
from app.errors import InvalidInput, PatchRejected, TooLarge

MAX_COMMIT_BYTES: Final = 64 * 1024 * 1024
MAX_COMMIT_FILES: Final = 10_000
MAX_MESSAGE_BYTES: Final = 64 * 1024
_BATCH: Final = 100
"""Paths per command: 100 of the longest stay well below the kernel's bound on arguments."""
_REGULAR: Final = "100644"
_KEPT_MODES: Final = ("100644", "100755")
_TREE: Final = "040000"
_SUBMODULE: Final = "160000"

Files = Mapping[str, bytes | None]
"""Paths with their new content; None deletes the file."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who a commit is by, as author and committer. Raises `InvalidInput` for what git cannot write down."""

    name: str
    email: str

    def __post_init__(self) -> None:
        for text in (self.name, self.email):
            if not text.strip(" .,:;<>\"\\'") or len(text) > 200 or not text.isprintable() or set(text) & set("<>"):
                raise InvalidInput(f"author {text!r}: expected 1 to 200 printable characters without '<' and '>'")

    @property
    def env(self) -> dict[str, str]:
        """How git is told."""
        roles = ("AUTHOR", "COMMITTER")
        return {f"GIT_{role}_NAME": self.name for role in roles} | {f"GIT_{role}_EMAIL": self.email for role in roles}


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What came of a commit."""

    id: str | None
    """None: the files were already like that, and no commit was made."""
    files: tuple[str, ...] = ()
    """The paths that the commit changes."""

    @property
    def nothing_to_commit(self) -> bool:
        """Whether HEAD already has everything."""
        return self.id is None


@dataclass(frozen=True, slots=True)
class _Bench:
    """A commit in the making: the workspace, an index of our own, and what is built upon."""

    runner: GitRunner
    workspace: Path
    scratch: Path
    parent: str
    """Empty in a repository without commits."""
    parent_tree: str

    async def git(self, *args: str, stdin: bytes = b"") -> str:
        """The output of a command that works on our index."""
        left = await self._run(args, stdin, (0,))
        return left.stdout.decode(errors="replace").strip("\n")

    async def refusal(self, *args: str, stdin: bytes) -> str | None:
        """What a command that works on our index says against its input; None when it took it."""
        left = await self._run(args, stdin, range(256))
        return None if left.status == 0 else self.runner.failure(args, left).said(left.stderr)

    async def _run(self, args: Sequence[str], stdin: bytes, accept: Collection[int]) -> Finished:
        env = {"GIT_INDEX_FILE": str(self.scratch / "index")}
        return await self.runner.run(*args, cwd=self.workspace, stdin=stdin, env=env, accept=accept)


async def make_commit(
    runner: GitRunner, workspace: Path, *, files: Files | None, patch: str | None, message: str, author: Author
) -> CommitResult:
    """Commit `files` or `patch` on top of HEAD and bring these paths of the workspace to it.

    Raises `InvalidInput`, `TooLarge` for what exceeds a bound, `PatchRejected` when the patch does not apply.
    """
    if (files is None) == (patch is None):
        raise InvalidInput("commit: expected either files or a patch")
    text = _check_message(message)
    async with _open_bench(runner, workspace) as bench:
        if files is not None:
            await _stage_files(bench, _check_files(files))
        if patch is not None:
            await _stage_patch(bench, patch)
        tree = await bench.git("write-tree")
        if tree == bench.parent_tree:
            return CommitResult(None)
        return await _finish(bench, tree, text, author)


@asynccontextmanager
async def _open_bench(runner: GitRunner, workspace: Path) -> AsyncIterator[_Bench]:
    parent = await runner.text("rev-parse", "--verify", "--quiet", "HEAD^{commit}", cwd=workspace, accept=(0, 1))
    tree_of = ("rev-parse", "--verify", f"{parent}^{{tree}}") if parent else ("mktree",)
    parent_tree = await runner.text(*tree_of, cwd=workspace)
    scratch = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="nightshift-commit-"))
    try:
        bench = _Bench(runner, workspace, scratch, parent, parent_tree)
        await bench.git("read-tree", parent_tree)
        yield bench
    finally:
        await remove_tree(scratch)


async def _finish(bench: _Bench, tree: str, message: bytes, author: Author) -> CommitResult:
    changed = await bench.git("diff-tree", "-r", "-z", "--name-only", "--no-renames", bench.parent_tree, tree)
    parents = ("-p", bench.parent) if bench.parent else ()
    command = ("commit-tree", tree, *parents, "-F", "-")
    left = await bench.runner.run(*command, cwd=bench.workspace, stdin=message, env=author.env)
    commit_id = left.stdout.decode().strip()
    # Before HEAD moves: should this fail, the commit was not made, and making it again mends the files.
    restore = (
        "restore",
        f"--source={commit_id}",
        "--staged",
        "--worktree",
        "--pathspec-from-file=-",
        "--pathspec-file-nul",
    )
    await bench.runner.run(*restore, cwd=bench.workspace, stdin=changed.encode())
    old = bench.parent or "0" * len(commit_id)
    await bench.runner.run("update-ref", "-m", "commit", "HEAD", commit_id, old, cwd=bench.workspace, env=author.env)
    return CommitResult(commit_id, tuple(path for path in changed.split("\0") if path))


async def _stage_patch(bench: _Bench, patch: str) -> None:
    data = patch.encode(errors="surrogatepass")
    if len(data) > MAX_COMMIT_BYTES:
        raise TooLarge(f"patch of {len(data)} bytes: more than the bound of {MAX_COMMIT_BYTES} bytes")
    command = ("apply", "--cached", "--whitespace=nowarn", "-")
    if reason := await bench.refusal(*command, stdin=data):
        raise PatchRejected(f"the patch does not apply to {bench.parent or 'the empty repository'}: {reason}")


async def _stage_files(bench: _Bench, files: Files) -> None:
    modes = await _modes(bench, files)
    written = {path: data for path, data in files.items() if data is not None}
    ids = await _write_blobs(bench, list(written.values()))
    none = "0" * len(bench.parent_tree)
    # Deletions first: a file may give way to a directory of its name.
    lines = [f"0 {none}\t{path}" for path, data in files.items() if data is None]
    lines += [f"{modes.get(path, _REGULAR)} {blob}\t{path}" for path, blob in zip(written, ids, strict=True)]
    index = "".join(f"{line}\0" for line in lines).encode()
    if reason := await bench.refusal("update-index", "-z", "--index-info", stdin=index):
        raise InvalidInput(f"the files do not fit into the repository: {reason}")


async def _modes(bench: _Bench, files: Files) -> dict[str, str]:
    """The modes to keep. Raises `InvalidInput` where git would quietly give up a directory, a link or a submodule."""
    paths = sorted({*files, *(above for path in files for above in _above(path))})
    found = await _entries(bench, paths) if bench.parent else {}
    files_after = {path for path, mode in found.items() if mode != _TREE and files.get(path, b"") is not None}
    files_after |= {path for path, data in files.items() if data is not None}
    for path, data in files.items():
        if found.get(path) in (_TREE, _SUBMODULE):
            raise InvalidInput(f"path {path!r}: expected a file, it is a directory or a submodule")
        if data is not None and (above := files_after.intersection(_above(path))):
            raise InvalidInput(f"path {path!r}: expected {min(above)!r} to be a directory")
    return {path: mode for path, mode in found.items() if mode in _KEPT_MODES}


async def _entries(bench: _Bench, paths: list[str]) -> dict[str, str]:
    """The modes of those paths that HEAD has."""
    found = {}
    for start in range(0, len(paths), _BATCH):
        batch = paths[start : start + _BATCH]
        output = await bench.git("ls-tree", "-t", "-z", "--full-tree", bench.parent, "--", *batch)
        for line in output.split("\0"):
            meta, _, path = line.partition("\t")
            found[path] = meta.split(" ")[0]
    return found


def _above(path: str) -> list[str]:
    """`a/b/c` -> `a`, `a/b`."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


async def _write_blobs(bench: _Bench, contents: list[bytes]) -> list[str]:
    """Store contents as git objects, one process for all, and return their ids."""
    names = [str(bench.scratch / f"blob-{number}") for number in range(len(contents))]
    await asyncio.to_thread(_write_all, names, contents)
    stdin = "".join(f"{name}\n" for name in names).encode()
    output = await bench.git("hash-object", "-w", "--no-filters", "--stdin-paths", stdin=stdin)
    return output.split()


def _write_all(names: list[str], contents: list[bytes]) -> None:
    for name, data in zip(names, contents, strict=True):
        Path(name).write_bytes(data)


def _check_files(files: Files) -> Files:
    if not 1 <= len(files) <= MAX_COMMIT_FILES:
        raise InvalidInput(f"commit of {len(files)} files: expected 1 to {MAX_COMMIT_FILES}")
    size = sum(len(data or b"") for data in files.values())
    if size > MAX_COMMIT_BYTES:
        raise TooLarge(f"commit of {size} bytes: more than the bound of {MAX_COMMIT_BYTES} bytes")
    for path in files:
        check_path(path)
    return files


def _check_message(message: str) -> bytes:
    text = message.strip()
    data = f"{text}\n".encode(errors="replace")
    if not text or "\0" in text or len(data) > MAX_MESSAGE_BYTES:
        raise InvalidInput(f"commit message: expected 1 to {MAX_MESSAGE_BYTES} bytes of text without NUL")
    return data

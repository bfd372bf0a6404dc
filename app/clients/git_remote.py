"""What a remote has: its refs as it lists them, and which of them a caller means."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from app.clients.git_runner import GitRunner
from app.clients.git_url import RepositoryUrl, Scheme, check_ref, is_commit_id
from app.errors import RefNotFound, RepositoryNotFound

BRANCHES: Final = "refs/heads/"
TAGS: Final = "refs/tags/"
MAX_LISTING_BYTES: Final = 32 * 1024 * 1024
"""About 400,000 branches and tags."""
COMMITS: Final = "refs/nightshift/commits/"
"""Where a mirror keeps commits that no branch or tag names, so that they are not collected as garbage."""


@dataclass(frozen=True, slots=True)
class Listing:
    """A remote's refs at one moment."""

    head: str | None
    """The commit id of HEAD; None: the repository is empty or its HEAD names no branch that exists."""
    default_branch: str | None
    """None when HEAD names a commit (as in a checkout at a tag) or nothing."""
    refs: dict[str, str]
    """Full names of branches and tags, and of the ref that was asked for, with object ids."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be checked out."""

    source: str
    """What the remote is asked for: a full ref, or a commit id."""
    ref: str
    """The full ref under which a mirror has it."""

    @property
    def branch(self) -> str | None:
        """The branch's short name; None for a tag or a commit."""
        return self.ref.removeprefix(BRANCHES) if self.ref.startswith(BRANCHES) else None


async def list_remote(runner: GitRunner, url: RepositoryUrl, ref: str | None = None) -> Listing:
    """Ask a remote for its refs, with the credentials for its host.

    A remote that answers has also decided that these credentials may read it, so a mirror may be shown to their owner.
    """
    exact = [ref] if ref and ref.startswith("refs/") else []
    command = ("ls-remote", "--symref", "--", url.canonical, "HEAD", f"{BRANCHES}*", f"{TAGS}*", *exact)
    left = await runner.run(*command, url=url, max_bytes=MAX_LISTING_BYTES)
    listing = await asyncio.to_thread(parse_listing, left.stdout.decode(errors="replace"), frozenset(exact))
    if not listing.refs and url.scheme is Scheme.HTTPS:
        await _require_git(runner, url)
    return listing


def parse_listing(output: str, exact: frozenset[str] = frozenset()) -> Listing:
    """Read the output of `git ls-remote --symref`. Its patterns match the ends of names: they are looked at again."""
    head, default_branch, refs = None, None, {}
    for line in output.splitlines():
        value, _, name = line.partition("\t")
        if name == "HEAD" and value.startswith(f"ref: {BRANCHES}"):
            default_branch = value.removeprefix(f"ref: {BRANCHES}")
        elif name == "HEAD":
            head = value
        elif (name.startswith((BRANCHES, TAGS)) or name in exact) and not name.endswith("^{}"):
            refs[name] = value
    return Listing(head, default_branch if head else None, refs)


def resolve(listing: Listing, ref: str | None, url: RepositoryUrl) -> Wanted | None:
    """What `ref` means: a branch before a tag before a commit id; by default what HEAD names. None: there is nothing.

    Raises `InvalidInput` for a name that no ref can have, `RefNotFound` when the remote has none of this name.
    """
    if ref is None:
        return _resolve_head(listing)
    check_ref(ref)
    names = (ref,) if ref.startswith("refs/") else (BRANCHES + ref, TAGS + ref)
    for name in names:
        if name in listing.refs:
            return Wanted(name, name)
    if is_commit_id(ref):
        return Wanted(ref, COMMITS + ref)
    raise RefNotFound(f"{url.canonical}: no branch or tag {ref!r} (a commit is named by all digits of its id)")


async def _require_git(runner: GitRunner, url: RepositoryUrl) -> None:
    """Raise `RepositoryNotFound` when the URL is no repository: to git any web page looks like one without refs.

    Only the smart protocol is made of packets; a trace of them shows whether it was spoken. It holds no credentials.
    """
    left = await runner.run("ls-remote", "--", url.canonical, url=url, env={"GIT_TRACE_PACKET": "1"})
    if "packet:" not in left.stderr:
        raise RepositoryNotFound(f"{url.canonical}: the host answers, but not as a git repository")


def _resolve_head(listing: Listing) -> Wanted | None:
    if listing.default_branch:
        return Wanted(BRANCHES + listing.default_branch, BRANCHES + listing.default_branch)
    return Wanted(listing.head, COMMITS + listing.head) if listing.head else None

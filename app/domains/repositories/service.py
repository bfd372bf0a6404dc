"""Cloning, and the digest: what a repository is, how it is built, what changed lately."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from app.clients.git import Clone, Commit, GitClient, Progress, Tree
from app.clients.llm import Message, Model, Source, Statement, Usage, render_sources
from app.domains.repositories.material import MAX_FILE_BYTES, choose, commit_sources, languages, tree_source
from app.domains.repositories.models import (
    ClonedRepository,
    CloneRepository,
    Digest,
    DigestRepository,
    Durations,
    Findings,
    HowItIsBuilt,
    RepositoryFacts,
    WhatChanged,
    WhatItIs,
)
from app.domains.workspaces import Workspaces
from app.engine.context import TaskContext
from app.errors import PermanentError

CLONED, READ, DONE = 40, 60, 100
"""Shares of the progress of a digest, in percent, when each part is over."""

SYSTEM = "You describe a software repository to an engineer who is new to it. Say only what the material says."


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a digest: what the model is told to say, and the shape of what it says."""

    instruction: str
    question: str
    shape: type[Findings]


SECTIONS = {
    # The instruction is for a model that reads; the offline one goes by the question and by the shape's field, and
    # takes beginnings where those say nothing in particular.
    "what_it_is": Section(
        "Say what this project is, what it does and for whom. Up to 5 statements, the most telling first.",
        "What is it?",
        WhatItIs,
    ),
    "how_it_is_built": Section(
        "Say how it is built: language, dependencies, layout, tools, commands. Up to 5 statements.",
        "How is it built?",
        HowItIsBuilt,
    ),
    "what_changed_lately": Section(
        "Say what changed lately, by the newest commits. Up to 5 statements, the weightiest first.",
        "What has it been?",
        WhatChanged,
    ),
}


@dataclass
class Material:
    """What was read of a repository."""

    tree: Tree
    commits: list[Commit]
    documents: list[Source]
    build: list[Source]
    paths: list[str] = field(default_factory=list)

    def sources(self, section: str) -> Sequence[Source]:
        """What a section of the digest rests on."""
        if section == "what_it_is":
            return self.documents or [*self.build, tree_source(self.tree.entries)]
        if section == "how_it_is_built":
            return [*self.build, tree_source(self.tree.entries)]
        return commit_sources(self.commits)


class Stopwatch:
    """Measures the parts of a digest, in seconds."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block under a name."""
        began = time.perf_counter()
        yield
        self.parts[name] = round(time.perf_counter() - began, 3)


async def clone_repository(
    ctx: TaskContext, git: GitClient, workspaces: Workspaces, params: CloneRepository
) -> ClonedRepository:
    """Clone into a workspace that stays as long as the task's result."""
    into = await workspaces.fresh(ctx.task_id)
    clone = await git.clone(params.url, into, ref=params.ref, depth=params.depth, on_progress=CloneProgress(ctx, 100))
    return ClonedRepository(
        workspace=into.name, url=clone.url, head=clone.head, branch=clone.branch, default_branch=clone.default_branch
    )


async def digest_repository(
    ctx: TaskContext, git: GitClient, model: Model, workspaces: Workspaces, params: DigestRepository
) -> Digest:
    """Clone, read, and have the model say what the material says. The workspace is removed at the end."""
    watch = Stopwatch()
    async with workspaces.temporary(ctx.task_id) as into:
        with watch.part("clone_s"):
            # No more history than is read: one of depth n holds the n newest commits.
            report = CloneProgress(ctx, CLONED)
            clone = await git.clone(params.url, into, ref=params.ref, depth=params.commits, on_progress=report)
        if clone.head is None:
            raise PermanentError(f"{clone.url} is empty: there is nothing to digest")
        await ctx.progress(CLONED, DONE, "reading files and history")
        with watch.part("read_s"):
            material = await read_material(git, into, params.commits)
        await ctx.progress(READ, DONE, f"asking the model ({model.name or 'by default'})")
        with watch.part("model_s"):
            sections, usage = await _ask_all(ctx, model, material)
    return Digest(
        facts=_facts(clone, material),
        **sections,
        model=model.name,
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        durations=Durations(**watch.parts),
    )


async def read_material(git: GitClient, workspace: Path, commits: int) -> Material:
    """Read the tree, the newest commits, and the files that say most."""
    tree, history = await asyncio.gather(git.tree(workspace), git.log(workspace, commits))
    choice = choose(tree.entries)
    documents = [await _read(git, workspace, path) for path in choice.documents]
    build = [await _read(git, workspace, path) for path in choice.build]
    return Material(tree, history, documents, build, [*choice.documents, *choice.build])


async def _read(git: GitClient, workspace: Path, path: str) -> Source:
    content = await git.read_file(workspace, "HEAD", path, max_bytes=MAX_FILE_BYTES)
    return Source(path, content.data.decode("utf-8", "replace"))


async def _ask_all(ctx: TaskContext, model: Model, material: Material) -> tuple[dict[str, list[Statement]], Usage]:
    """All sections at once; progress as each is answered."""
    answered = 0
    total = Usage()

    async def ask(section: str) -> list[Statement]:
        nonlocal answered, total
        asked = SECTIONS[section]
        messages = [
            Message.system(f"{SYSTEM} {asked.instruction}"),
            Message.user(f"{asked.question}\n\n{render_sources(material.sources(section))}"),
        ]
        reply, usage = await model.structured(messages, asked.shape)
        answered, total = answered + 1, total + usage
        share = round(READ + (DONE - READ) * answered / len(SECTIONS), 1)
        await ctx.progress(share, DONE, f"answered: {section.replace('_', ' ')}")
        return reply.findings

    try:
        async with asyncio.TaskGroup() as group:
            asked = {section: group.create_task(ask(section)) for section in SECTIONS}
    except BaseExceptionGroup as failed:
        # The first failure has stopped the others; who reads the task's error wants to know what it was.
        raise failed.exceptions[0] from None
    return {section: task.result() for section, task in asked.items()}, total


def _facts(clone: Clone, material: Material) -> RepositoryFacts:
    return RepositoryFacts(
        url=clone.url,
        head=clone.head or "",
        branch=clone.branch,
        files=len(material.tree.entries),
        files_truncated=material.tree.truncated,
        commits_read=len(material.commits),
        documents_read=material.paths,
        languages=languages(material.tree.entries),
    )


PHASES = {
    "counting": (0, 5),
    "compressing": (5, 15),
    "receiving": (15, 80),
    "resolving": (80, 95),
    "updating": (95, 100),
}
"""Where each of git's phases stands in a clone, in percent; a phase that git leaves out is jumped over."""
MIN_STEP = 2.0


class CloneProgress:
    """Reports git's own progress as the first part of the task's, when it has grown by two points."""

    def __init__(self, ctx: TaskContext, share: float) -> None:
        self._ctx = ctx
        self._share = share
        self._reported = -MIN_STEP

    async def __call__(self, progress: Progress) -> None:
        low, high = PHASES.get(progress.phase.partition(" ")[0].lower(), (0, 0))
        percent = round(self._share / 100 * (low + (high - low) * progress.percent / 100), 1)
        if percent >= self._reported + MIN_STEP:
            self._reported = percent
            await self._ctx.progress(percent, 100, f"git: {progress.phase.lower()}")

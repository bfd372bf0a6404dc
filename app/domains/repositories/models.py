"""Parameters and results of repository tasks."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from app.clients.llm import Statement

RepositoryUrlText = Annotated[
    str, Field(min_length=1, max_length=2_000, description="https or ssh; a path where the service allows it")
]
RefText = Annotated[
    str | None, Field(max_length=250, description="branch, tag, refs/... or full commit id; default: the remote's HEAD")
]


class CloneRepository(BaseModel):
    """What to clone."""

    model_config = ConfigDict(extra="forbid")

    url: RepositoryUrlText
    ref: RefText = None
    depth: int | None = Field(None, ge=1, le=1_000_000, description="commits of history; default: all")


class ClonedRepository(BaseModel):
    """A workspace on the worker's host. `head` is None when the repository is empty."""

    workspace: str = Field(description="its name among the workspaces of the host")
    url: str
    head: str | None
    branch: str | None
    default_branch: str | None


class DigestRepository(BaseModel):
    """What to look at, and how far back."""

    model_config = ConfigDict(extra="forbid")

    url: RepositoryUrlText
    ref: RefText = None
    commits: int = Field(30, ge=1, le=200, description="how many of the newest commits to read")


class LanguageShare(BaseModel):
    """How much of a repository is written in a language, by the bytes of its files."""

    language: str
    files: int
    percent: float


class Durations(BaseModel):
    """How long each part took, in seconds."""

    clone_s: float
    read_s: float
    model_s: float


class RepositoryFacts(BaseModel):
    """What was counted, not judged."""

    url: str
    head: str
    branch: str | None
    files: int
    files_truncated: bool
    commits_read: int
    documents_read: list[str]
    languages: list[LanguageShare]


class Digest(BaseModel):
    """What a repository is; each statement names the file or commit it rests on."""

    facts: RepositoryFacts
    what_it_is: list[Statement]
    how_it_is_built: list[Statement]
    what_changed_lately: list[Statement]
    model: str
    prompt_tokens: int
    completion_tokens: int
    durations: Durations


class Findings(BaseModel):
    """What the model says in one section of a digest."""

    findings: list[Statement] = Field(max_length=5)


class WhatItIs(Findings):
    """What a project is."""

    findings: list[Statement] = Field(max_length=5, description="what it is")


class HowItIsBuilt(Findings):
    """How it is built."""

    findings: list[Statement] = Field(
        max_length=5,
        description="description, required version, dependencies, scripts, layout",
    )


class WhatChanged(Findings):
    """What changed lately."""

    findings: list[Statement] = Field(max_length=5, description="what it has been")

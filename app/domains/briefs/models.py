"""Parameters and results of brief tasks."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

MAX_DOCUMENT_CHARS = 200_000
MAX_TOPICS = 12


class WriteBrief(BaseModel):
    """A document to be briefed on."""

    model_config = ConfigDict(extra="forbid")

    title: str = Field(min_length=1, max_length=120)
    document: str = Field(min_length=1, max_length=MAX_DOCUMENT_CHARS)
    topics: int = Field(3, ge=1, le=MAX_TOPICS, description="how many sections, at most")
    embargo_s: float = Field(0.0, ge=0, le=30 * 86_400, description="seconds between the approval and the publication")


class Topics(BaseModel):
    """What a brief should be about."""

    topics: list[str] = Field(max_length=MAX_TOPICS, description="the most important points, one sentence each")


class WriteSection(BaseModel):
    """One point of a brief."""

    model_config = ConfigDict(extra="forbid")

    topic: str = Field(max_length=2_000)
    document: str = Field(max_length=MAX_DOCUMENT_CHARS)


class Section(BaseModel):
    """What the document says about one point."""

    topic: str
    text: str


class Brief(BaseModel):
    """A brief, and who let it go out."""

    title: str
    sections: list[Section]
    approved_by: str
    published_at: datetime

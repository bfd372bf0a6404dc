"""Parameters and results of agent tasks."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class RunAgent(BaseModel):
    """One call of a model."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=400_000)
    system: str | None = Field(None, max_length=100_000, description="standing instructions")
    model: str | None = Field(None, max_length=200, description="another model than the configured one")
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2)


class TokenUsage(BaseModel):
    """Tokens that a call took; `estimated` when the server did not report them."""

    prompt_tokens: int
    completion_tokens: int
    estimated: bool


class AgentReply(BaseModel):
    """The whole reply."""

    text: str
    model: str
    finish_reason: str | None
    usage: TokenUsage
